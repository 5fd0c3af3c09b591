# Print why the script fails, and exit.
fail() {
    printf '%s\n' "$1" >&2
    exit 1
}
