# Print `y` if a path leads to something, else `n`. $1 path.
if [ -e "$1" ]; then printf y; else printf n; fi
