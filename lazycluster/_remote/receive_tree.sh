# Write a directory from the tar stream on standard input. It comes under a temporary name and is moved when complete.
# $1 target, $2 name in a directory, $3 random, $4 name of the last member, $5 mode.
# Needs fail.sh, split_path.sh and target.sh.
#
# A tree is moved into an existing one directory by directory, the files of each with one mv.
#
# Another host that shares the file system may make the same directory at the same moment, and mv would then move our
# directory into that one. So each directory comes under a name that is nowhere else. If it lands inside of another,
# that name shows it, and the two are merged.
settle() {
    mv -- "$1" "$work/$unique" && mv -- "$work/$unique" "$2" || return
    [ -d "$2/$unique" ] || return 0
    inner=$(mktemp -d "$work/m.XXXXXX") && mv -- "$2/$unique" "$inner" && merge "$inner/$unique" "$2"
}
# Move the content of one directory into another.
merge() (
    # shellcheck disable=SC2016 # the inner shell expands it
    find "$1/." ! -name . -prune ! -type d -exec sh -c 'd=$1; shift; mv -f -- "$@" "$d"' sh "$2" {} + || exit 1
    for entry in "$1"/* "$1"/.*; do
        name=${entry##*/}
        case $name in .|..) continue;; esac
        [ -d "$entry" ] || continue
        # A move to another parent writes the new parent into the directory.
        if [ -d "$2/$name" ]; then merge "$entry" "$2/$name"
        elif [ -w "$entry" ]; then settle "$entry" "$2/$name"
        else chmod u+w "$entry" && settle "$entry" "$2/$name" && chmod u-w "$2/$name"
        fi || exit 1
    done
)
# Fail if the trees have a directory and something else under the same name.
conflict() (
    for entry in "$1"/* "$1"/.*; do
        name=${entry##*/}
        case $name in .|..) continue;; esac
        if [ -d "$entry" ] && [ ! -L "$entry" ]; then
            if [ -d "$2/$name" ]; then conflict "$entry" "$2/$name" || exit 1
            elif [ -e "$2/$name" ] || [ -L "$2/$name" ]; then fail "is not a directory: $2/$name"
            fi
        elif { [ -e "$entry" ] || [ -L "$entry" ]; } && [ -d "$2/$name" ] && [ ! -L "$2/$name" ]; then
            fail "is a directory: $2/$name"
        fi
    done
)
enter_target "$1" "$2"
check_writable
[ -d "./$base" ] || [ ! -e "./$base" ] || fail "is not a directory: $directory/$base"
unique=.lazycluster-$3
work=./$unique
# A signal during the trap on EXIT would cut it short. PIPE comes when the supervisor that read the output has gone.
trap 'trap "" HUP INT PIPE TERM; chmod -R u+rwx "$work"; rm -rf -- "$work"' EXIT
trap 'exit 1' HUP INT PIPE TERM
mkdir -m 700 "$work" && mkdir "$work/t" || exit 1
# With exec tar is the child that this shell waits for, so it has ended before the trap removes its files.
(umask 0; exec tar -xpof - -C "$work/t") || exit 1
[ -f "$work/t/$4" ] || fail "the stream broke off before its end"
mv -- "$work/t/$4" "$work/end" || exit 1
if [ -d "./$base" ]; then
    conflict "$work/t" "./$base" || exit 1
    merge "$work/t" "./$base"
else
    settle "$work/t" "./$base" && touch -r "$work/end" "./$base" && chmod "$5" "./$base"
fi
