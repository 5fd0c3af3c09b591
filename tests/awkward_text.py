"""Texts that quoting, encodings and options get wrong: of commands, of names, of environment variables."""

from __future__ import annotations

TEXTS = {
    "quotes": """printf '%s\\n' "it's" '"quoted"' 'a`b' "$(echo 'sub')" """,
    "newlines": "printf 'a\\n'\nfor x in 1 2\ndo\n  echo $x\ndone\n",
    "here document": "cat <<'END'\n$HOME `x` \\n 'single'\nEND\n",
    "comment at the end": "echo x # comment",
    "backslashes": r"printf '%s\n' '\n\t\0101\\' \\\\",
    "unicode": "printf '%s\\n' 'äöü € 漢字 🐍'",
    "exclamation mark": "echo '!!' \"a!b\"",
    "percent": "printf '%%s%%d\\n'",
    "glob and tilde": "echo '*' '~' \\~",
    "leading dash": "-n() { echo dash; }; -n 2>/dev/null || echo dash",
    "tabs and spaces": "\t echo  'a\t b'   \t",
    "control characters": "printf '%s' '\x01\x1b[0m\x7f' | od -An -c",
    "carriage return": "printf '%s' 'a\rb' | od -An -c",
    "only a variable": ': "${HOME:?}"; echo "${x:-un\'set}"',
    "braces and pipes": '{ echo a; echo b; } | { read x; echo "$x"; } && echo c || echo d; (echo e)',
    "positional parameters": 'echo "$#" "$@"',
    "unset of the script's variables": "unset lc_mark lc_watchdog LAZYCLUSTER_JOB; echo fine",
    "function with the name of the script's": "lc_end() { echo own; }; echo fine",
}

NAMES = [
    "plain",
    "with space",
    "it's",
    'a"b',
    "$HOME",
    "-dash",
    "новый",
    "new\nline",
    "a*b",
    "back\\slash",
    "`x`",
    "!x",
]

VALUES = {
    "EMPTY": "",
    "SPACES": "  a  b  ",
    "NEWLINES": "a\n\nb\n",
    "QUOTES": 'it\'s "quoted" `x` $HOME $(x) \\n',
    "UNICODE": "äöü € 漢字 🐍",
    "LONG": "x" * 100_000,
    "_under_1": "1",
    "PATH_LIKE": "/a:/b",
    "ESCAPE": "\x1b[0m\x01",
}
