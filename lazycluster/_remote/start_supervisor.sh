# Run the supervisor in the first Python found, or end with 127. Clean up if the supervisor fails, say by a kill.
# The parameters are the Pythons to try. Needs find_python.sh, terminate_marked.sh and stop_marked.sh. Takes:
#   $lc_bootstrap    the text for `python3 -c`
#   $lc_grace_tenths  the tenths of a second between SIGTERM and SIGKILL
#   $lc_mark         `NAME=value`, which marks the supervisor's processes in their environment
#   $lc_temp_dir_prefix  how the names of its temporary directories begin
lc_find_python "$@" || exit 127
# A subshell that becomes Python costs one process, as does a plain command; env(1) would cost one more exec.
(
    export "${lc_mark?}" PYTHONCOERCECLOCALE=0
    exec "$lc_python" -S -c "$lc_bootstrap"
)
lc_code=$?
[ $lc_code -ne 0 ] || exit 0
set --
for lc_directory in "${TMPDIR:-/tmp}/$lc_temp_dir_prefix"*; do
    [ ! -d "$lc_directory" ] || set -- "$@" "$lc_directory"
done
lc_stop_marked "$lc_mark" "$lc_grace_tenths" "$@"
exit $lc_code
