# Set $lc_shell to the account's shell if it is a Bourne shell. An account's fish, tcsh or zsh would misread the
# command.
# The bootstrap for a person has these lines in it, so they hold no single quote.
lc_shell=/bin/sh
case "${SHELL##*/}" in sh|bash|dash|ash|ksh|ksh93|mksh|yash) [ ! -x "$SHELL" ] || lc_shell=$SHELL;; esac
