"""What transfers do on the host, as texts for a POSIX shell. Paths come in as positional parameters."""

from __future__ import annotations

from lazycluster._ssh.shell import FIND_MARKED

_FAIL = """\
fail() { printf '%s\\n' "$1" >&2; exit 1; }
"""

# In: $p, a path; $1 and $2, the path as it was given and a name. Sets $d, an absolute directory, and $b, a name in it.
# The shell enters $d. The dot keeps newlines at the end of a name from being cut by $(...).
_SPLIT = """\
while :; do case $p in ?*/) p=${p%/};; *) break;; esac; done
case $p in */*) d=${p%/*}; [ -n "$d" ] || d=/; b=${p##*/};; *) d=.; b=$p;; esac
CDPATH= cd -P -- "$d" 2>/dev/null || fail "no such directory: $d"
d=$(pwd -P && printf .) && d=${d%??}
"""
_JOIN = """\
p=$1
[ ! -d "$p" ] || p=$p/$2
"""
_WRITABLE = """\
[ -w . ] || fail "cannot write in the directory $d"
"""
_TARGET = _JOIN + _SPLIT + _WRITABLE

# Sets $d and $b to where a file for $1 belongs, behind symbolic links; $2 is its name in a directory.
_BEHIND_LINKS = (
    """\
case $1 in */) [ -d "$1" ] || fail "no such directory: $1";; esac
"""
    + _JOIN
    + _SPLIT
    + """\
i=0
while [ -L "./$b" ]; do
    i=$((i + 1))
    [ $i -le 40 ] || fail "too many symbolic links: $d/$b"
    p=$(readlink "./$b" && printf .) && p=${p%??}
"""
    + _SPLIT
    + """\
done
"""
    + _WRITABLE
    + """\
[ ! -d "./$b" ] || fail "is a directory: $d/$b"
[ ! -e "./$b" ] || [ -f "./$b" ] || fail "is no regular file: $d/$b"
"""
)
PREPARE_FILE = (
    _FAIL
    + _BEHIND_LINKS
    + """\
printf '%s\\0' "$d" "$b"
"""
)
"""$1 target, $2 name to take in a directory. Prints the directory and the name in it, behind symbolic links."""

RECEIVE_FILE = (
    _FAIL
    + _BEHIND_LINKS
    + """\
t=./.lazycluster-$3
trap 'rm -f -- "$t"' EXIT
trap 'exit 1' HUP INT TERM
(umask 077 && cat >"$t") || exit 1
n=$(wc -c <"$t") || exit 1
[ $((n)) -eq "$4" ] || fail "the stream broke off before its end"
chmod "$5" "$t" && TZ=UTC0 touch -t "$6" "$t" && mv -f -- "$t" "./$b"
"""
)
"""$1 target, $2 name to take in a directory, $3 random, $4 size, $5 mode, $6 time for touch(1). Reads the file."""

PLACE_FILE = """\
mv -f -- "$1" "$2"
"""
"""$1 temporary name, $2 name."""

REMOVE = """\
rm -rf -- "$1"
"""
"""$1 path."""

CREATE_LINK = """\
x=$(mktemp -d) && ln -s -- "$1" "$x/x" && printf '%s\\0' "$x/x"
"""
"""$1 path. Prints a path that leads there and holds nothing that needs quoting."""

