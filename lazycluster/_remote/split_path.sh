# Split a path: set $directory, absolute and without links, and $base, the name in it. Enter the directory.
# Needs fail.sh. The dot keeps $(...) from cutting newlines at the end of a name.
split_path() {
    whole=$1
    while :; do case $whole in ?*/) whole=${whole%/};; *) break;; esac; done
    case $whole in
        */*) directory=${whole%/*}; [ -n "$directory" ] || directory=/; base=${whole##*/};;
        *) directory=.; base=$whole;;
    esac
    CDPATH='' cd -P -- "$directory" 2>/dev/null || fail "no such directory: $directory"
    directory=$(pwd -P && printf .) && directory=${directory%??}
}
