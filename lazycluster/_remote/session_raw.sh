# Run the command in a shell of its own, with the session's standard input, then end the session.
# Takes $lc_command, $lc_shell, $lc_mark and the function lc_env, which exports the command's environment. The mark is
# `NAME=value`; it marks all processes of the command in their environment.

# A shell reports here how its child died. That report is not output of the command.
exec 2>/dev/null
(
    exec 2>&6 6>&-
    # As parameters, which no variable of the user's can replace.
    set -- "$lc_mark" "$lc_shell" "$lc_command"
    lc_env
    export "${1?}"
    exec "$2" -c "$3"
)
lc_end $?
