# Run the command in a shell of its own under a watchdog that feeds its standard input, then end the session.
#
# Takes the variables of session_watched.sh but $lc_stdin_size. Standard input consists of pieces: the number of bytes on
# a line, then the bytes. `MARK+` on standard error confirms a piece that the command has read, or will never read. Only
# then does the local process send the next, so that the watchdog is always free to notice the end of standard input. A
# line `0` ends the input of the command. An empty line ends the grace period before it begins.

# A shell reports here how its child died. That report is not output of the command.
exec 2>/dev/null
exec 3<&0
# shellcheck disable=SC2094 # written through 7, read through 5; 4 keeps the opening of each from waiting for the other
{
    lc_directory=$(mktemp -d) && mkfifo "$lc_directory/p" &&
    exec 4<>"$lc_directory/p" 5<"$lc_directory/p" 7>"$lc_directory/p"
} || {
    printf 'no pipe can be made in %s\n' "${TMPDIR:-/tmp}" >&6
    lc_end 1
}
rm -rf -- "$lc_directory"
exec 4>&-
# See session_watched.sh. A piece fits into the pipe between head and cat, so only cat waits for the command.
{
    exec 5<&-
    trap '' HUP INT TERM
    while IFS= read -r lc_x; do
        case $lc_x in
            '') lc_grace_tenths=0;;
            0) exec 7>&-;;
            *) head -c "$lc_x" | { { cat <&9 >&7; printf '%s' "$lc_output_mark+" >&6; } & } 9<&0;;
        esac
    done
    exec 6>&- 7>&-
    kill -s TERM -- -$$
    lc_terminate_marked
    kill -s KILL -- -$$
} <&3 >/dev/null 2>&1 &
lc_watchdog=$!
exec 7>&-
(
    exec <&5 5<&- 3<&- 2>&6 6>&-
    lc_exec_command
)
lc_end $?
