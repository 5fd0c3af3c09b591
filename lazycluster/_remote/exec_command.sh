# Become the shell of the command. Takes $lc_command, $lc_shell, $lc_mark and the function lc_env, which exports the
# command's environment. The mark is `NAME=value`; it marks all processes of the command in their environment.
lc_exec_command() {
    # As parameters, which no variable of the user's can replace.
    set -- "$lc_mark" "$lc_shell" "$lc_command"
    lc_env
    export "${1?}"
    exec "$2" -c "$3"
}
