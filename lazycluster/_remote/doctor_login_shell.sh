# Print the account's shell and $SSH_CONNECTION, each ended by a NUL. Then measure the shell three times, with its
# start-up files and without them: a dot is printed before, between and after the two.
#
# Each dot is sent at once, so the time between two dots is that of a shell there, on any connection.
# A bash that SHLVL shows to be the first shell under sshd reads ~/.bashrc. In /dev/null, which is no directory,
# no shell finds its files, and none can create any: fish of root would create a missing home directory.
printf '%s\0' "${SHELL-}" "${SSH_CONNECTION-}"
shell=${SHELL:-/bin/sh}
round=0
while [ $round -lt 3 ]; do
    printf .
    SHLVL=0 "$shell" -c : </dev/null >/dev/null 2>&1
    printf .
    HOME=/dev/null ZDOTDIR=/dev/null XDG_CONFIG_HOME=/dev/null SHLVL=1 "$shell" -c : </dev/null >/dev/null 2>&1
    printf .
    round=$((round + 1))
done
