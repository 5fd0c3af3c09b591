# Wait on the lifeline. When the local process is gone, call lc_on_lost and end the connection.
#
# A line on standard input means that the local process closed the lifeline; its end alone means that it is gone.
# Needs lc_on_lost. Killing the sshd of the connection ends the connection for everything that still uses it. Once that
# sshd has ended, the parent of this shell is another process, maybe init: kill nothing but an sshd.
if IFS= read -r _line; then exit 0; fi
lc_on_lost
read -r _pid _name _state lc_parent _rest </proc/$$/stat || lc_parent=$(ps -o ppid= -p $$)
read -r lc_name </proc/$((lc_parent))/comm || lc_name=$(ps -o comm= -p $((lc_parent)))
case $lc_name in sshd*|*/sshd*) [ $((lc_parent)) -le 1 ] || kill $((lc_parent));; esac
