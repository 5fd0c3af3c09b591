# Print the directory and the name under which a sent file belongs, each ended by a NUL.
# $1 target, $2 name in a directory. Needs fail.sh, split_path.sh, target.sh and file_target.sh.
enter_file_target "$1" "$2"
printf '%s\0' "$directory" "$base"
