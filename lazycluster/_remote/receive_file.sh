# Write a file from standard input. It comes under a temporary name and is renamed when it is complete.
# $1 target, $2 name in a directory, $3 random, $4 size, $5 mode, $6 time for touch(1).
# Needs fail.sh, split_path.sh, target.sh and file_target.sh.
enter_file_target "$1" "$2"
temporary=./.lazycluster-$3
# A signal during the trap on EXIT would cut it short. PIPE comes when the supervisor that read the output has gone.
trap 'trap "" HUP INT PIPE TERM; rm -f -- "$temporary"' EXIT
trap 'exit 1' HUP INT PIPE TERM
(umask 077 && cat >"$temporary") || exit 1
size=$(wc -c <"$temporary") || exit 1
[ $((size)) -eq "$4" ] || fail "the stream broke off before its end"
chmod "$5" "$temporary" && TZ=UTC0 touch -t "$6" "$temporary" && mv -f -- "$temporary" "./$base"
