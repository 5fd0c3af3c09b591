# Needs fail.sh and split_path.sh.

# Enter the directory in which a file or tree for a target belongs, and set $directory and $base as split_path does.
# Takes the target, and the name to use if the target is a directory.
enter_target() {
    if [ -d "$1" ]; then split_path "$1/$2"; else split_path "$1"; fi
}
check_writable() {
    [ -w . ] || fail "cannot write in the directory $directory"
}
