# Print the hardware and software of the host; lazycluster/hardware.py has the parsers. The probe takes one round trip,
# writes no file, always ends with exit status 0, and leaves out what it cannot find.
#
# The parameters are the Pythons to try, in this order. LAZYCLUSTER_UNAME and LAZYCLUSTER_PROCESSORS in the environment
# may hold what `uname -srm` and `nproc` would print, which saves two processes.
#
# Outside of comments it holds no single quote, backslash or exclamation mark, so that any shell quotes it easily.
#
# The braces make a shell that reads the probe from standard input read all of it before it runs any of it.
{
exec </dev/null
section() {
    echo "@@ lazycluster begin $1"
    name=$1
    shift
    case $1 in
        echo|os_release|meminfo|cgroups) "$@" ;;
        *) ( "$@" ) 2>&1 ;;
    esac
    code=$?
    echo
    echo "@@ lazycluster end $name $code"
    return "$code"
}
processors() {
    nproc || getconf _NPROCESSORS_ONLN
}
lines() {
    [ -r "$1" ] || return
    while read -r line || [ -n "$line" ]; do
        printf %s "$line"
        echo
    done <"$1"
}
os_release() {
    lines /etc/os-release || lines /usr/lib/os-release
}
meminfo() {
    read -r line </proc/meminfo && echo "$line"
}
show() {
    { read -r value <"$1"; } 2>/dev/null && echo "$1=$value"
}
show_upwards() {
    root=$1 at=${2%/}
    shift 2
    while :; do
        for file; do show "$root$at/$file"; done
        case "$at" in
            */*) at=${at%/*} ;;
            *) return ;;
        esac
    done
}
cgroups() {
    [ -r /proc/self/cgroup ] || return
    while IFS=: read -r _number controllers where; do
        case ",$controllers," in
            ,,) show_upwards /sys/fs/cgroup "$where" cpu.max memory.max ;;
            *,cpu,*) show_upwards /sys/fs/cgroup/cpu "$where" cpu.cfs_quota_us cpu.cfs_period_us ;;
        esac
        case ",$controllers," in
            *,memory,*) show_upwards /sys/fs/cgroup/memory "$where" memory.limit_in_bytes ;;
        esac
    done </proc/self/cgroup
    return 0
}
python_of() {
    for candidate; do
        "$candidate" -E -s -S -c "import sys; print(sys.version.split()[0] + chr(32) + sys.executable)" && return
    done
}
# Run a command, and give up even on an nvidia-smi that no signal ends. A broken driver leaves it in an uninterruptible
# sleep. The shell waits for cat only, and a command that hangs holds nothing but the pipe to cat. So redirections are
# made in subshells: in its own process a shell keeps the old descriptors, and all its children inherit them. The parts
# that start no program need no subshell.
bounded() {
    if timeout 1 true >/dev/null 2>&1; then
        answer=$( ( { timeout 20 "$@"; echo "@$?"; } 2>&1 & ) | timeout 22 cat )
        echo "${answer%@*}"
        case "$answer" in
            *@[0-9]*) return "${answer##*@}" ;;
            *) return 124 ;;
        esac
    else
        "$@"
    fi
}
unset OMP_NUM_THREADS OMP_THREAD_LIMIT
LC_ALL=C PATH=${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin:/usr/local/nvidia/bin:/usr/lib/wsl/lib
export LC_ALL PATH
echo
# shellcheck disable=SC2086 # a command and its parameters
section uname ${LAZYCLUSTER_UNAME:+echo} ${LAZYCLUSTER_UNAME:-uname -srm}
# shellcheck disable=SC2086 # as above
section processors ${LAZYCLUSTER_PROCESSORS:+echo} ${LAZYCLUSTER_PROCESSORS:-processors}
if [ -r /proc/meminfo ]; then
    section os-release os_release
    section meminfo meminfo
    section cgroups cgroups
else
    section sw_vers sw_vers
    section sysctl sysctl hw.ncpu hw.memsize
fi
[ $# -eq 0 ] || section python python_of "$@"
# GPUs come last because nvidia-smi may hang.
if command -v nvidia-smi >/dev/null 2>&1; then
    fields=index,name,memory.total,driver_version,uuid,utilization.gpu
    section gpus bounded nvidia-smi --query-gpu=$fields --format=csv,nounits && section mig bounded nvidia-smi -L
fi
echo "@@ lazycluster done"
}
