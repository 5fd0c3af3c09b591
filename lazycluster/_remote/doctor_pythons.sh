# Print each Python on the host: `path` or `elsewhere`, its path, and implementation and version, each ended by a NUL.
# The parameters are the Pythons to look for on the PATH; then, after `--`, the paths at which others may be.
# At most 16 of those others are printed.
look() {
    version=$("$2" -E -s -S -c "import sys
print(sys.implementation.name, sys.version.split()[0])" </dev/null 2>/dev/null) || version=
    printf '%s\0%s\0%s\0' "$1" "$2" "$version"
}
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    file=$(command -v "$1" 2>/dev/null) && look path "$file"
    shift
done
[ $# -eq 0 ] || shift
count=0
for file in "$@"; do
    [ -x "$file" ] && [ $count -lt 16 ] || continue
    count=$((count + 1))
    look elsewhere "$file"
done
