# Define how processes with a mark in their environment are found and ended. Takes $lc_mark and $lc_grace_tenths, the
# tenths of a second between SIGTERM and SIGKILL.

# Print the ids of the processes that have $lc_mark in their environment.
# macOS has no /proc, but its ps shows the environment.
lc_pids() {
    if [ -r /proc/self/environ ]; then
        grep -lsF -e "$lc_mark" /proc/[0-9]*/environ | sed 's,^/proc/,,; s,/environ$,,'
    else
        ps -A -E -ww -o pid= -o command= | awk -v m="$lc_mark" 'index($0, m) && $2 != "awk" { print $1 }'
    fi
}
# Print the parent of the process $1, nothing if the process is gone.
lc_parent() {
    if [ -r /proc/self/stat ]; then
        # The name of the program, in parentheses, may hold spaces.
        IFS= read -r lc_stat <"/proc/$1/stat" || return
        lc_stat=${lc_stat##*') '}
        lc_stat=${lc_stat#* }
        echo "${lc_stat%% *}"
    else
        ps -o ppid= -p "$1" | tr -d ' '
    fi
}
# End the processes that have $lc_mark in their environment: SIGTERM once to each, SIGKILL when the grace is over.
# A process that has got SIGTERM may start others to clean up, such as the `rm` of a trap. These get SIGTERM only when
# they have lost their parent.
lc_terminate_marked() {
    lc_list=' '
    lc_n=0
    # Look twice: in the moment of its exec a process shows no environment.
    lc_empty_looks=0
    while [ $lc_empty_looks -lt 2 ]; do
        lc_left=$(lc_pids)
        if [ -z "$lc_left" ]; then lc_empty_looks=$((lc_empty_looks + 1)); continue; fi
        lc_empty_looks=0
        # shellcheck disable=SC2086,SC2116 # ids without newlines
        lc_now=" $(echo $lc_left) "
        lc_signalled=$lc_list
        for lc_x in $lc_left; do
            case $lc_list in *" $lc_x "*) continue ;; esac
            if [ "$lc_signalled" != ' ' ]; then
                lc_ppid=$(lc_parent "$lc_x")
                case $lc_now in *" ${lc_ppid:-none} "*) continue ;; esac
            fi
            kill -s TERM "$lc_x"
            lc_list="$lc_list$lc_x "
        done
        [ $lc_n -lt "$lc_grace_tenths" ] || break
        # Some hosts have a sleep for whole seconds only.
        if sleep 0.1; then lc_n=$((lc_n + 1)); else sleep 1; lc_n=$((lc_n + 10)); fi
    done
    # shellcheck disable=SC2046,SC2086 # lists of process ids
    kill -s KILL $lc_list $(lc_pids)
} 2>/dev/null
