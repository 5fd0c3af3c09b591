# Run the command in a shell of its own under a watchdog, then end the session.
#
# Takes what session_raw.sh takes, lc_pids (find_marked.sh), $lc_stdin_size and $lc_grace. The command reads that number
# of bytes, which come first on standard input. The rest of standard input is the lifeline. If it ends before the
# command does, the local process is gone or has cancelled. The watchdog then ends the command with all its
# descendants. $lc_grace is the number of seconds between SIGTERM and SIGKILL.

# A shell reports here how its child died, which is no output of the command.
exec 2>/dev/null
exec 3<&0
if [ "$lc_stdin_size" -eq 0 ]; then
    exec 5</dev/null
else
    lc_full() {
        printf 'standard input cannot be stored in %s\n' "${TMPDIR:-/tmp}" >&6
        lc_end 1
    }
    # shellcheck disable=SC2094 # written through 4, then read through 5
    { lc_file=$(mktemp) && exec 4<>"$lc_file" 5<"$lc_file"; } || lc_full
    head -c "$lc_stdin_size" <&3 >&4
    lc_size=$(wc -c <"$lc_file")
    rm -f -- "$lc_file"
    exec 4>&-
    [ "$lc_size" -eq "$lc_stdin_size" ] || lc_full
fi
# The watchdog is a child of this shell, without the command's environment, in which it might find no programs.
# Signals to the process group reach this shell, too, but not the watchdog.
{
    trap '' HUP INT TERM
    while IFS= read -r lc_x; do :; done
    kill -s TERM -- -$$
    lc_list=' '
    lc_n=0
    while :; do
        lc_left=$(lc_pids)
        for lc_x in $lc_left; do
            case $lc_list in *" $lc_x "*) ;; *) kill -s TERM "$lc_x"; lc_list="$lc_list$lc_x " ;; esac
        done
        # Look twice: in the moment of its exec a process shows no environment.
        if [ -z "$lc_left" ] && [ $lc_n -gt 0 ]; then break; fi
        [ $lc_n -lt "${lc_grace}0" ] || break
        # Some hosts have a sleep for whole seconds only.
        if sleep 0.1; then lc_n=$((lc_n + 1)); else sleep 1; lc_n=$((lc_n + 10)); fi
    done
    # shellcheck disable=SC2046,SC2086 # lists of process ids
    kill -s KILL $lc_list $(lc_pids)
    kill -s KILL -- -$$
} <&3 >/dev/null 2>&1 6>&- &
lc_watchdog=$!
(
    exec <&5 5<&- 3<&- 2>&6 6>&-
    # As parameters, which no variable of the user's can replace.
    set -- "$lc_mark" "$lc_shell" "$lc_command"
    lc_env
    export "${1?}"
    exec "$2" -c "$3"
)
lc_end $?
