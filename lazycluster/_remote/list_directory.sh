# Print the names in a directory, each ended by a NUL. $1 path. Needs fail.sh.
# In the C locale each byte of a name matches `*`, also one that is no text.
LC_ALL=C
export LC_ALL
[ -e "$1" ] || fail "no such file or directory"
[ -d "$1" ] || fail "not a directory"
{ CDPATH='' cd -- "$1" 2>/dev/null && [ -r . ]; } || fail "permission denied"
for name in * .*; do
    case $name in
        .|..) continue;;
        '*'|'.*') [ -e "./$name" ] || [ -L "./$name" ] || continue;;
    esac
    printf '%s\0' "$name"
done
