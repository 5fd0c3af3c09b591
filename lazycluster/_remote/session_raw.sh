# Run the command in a shell of its own, with the session's standard input, then end the session.
# Takes the variables of exec_command.sh, which it needs.

# A shell reports here how its child died. That report is not output of the command.
exec 2>/dev/null
(
    exec 2>&6 6>&-
    lc_exec_command
)
lc_end $?
