# Begin a session: print the start marks, and define how the session ends.
#
# Takes $lc_output_mark, which is random. The output of start-up files comes before `MARK<` on both streams. The command's
# output ends at `MARK=STATUS;`, so a command's 255 is not mistaken for one of ssh's.
# Standard error stays open as 6.

# Print the end marks and exit. Takes the exit status, or `cd`.
# The watchdog goes first. Standard input may end as soon as the local process has read the marks, and the watchdog must
# not end processes that the command left in the background.
lc_end() {
    [ -z "$lc_watchdog" ] || kill -s KILL "$lc_watchdog"
    printf '%s' "$lc_output_mark=$1;"
    printf '%s' "$lc_output_mark=$1;" >&6
    exit 0
}
lc_watchdog=
printf '%s' "$lc_output_mark<"
printf '%s' "$lc_output_mark<" >&2
exec 6>&2
# Under ssh bash reads ~/.bashrc again unless SHLVL shows that another shell started it.
[ "${SHLVL:-0}" -gt 0 ] 2>/dev/null || SHLVL=1
export SHLVL
