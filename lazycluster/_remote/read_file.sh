# Print the content of a file. $1 path. Needs fail.sh.
[ -e "$1" ] || fail "no such file or directory"
[ ! -d "$1" ] || fail "is a directory"
[ -f "$1" ] || fail "not a regular file"
[ -r "$1" ] || fail "permission denied"
exec cat <"$1"
