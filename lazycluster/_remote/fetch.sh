# Print a file or a directory. $1 path, $2 largest size in bytes of a file that is printed itself.
# Needs fail.sh and split_path.sh.
#
# Of a file it prints `f`, its directory, name and size, each ended by a NUL. For a file that is not larger its octal
# mode and time in seconds follow, ended by a NUL, then its content.
# Of a directory it prints `d`, the directory, its name and 0, each ended by a NUL, then the tar stream.
[ -e "$1" ] || fail "no such file or directory"
if [ -d "$1" ]; then
    { CDPATH='' cd -- "$1" 2>/dev/null && [ -r . ]; } || fail "permission denied"
    directory=$(pwd -P && printf .) && directory=${directory%??}
    printf '%s\0' d "$directory" "${directory##*/}" 0
    exec tar -cf - .
fi
[ -f "$1" ] || fail "neither a regular file nor a directory"
[ -r "$1" ] || fail "permission denied"
split_path "$1"
size=$(wc -c <"./$base") || exit 1
printf '%s\0' f "$directory" "$base" "$((size))"
[ $((size)) -le "$2" ] || exit 0
facts=$(stat -Lc '%a %Y' -- "./$base" 2>/dev/null || stat -Lf '%Lp %m' -- "./$base") || exit 1
printf '%s\0' "$facts"
exec cat <"./$base"
