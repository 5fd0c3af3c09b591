# Enter the command's directory. Takes $lc_cwd.
CDPATH='' cd -- "$lc_cwd" || lc_end cd