# A tree is moved into an existing one directory by directory, the files of each with one mv.
#
# Another host that shares the file system may make the same directory at the same moment, and mv would put ours inside
# of that. It comes under a name that nobody else has, so that this shows, and is merged then.
_MERGE = """\
settle() {
    mv -- "$1" "$s/$u" && mv -- "$s/$u" "$2" || return
    [ -d "$2/$u" ] || return 0
    x=$(mktemp -d "$s/m.XXXXXX") && mv -- "$2/$u" "$x" && merge "$x/$u" "$2"
}
merge() (
    find "$1/." ! -name . -prune ! -type d -exec sh -c 'd=$1; shift; mv -f -- "$@" "$d"' sh "$2" {} + || exit 1
    for e in "$1"/* "$1"/.*; do
        n=${e##*/}
        case $n in .|..) continue;; esac
        [ -d "$e" ] || continue
        if [ -d "$2/$n" ]; then merge "$e" "$2/$n"
        elif [ -w "$e" ]; then settle "$e" "$2/$n"
        else chmod u+w "$e" && settle "$e" "$2/$n" && chmod u-w "$2/$n"  # a new parent is written into it
        fi || exit 1
    done
)
conflict() (
    for e in "$1"/* "$1"/.*; do
        n=${e##*/}
        case $n in .|..) continue;; esac
        if [ -d "$e" ] && [ ! -L "$e" ]; then
            if [ -d "$2/$n" ]; then conflict "$e" "$2/$n" || exit 1
            elif [ -e "$2/$n" ] || [ -L "$2/$n" ]; then fail "is not a directory: $2/$n"
            fi
        elif { [ -e "$e" ] || [ -L "$e" ]; } && [ -d "$2/$n" ] && [ ! -L "$2/$n" ]; then fail "is a directory: $2/$n"
        fi
    done
)
"""
RECEIVE_TREE = (
    _FAIL
    + _TARGET
    + _MERGE
    + """\
[ -d "./$b" ] || [ ! -e "./$b" ] || fail "is not a directory: $d/$b"
u=.lazycluster-$3
s=./$u
trap 'chmod -R u+rwx "$s"; rm -rf -- "$s"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -m 700 "$s" && mkdir "$s/t" || exit 1
(umask 0 && tar -xpof - -C "$s/t") || exit 1
[ -f "$s/t/$4" ] || fail "the stream broke off before its end"
mv -- "$s/t/$4" "$s/end" || exit 1
if [ -d "./$b" ]; then
    conflict "$s/t" "./$b" || exit 1
    merge "$s/t" "./$b"
else
    settle "$s/t" "./$b" && touch -r "$s/end" "./$b" && chmod "$5" "./$b"
fi
"""
)
"""$1 target, $2 name to take in a directory, $3 random, $4 name of the last member, $5 mode. Reads the stream."""

FETCH = (
    _FAIL
    + """\
p=$1
[ -e "$p" ] || fail "no such file or directory"
if [ -d "$p" ]; then
    CDPATH= cd -- "$p" 2>/dev/null && [ -r . ] || fail "permission denied"
    d=$(pwd -P && printf .) && d=${d%??}
    printf '%s\\0' d "$d" "${d##*/}" 0
    exec tar -cf - .
fi
[ -f "$p" ] || fail "neither a regular file nor a directory"
[ -r "$p" ] || fail "permission denied"
"""
    + _SPLIT
    + """\
n=$(wc -c <"./$b") || exit 1
printf '%s\\0' f "$d" "$b" "$((n))"
[ $((n)) -le "$2" ] || exit 0
m=$(stat -Lc '%a %Y' -- "./$b" 2>/dev/null || stat -Lf '%Lp %m' -- "./$b") || exit 1
printf '%s\\0' "$m"
exec cat <"./$b"
"""
)
"""$1 path, $2 size of a file, in bytes, up to which it follows itself.

Prints `f`, directory, name and size of a file, and of a smaller one its octal mode, its time in seconds, and what is in
it; or `d`, the directory, its name, 0 and its tar stream.
"""

MAKE_WORKING_DIRECTORY = """\
if [ $# -eq 0 ]; then
    w=$(umask 077 && mktemp -d "${TMPDIR:-/tmp}/lazycluster-XXXXXXXXXX") || exit 1
    trap 'rm -rf -- "$w"; exit 1' HUP INT TERM
else
    mkdir -p -- "$1" && w=$(CDPATH= cd -- "$1" && pwd && printf .) && w=${w%??} || exit 1
fi
printf '%s\\0' "$w"
"""
"""$1 a directory to make where it is missing; without it a temporary one. Prints its path."""

END_MARKED = (
    """\
lc_mark=$1
shift
"""
    + FIND_MARKED
    + """\
list=$(lc_pids)
[ -z "$list" ] || kill -s TERM $list 2>/dev/null
n=0
while [ $n -lt 50 ] && [ -n "$(lc_pids)" ]; do sleep 0.1; n=$((n + 1)); done
list=$(lc_pids)
[ -z "$list" ] || kill -s KILL $list 2>/dev/null
for d in "$@"; do chmod -R u+rwX -- "$d" 2>/dev/null; rm -rf -- "$d"; done
"""
)
"""$1 what marks the processes in their environment; the others are directories to remove."""
