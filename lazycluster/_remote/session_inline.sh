# Run the command in a subshell of this shell, with the session's standard input, then end the session.
# Takes $lc_command and the function lc_env, which exports the command's environment.

# A shell reports here how its child died. That report is not output of the command.
exec 2>/dev/null
(
    exec 2>&6 6>&-
    # As a parameter, which no variable of the user's can replace.
    set -- "$lc_command"
    lc_env
    eval "set --; $1"
)
lc_end $?
