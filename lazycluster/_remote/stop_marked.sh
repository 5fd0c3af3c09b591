# End the processes that have a mark in their environment, and remove directories.
# Takes the mark, then the directories. Needs lc_pids (find_marked.sh).
lc_stop_marked() {
    lc_mark=$1
    shift
    lc_list=$(lc_pids)
    # shellcheck disable=SC2086 # a list of process ids
    [ -z "$lc_list" ] || kill -s TERM $lc_list 2>/dev/null
    lc_n=0
    while [ $lc_n -lt 50 ] && [ -n "$(lc_pids)" ]; do sleep 0.1; lc_n=$((lc_n + 1)); done
    lc_list=$(lc_pids)
    # shellcheck disable=SC2086 # a list of process ids
    [ -z "$lc_list" ] || kill -s KILL $lc_list 2>/dev/null
    for lc_directory in "$@"; do
        chmod -R u+rwX -- "$lc_directory" 2>/dev/null
        rm -rf -- "$lc_directory"
    done
}
