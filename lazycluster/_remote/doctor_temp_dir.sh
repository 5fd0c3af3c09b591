# Make a file in the temporary directory, and look for room there. Prints, each ended by a NUL: the directory; why
# nothing can be made in it; the last line of df(1) in blocks; the same in inodes.
LC_ALL=C
export LC_ALL
directory=${TMPDIR:-/tmp}
printf '%s\0' "$directory"
# In either case the message is the output of a program that fails.
if made=$(mktemp -d "$directory/lazycluster-XXXXXXXXXX" 2>&1); then
    reason=$( { printf '%1024s' x >"$made/f"; } 2>&1) || printf '%s' "${reason:-it cannot be written to}"
    rm -rf -- "$made"
else
    printf '%s' "${made:-it cannot be written to}"
fi
printf '\0'
df -Pk -- "$directory" 2>/dev/null | tail -n 1
printf '\0'
df -Pi -- "$directory" 2>/dev/null | tail -n 1
printf '\0'
