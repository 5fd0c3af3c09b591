# Print the paths that match a pattern, each ended by a NUL. $1 directory that is put before it, or '', $2 pattern.
# Needs fail.sh.
LC_ALL=C
export LC_ALL
prefix=
if [ -n "$1" ]; then
    CDPATH='' cd -- "$1" 2>/dev/null || fail "no such directory: $1"
    prefix=${1%/}/
fi
# Without separators nothing but the pattern is expanded.
IFS=
# shellcheck disable=SC2086 # the shell expands the pattern
for path in $2; do
    if [ -e "$path" ] || [ -L "$path" ]; then printf '%s\0' "$prefix$path"; fi
done
