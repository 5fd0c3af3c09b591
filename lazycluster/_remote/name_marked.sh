# Define how the processes with a mark in their environment are named. Takes $lc_mark. Needs terminate_marked.sh.

# Print the command lines of the processes that have $lc_mark in their environment, at most 200 bytes of each. Processes
# whose parent is among them are left out, and after 11 lines the rest.
lc_name_marked() {
    lc_left=$(lc_pids)
    # shellcheck disable=SC2086,SC2116 # ids without newlines
    lc_left=" $(echo $lc_left) "
    lc_n=0
    for lc_x in $lc_left; do
        [ $lc_n -lt 11 ] || break
        case $lc_left in *" $(lc_parent "$lc_x") "*) continue ;; esac
        if [ -r /proc/self/environ ]; then
            { tr '\000\n' '  ' <"/proc/$lc_x/cmdline"; echo; } | cut -c 1-200
        else
            ps -ww -o command= -p "$lc_x" | cut -c 1-200
        fi
        lc_n=$((lc_n + 1))
    done
} 2>/dev/null
