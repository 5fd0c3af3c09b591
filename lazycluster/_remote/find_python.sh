# Set $lc_python to the first of the Pythons given by name or path that is there. Fails if there is no such Python.
# The variables begin with lc_ because an exported variable of the user with the same name would reach Python changed.
#
# A shim of pyenv or asdf is there for every version, and fails if that version is not switched on. So a PATH with shims
# costs a process, and a shim is asked for the program that it starts.
lc_find_python() {
    for lc_candidate in "$@"; do
        case $PATH in
            */shims*) lc_python=$(command -v "$lc_candidate" 2>/dev/null) || continue;;
            *) command -v "$lc_candidate" >/dev/null 2>&1 || continue; lc_python=$lc_candidate;;
        esac
        case $lc_python in
            */shims/*)
                lc_python=$("$lc_candidate" -c "import sys; print(sys.executable)" </dev/null 2>/dev/null) || continue
                [ -x "$lc_python" ] || lc_python=$lc_candidate
                ;;
            *) lc_python=$lc_candidate;;
        esac
        return 0
    done
    return 1
}
