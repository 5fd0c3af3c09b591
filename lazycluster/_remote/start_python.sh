# Become the first Python found, or end with 127.
# The parameters are the Pythons to try. Takes $lc_bootstrap, the text for `python3 -c`. Needs find_python.sh.
lc_find_python "$@" || exit 127
exec "$lc_python" -c "$lc_bootstrap"
