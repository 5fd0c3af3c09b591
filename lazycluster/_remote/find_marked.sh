# Print the ids of the processes that have $lc_mark in their environment.
# macOS has no /proc, but its ps shows the environment.
lc_pids() {
    if [ -r /proc/self/environ ]; then
        grep -lsF -e "$lc_mark" /proc/[0-9]*/environ | sed 's,^/proc/,,; s,/environ$,,'
    else
        ps -A -E -ww -o pid= -o command= | awk -v m="$lc_mark" 'index($0, m) && $2 != "awk" { print $1 }'
    fi
}
