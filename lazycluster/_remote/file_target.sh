# As enter_target of target.sh, for a file: symbolic links in place of the file are followed to where they lead.
# Fails if no regular file can be put there.
enter_file_target() {
    case $1 in */) [ -d "$1" ] || fail "no such directory: $1";; esac
    enter_target "$1" "$2"
    links=0
    while [ -L "./$base" ]; do
        links=$((links + 1))
        [ $links -le 40 ] || fail "too many symbolic links: $directory/$base"
        link=$(readlink "./$base" && printf .) && link=${link%??}
        split_path "$link"
    done
    check_writable
    [ ! -d "./$base" ] || fail "is a directory: $directory/$base"
    [ ! -e "./$base" ] || [ -f "./$base" ] || fail "is no regular file: $directory/$base"
}
