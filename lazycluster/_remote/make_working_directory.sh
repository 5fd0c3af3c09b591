# Make the directory $1 if it is missing, or without a parameter a temporary one. Print its path, ended by a NUL.
if [ $# -eq 0 ]; then
    made=$(umask 077 && mktemp -d "${TMPDIR:-/tmp}/lazycluster-XXXXXXXXXX") || exit 1
    trap 'rm -rf -- "$made"; exit 1' HUP INT PIPE TERM
else
    mkdir -p -- "$1" && made=$(CDPATH='' cd -- "$1" && pwd && printf .) && made=${made%??} || exit 1
fi
printf '%s\0' "$made"
