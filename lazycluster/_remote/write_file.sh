# Write the content of a file from standard input. It comes under a temporary name and is renamed when it is complete.
# $1 path, $2 random, $3 size. Needs fail.sh, split_path.sh, target.sh and file_target.sh.
#
# A file that is replaced passes on its mode. A new file gets that of the umask: `=rw` without a letter obeys it.
[ ! -d "$1" ] || fail "is a directory"
enter_file_target "$1" ''
mode=
if [ -e "./$base" ]; then
    mode=$(stat -Lc %a -- "./$base" 2>/dev/null || stat -Lf %Lp "./$base") || exit 1
    mode=000$mode
    mode=${mode#"${mode%???}"}
fi
temporary=./.lazycluster-$2
# A signal during the trap on EXIT would cut it short. PIPE comes when the supervisor that read the output has gone.
trap 'trap "" HUP INT PIPE TERM; rm -f -- "$temporary"' EXIT
trap 'exit 1' HUP INT PIPE TERM
(umask 077 && cat >"$temporary") || exit 1
size=$(wc -c <"$temporary") || exit 1
[ $((size)) -eq "$3" ] || fail "the stream broke off before its end"
chmod "${mode:-=rw}" "$temporary" && mv -f -- "$temporary" "./$base"
