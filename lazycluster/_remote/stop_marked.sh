# End the processes that have a mark in their environment, and remove directories.
# Takes the mark, the tenths of a second between SIGTERM and SIGKILL, then the directories. Needs terminate_marked.sh.
lc_stop_marked() {
    lc_mark=$1
    lc_grace_tenths=$2
    shift 2
    lc_terminate_marked
    for lc_directory in "$@"; do
        chmod -R u+rwX -- "$lc_directory" 2>/dev/null
        rm -rf -- "$lc_directory"
    done
}
