# Print a path that leads to another path and holds nothing that needs quoting, ended by a NUL. $1 path.
link=$(mktemp -d) && ln -s -- "$1" "$link/x" && printf '%s\0' "$link/x"
