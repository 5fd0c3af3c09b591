# Run the command in a shell of its own under a watchdog, then end the session.
#
# Takes the variables of exec_command.sh and terminate_marked.sh, which it needs, and $lc_stdin_size. The command reads
# $lc_stdin_size bytes, which come first on standard input. The rest of standard input is the lifeline. If it ends before
# the command does, the local process is gone or has cancelled. The watchdog then ends the command with all its
# descendants, and without a grace period if a line came before.

# A shell reports here how its child died. That report is not output of the command.
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
    while IFS= read -r lc_x; do lc_grace_tenths=0; done
    kill -s TERM -- -$$
    lc_terminate_marked
    kill -s KILL -- -$$
} <&3 >/dev/null 2>&1 6>&- &
lc_watchdog=$!
(
    exec <&5 5<&- 3<&- 2>&6 6>&-
    lc_exec_command
)
lc_end $?
