"""`add-runtime` and `delete-runtime` with the real ssh, which reads the files, and with private sshds."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import attrs
import pexpect
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazycluster.testing import LocalSshd
from tests.command_line import main
from tests.observation import write_script

Cli = Callable[..., tuple[int, str, str]]


def ask_ssh(config: Path, name: str) -> dict[str, str]:
    """Return the settings that ssh finds for a host; the values of a keyword that is repeated are lines."""
    ended = subprocess.run(
        ("ssh", "-G", "-F", config, "--", name), check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    settings: dict[str, str] = {}
    for line in ended.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        settings[keyword] = f"{settings[keyword]}\n{value}" if keyword in settings else value
    return settings


def hosts_file(config: Path) -> Path:
    """Return the file beside a configuration that holds the added hosts."""
    return config.with_name(f"{config.name}.lazycluster")


def include_line(config: Path) -> str:
    return f"Include {hosts_file(config)}"


def added_hosts(config: Path) -> list[str]:
    return re.findall(r"(?m)^Host (.+)$", hosts_file(config).read_text())


def find_backups(config: Path) -> list[Path]:
    return list(config.parent.glob(f".{config.name}.lazycluster-backup-*"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config"


@pytest.fixture
def cli(config: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command on the configuration; return its exit status and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([*arguments, "--config", str(config)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


# Any configuration: ssh takes the new host first, and all other hosts as before --------------------------------------

LINES = st.sampled_from(
    [
        "Host web",
        "Host a web",
        'Host="web" b !x',
        "Host w* n*",
        "Host *",
        "Host * !new",
        "Host a",
        "Match all",
        "Match host web",
        "Match originalhost new,web",
        "  Port 1",
        "\tPort=2",
        "Port 3",
        "  User u",
        "User v",
        "  IdentityFile /k1",
        "  IdentityFile=/k2",
        "# c",
        "  # Host new",
        "",
        "  HostName h # c",
    ]
)
TEXTS = st.builds(
    lambda lines, newline, last: newline.join(lines) + last,
    st.lists(LINES, max_size=10),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "\n", "\r\n"]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS)
def test_add_runtime_wins_and_keeps_other_hosts(config: Path, text: str) -> None:
    others = ("web", "a", "b", "x")
    hosts_file(config).unlink(missing_ok=True)
    config.write_bytes(text.encode())
    before = [ask_ssh(config, name) for name in ("new", *others)]
    option = ("--option", "IdentityFile=/mine")
    assert main(["add-runtime", "new", "me@h.example:2222", *option, "--config", str(config)]) == 0

    assert config.read_bytes() == f"{include_line(config)}\n{text}".encode()
    found = ask_ssh(config, "new")
    assert (found["hostname"], found["port"], found["user"]) == ("h.example", "2222", "me")
    assert found["identityfile"].startswith("/mine")
    assert [ask_ssh(config, name) for name in others] == before[1:]
    assert main(["delete-runtime", "new", "--config", str(config)]) == 0
    assert [ask_ssh(config, name) for name in ("new", *others)] == before


# add-runtime ----------------------------------------------------------------------------------------------------------

HEADER = (
    "# `lazycluster add-runtime` and `lazycluster delete-runtime` write this file.\n"
    "# A comment belongs to the host above it.\n"
)


def test_add_runtime_without_configuration_makes_one(cli: Cli, config: Path) -> None:
    key = config.with_name('my "k" \\ 100%')
    key.touch()
    options = ("--option", "ProxyJump=bastion", "--option", "LocalForward=8080 localhost:80")
    status, out, err = cli("add-runtime", "web", "me@[::1]:2222", "--id-file", str(key), *options)

    assert (status, out, err) == (0, f"Added web in {config}.lazycluster.\n", "")
    assert config.read_text() == f"Include {config}.lazycluster\n"
    assert {stat.S_IMODE(path.stat().st_mode) for path in config.parent.glob("config*")} == {0o600}
    found = ask_ssh(config, "web")
    assert (found["hostname"], found["user"], found["port"]) == ("::1", "me", "2222")
    assert found["proxyjump"] == "bastion"
    assert found["identityfile"] == str(key).replace("%", "%%")  # ssh expands it
    assert found["localforward"] == "8080 [localhost]:80"


def test_add_runtime_finds_home_in_password_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real ssh looks for a relative path in the real home directory, so that it would not find the new host.
    resolve = f'sed "s|^Include config|Include {tmp_path}/.ssh/config|" "$3" >{tmp_path}/resolved'
    programs = tmp_path / "bin"
    programs.mkdir()
    write_script(programs / "ssh", f'{resolve}\nexec {shutil.which("ssh")} -G -F {tmp_path}/resolved -- "$5"\n')
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: SimpleNamespace(pw_dir=str(tmp_path)))
    monkeypatch.setenv("HOME", "/nonexistent")
    assert main(["add-runtime", "web", "h"]) == 0

    hosts = tmp_path / ".ssh/config.lazycluster"
    assert (tmp_path / ".ssh/config").read_text() == "Include config.lazycluster\n"
    assert hosts.read_text() == f"{HEADER}\nHost web\n    HostName h\n"
    assert (tmp_path / ".ssh").stat().st_mode & 0o777 == 0o700
    assert main(["delete-runtime", "web"]) == 0
    assert hosts.read_text() == f"{HEADER}\n"


def test_add_runtime_writes_the_include_line_once(cli: Cli, config: Path) -> None:
    config.write_bytes(b"# \xe4\r\nUser everybody\r\nHost *\r\n\tPort 7")
    status, out, _ = cli("add-runtime", "web", "me@h:1")
    assert status == 0
    first = f"Added web in {config}.lazycluster.\n{config} includes that file now. The configuration as it was: "
    assert out.startswith(f"{first}{config.parent}/.config.lazycluster-backup-")
    assert Path(out.split()[-1]).read_bytes() == b"# \xe4\r\nUser everybody\r\nHost *\r\n\tPort 7"
    assert cli("add-runtime", "db", "h") == (0, f"Added db in {config}.lazycluster.\n", "")

    line = f"Include {config}.lazycluster\n".encode()
    assert config.read_bytes() == line + b"# \xe4\r\nUser everybody\r\nHost *\r\n\tPort 7"
    assert hosts_file(config).read_text() == (
        f"{HEADER}\nHost web\n    HostName h\n    Port 1\n    User me\n\nHost db\n    HostName h\n"
    )
    assert (ask_ssh(config, "web")["user"], ask_ssh(config, "db")["user"]) == ("me", "everybody")


@pytest.mark.parametrize(
    ("line", "added"),
    [
        ("Include {}/*.lazycluster", False),
        ("Match all\nInclude {}/conf?g.*", False),
        ("Host a\nInclude {}/*.lazycluster", True),
    ],
)
def test_add_runtime_uses_include_that_is_there(cli: Cli, config: Path, line: str, added: bool) -> None:
    text = f"{line.format(config.parent)}\n"
    config.write_text(text)

    assert cli("add-runtime", "web", "h:2")[0] == 0
    assert config.read_text() == (f"{include_line(config)}\n{text}" if added else text)
    assert ask_ssh(config, "web")["port"] == "2"


def test_add_runtime_keeps_a_symbolic_link(cli: Cli, config: Path) -> None:
    target = config.parent / "dotfiles" / "ssh"
    target.parent.mkdir()
    target.write_text("Host *\n  Port 7\n")
    config.symlink_to("dotfiles/ssh")

    assert cli("add-runtime", "web", "h:2")[0] == 0
    assert config.is_symlink()
    assert target.read_text() == f"Include {config}.lazycluster\nHost *\n  Port 7\n"
    assert ask_ssh(config, "web")["port"] == "2"


def test_add_runtime_quotes_a_path_with_spaces(config: Path) -> None:
    path = config.parent / "my files" / "config"
    path.parent.mkdir()

    assert main(["add-runtime", "web", "h:2", "--config", str(path)]) == 0
    assert path.read_text() == f'Include "{path}.lazycluster"\n'
    assert ask_ssh(path, "web")["port"] == "2"


def test_add_runtime_names_line_for_read_only_file(cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("Host a\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write to anything
        status, out, err = cli("add-runtime", "web", "h:2")

        line = f"Include {config}.lazycluster"
        advice = f"Put this line at its top by hand, and try again: {line}"
        assert (status, out) == (1, "")
        assert err == f"lazycluster: {config} was not changed: it is read-only. {advice}\n"
        assert [file.name for file in config.parent.iterdir()] == ["config"]

        config.write_text(f"{line}\nHost a\n")
        assert cli("add-runtime", "web", "h:2")[0] == 0
    assert config.read_text() == f"{line}\nHost a\n"
    assert ask_ssh(config, "web")["port"] == "2"


def test_add_runtime_replaces_a_host_with_force_only(cli: Cli, config: Path) -> None:
    cli("add-runtime", "web", "h:1")
    cli("add-runtime", "db", "h")
    hosts = hosts_file(config)
    before = hosts.read_bytes()
    status, out, err = cli("add-runtime", "web", "h:2")

    assert (status, out) == (1, "")
    assert f"{hosts} was not changed: {hosts}, line 4, names web already. Choose another name, or use --force" in err
    assert hosts.read_bytes() == before

    assert cli("add-runtime", "web", "i:2", "--force") == (0, f"Replaced web in {hosts}.\n", "")
    assert hosts.read_text() == f"{HEADER}\nHost db\n    HostName h\n\nHost web\n    HostName i\n    Port 2\n"


def test_add_runtime_leaves_entries_of_the_user(cli: Cli, config: Path) -> None:
    included = config.with_name("more")
    included.write_text("# mine\nHost web b\n  Port 1\n")
    text = f'Include "{included}"\n'
    config.write_text(text)
    status, _, err = cli("add-runtime", "web", "h:2")

    assert status == 1
    assert f"{included}, line 2, names web already. Choose another name, or use --force: ssh then takes the new" in err
    assert config.read_text() == text

    assert cli("add-runtime", "web", "h:2", "--force")[0] == 0
    assert config.read_text() == f"{include_line(config)}\n{text}"
    assert (ask_ssh(config, "web")["port"], ask_ssh(config, "b")["port"]) == ("2", "1")


@pytest.mark.parametrize("option", ["Foo=bar", "ServerAliveInterval=soon", "ForwardAgent=yes no", 'User="x'])
def test_add_runtime_never_writes_what_ssh_refuses(cli: Cli, config: Path, option: str) -> None:
    config.write_text("Host a\n")
    status, out, err = cli("add-runtime", "web", "h", "--option", option)

    assert (status, out) == (1, "")
    assert f"{config} was not changed: ssh does not accept the new lines. Check the options given.\n" in err
    assert config.read_text() == "Host a\n"
    assert [file.name for file in config.parent.iterdir()] == ["config"]


def test_add_runtime_names_error_that_was_there_before(cli: Cli, config: Path) -> None:
    config.write_text("Host a\n  Foo bar\n")
    status, _, err = cli("add-runtime", "web", "h")

    assert status == 1
    assert "ssh does not accept it as it is now. Repair it first.\n" in err
    assert f"{config}: line 2: Bad configuration option: foo" in err
    assert [file.name for file in config.parent.iterdir()] == ["config"]


def test_add_runtime_is_undone_if_another_line_wins(cli: Cli, config: Path) -> None:
    text = f"# mine\nUser everybody\nPort=7\n{include_line(config)}\n"
    config.write_text(text)
    status, _, err = cli("add-runtime", "web", "me@h")

    assert status == 1
    advice = f"move the line `{include_line(config)}` to the top."
    assert f"User of web would be everybody and not me. ssh takes the first value that it finds: {advice}" in err
    assert config.read_text() == text
    assert [file.name for file in config.parent.iterdir()] == ["config"]
    assert cli("add-runtime", "web", "h")[0] == 0
    before = hosts_file(config).read_bytes()
    assert cli("add-runtime", "web", "h:8", "--force")[0] == 1
    assert hosts_file(config).read_bytes() == before
    assert cli("add-runtime", "db", "everybody@h")[0] == 0  # the same is no contradiction


def test_add_runtime_at_once_loses_no_host(config: Path) -> None:
    config.write_text("Host a\n")
    names = [f"h{number}" for number in range(6)]
    with ThreadPoolExecutor(len(names)) as pool:
        statuses = list(pool.map(lambda name: main(["add-runtime", name, "h", "--config", str(config)]), names))

    assert statuses == [0] * len(names)
    assert sorted(added_hosts(config)) == names
    assert config.read_text() == f"{include_line(config)}\nHost a\n"
    assert len(find_backups(config)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add-runtime", "w*", "h"), "must not contain '*'"),
        (("add-runtime", "a b", "h"), "must not contain spaces, got 'a b'"),
        (("add-runtime", "web", "h:x"), "port must be"),
        (("add-runtime", "web", "h", "--option", "Host=*"), "must not begin another block"),
        (("add-runtime", "web", "h", "--option", "HostName=i"), "HostName is given twice"),
        (("add-runtime", "web", "h", "--id-file", "/nonexistent/key"), "no such file: /nonexistent/key"),
        (("add-runtime", "web", "h", "--connect-timeout", "0"), "--connect-timeout"),
        (("delete-runtime", "*"), "must not contain '*'"),
    ],
)
def test_edit_commands_end_with_2_for_wrong_arguments(
    cli: Cli, config: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, out, err = cli(*arguments)

    assert (status, out) == (2, "")
    assert message in err
    assert not config.exists()


def test_add_runtime_refuses_path_that_include_misreads(config: Path) -> None:
    assert main(["add-runtime", "web", "h", "--config", f"{config}*"]) == 2
    assert list(config.parent.iterdir()) == []


def test_add_runtime_refuses_name_with_a_dash_first(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert main(["add-runtime", "--config", str(config), "--", "-w", "h"]) == 2
    assert "must not begin with a dash" in capsys.readouterr().err


def test_add_runtime_takes_public_key_for_private_one(cli: Cli, config: Path) -> None:
    key = config.with_name("key")
    public = config.with_name("key.pub")
    public.touch()
    assert cli("add-runtime", "web", "h", "--id-file", str(public))[0] == 0
    assert ask_ssh(config, "web")["identityfile"] == str(public)  # its private half is in an agent
    key.touch()
    assert cli("add-runtime", "web", "h", "--id-file", str(public), "--force")[0] == 0
    assert ask_ssh(config, "web")["identityfile"] == str(key)


# delete-runtime -------------------------------------------------------------------------------------------------------


def test_delete_runtime_removes_the_host(cli: Cli, config: Path) -> None:
    config.write_text("Host *\n  Port 7\n")
    cli("add-runtime", "web", "h:1")
    cli("add-runtime", "db", "h")
    before = config.read_bytes()

    assert cli("delete-runtime", "web") == (0, f"Removed web from {config}.lazycluster.\n", "")
    assert config.read_bytes() == before
    assert ask_ssh(config, "web")["port"] == "7"
    assert added_hosts(config) == ["db"]


def test_delete_runtime_refuses_unknown_names(cli: Cli, config: Path) -> None:
    error = f"lazycluster: {config}.lazycluster was not changed: no host web was added."
    assert cli("delete-runtime", "web") == (1, "", f"{error} Patterns such as `*` are no names.\n")
    config.write_text("# mine\nHost a web\n")
    assert cli("delete-runtime", "web") == (1, "", f"{error} Remove it by hand: {config}, line 2.\n")
    assert config.read_text() == "# mine\nHost a web\n"


def test_delete_runtime_reports_other_lines(cli: Cli, config: Path) -> None:
    config.write_text("Host web b\n")
    cli("add-runtime", "web", "h", "--force")
    status, out, _ = cli("delete-runtime", "web")

    assert (status, out) == (0, f"Removed web from {config}.lazycluster.\n{config}, line 2, still names web.\n")


def test_backup_is_not_included_by_a_pattern(config: Path) -> None:
    """An `Include conf.d/*` must not read the file as it was."""
    directory = config.with_name("conf.d")
    directory.mkdir()
    work = directory / "work"
    work.write_text("Host db\n  Port 7\n")
    config.write_text(f"Include {directory}/*\n")
    assert main(["add-runtime", "web", "h", "--config", str(work)]) == 0
    work.write_text("")

    assert len(list(directory.iterdir())) == 3
    assert ask_ssh(config, "db")["port"] == "22"


# The first contact ----------------------------------------------------------------------------------------------------


def address(server: LocalSshd) -> str:
    return f"{server.user}@127.0.0.1:{server.port}"


def write_trusting_config(config: Path, known_hosts: Path) -> None:
    """Write the options of a client for a private sshd into the block for all hosts."""
    config.write_text(
        f"Host *\n  UserKnownHostsFile {known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking ask\n  IdentitiesOnly yes\n  IdentityAgent none\n"
    )


def test_add_runtime_with_try_reaches_the_host(cli: Cli, config: Path, sshd: LocalSshd) -> None:
    write_trusting_config(config, sshd.known_hosts)
    words = ("add-runtime", "web", address(sshd), "--id-file", str(sshd.identity_file), "--force")
    assert "web can be reached.\n" not in cli(*words)[1]  # without a terminal there is no question
    status, out, err = cli(*words, "--try")

    assert (status, err) == (0, "")
    assert out.endswith("web can be reached.\n")


def test_add_runtime_keeps_host_that_is_unreachable(cli: Cli, config: Path, sshd: LocalSshd) -> None:
    write_trusting_config(config, config.with_name("known_hosts"))
    words = ("add-runtime", "web", address(sshd), "--id-file", str(sshd.identity_file))
    status, out, err = cli(*words, "--try")

    assert status == 1
    assert out.startswith("Added web in ")
    assert "web: the host key is not known" in err
    assert not config.with_name("known_hosts").exists()  # without a question nothing is trusted
    assert ask_ssh(config, "web")["port"] == str(sshd.port)


# At a terminal --------------------------------------------------------------------------------------------------------

PASSWORD = "  pa$$'w\"ö rd%h`~ "


@attrs.frozen
class Account:
    """A throw-away account with a password and no key, on a server that takes both."""

    user: str
    home: Path
    server: LocalSshd

    @property
    def address(self) -> str:
        return f"{self.user}@127.0.0.1:{self.server.port}"

    @property
    def keys(self) -> Path:
        return self.home / ".ssh" / "authorized_keys"


@pytest.fixture(scope="module")
def account(require_sshd: None) -> Iterator[Account]:
    if os.geteuid() != 0 or shutil.which("useradd") is None:
        pytest.skip("only root can make an account with a password")
    if shutil.which("ssh-copy-id") is None:
        pytest.skip("there is no ssh-copy-id")
    user = f"lzc{secrets.token_hex(4)}"
    home = Path(tempfile.mkdtemp(prefix="lct-home-", dir="/tmp"))
    subprocess.run(("useradd", "-M", "-d", str(home), "-s", "/bin/sh", user), check=True)
    try:
        shutil.chown(home, user)
        subprocess.run(("chpasswd",), input=f"{user}:{PASSWORD}\n".encode(), check=True)
        options = {"PasswordAuthentication": "yes", "UsePAM": "yes", "AuthorizedKeysFile": ".ssh/authorized_keys"}
        with LocalSshd(home=False, environment={"TMPDIR": "/tmp"}, options=options) as server:
            yield Account(user, home, server)
    finally:
        subprocess.run(("userdel", user), check=True, capture_output=True)
        shutil.rmtree(home)


@pytest.fixture
def home_environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a user who has a .ssh and no agent; ssh-copy-id needs a $HOME."""
    (tmp_path / ".ssh").mkdir(mode=0o700)
    environment = {**os.environ, "HOME": str(tmp_path), "TERM": "dumb", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("SSH_AUTH_SOCK", None)
    return environment


Terminal = Callable[..., pexpect.spawn]


@pytest.fixture
def terminal(home_environment: dict[str, str]) -> Iterator[Terminal]:
    """Run a command at a terminal of its own."""
    with contextlib.ExitStack() as stack:

        def run(*arguments: str) -> pexpect.spawn:
            words = ["-m", "lazycluster", *arguments]
            size = (40, 200)
            child = pexpect.spawn(
                sys.executable, words, env=home_environment, encoding="utf-8", timeout=30, dimensions=size
            )
            stack.callback(child.close)
            return child

        yield run


def wait_for_exit(child: pexpect.spawn) -> tuple[int | None, str]:
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus, child.before


def test_add_runtime_ctrl_c_at_prompt_begins_new_line(config: Path, terminal: Terminal) -> None:
    child = terminal("add-runtime", "web", "h", "--config", str(config))
    child.expect(r"Try the connection now\? \[Y/n\]: ")
    child.send("\x03")

    assert wait_for_exit(child) == (130, "^C\r\nlazycluster: interrupted; everything under way was ended\r\n")


def test_add_runtime_first_contact_at_a_terminal(
    config: Path, account: Account, terminal: Terminal, tmp_path: Path
) -> None:
    """All questions in one run: an unknown host key, a missing public key, a wrong password, and the right one."""
    write_trusting_config(config, tmp_path / "known_hosts")
    key = account.server.identity_file
    words = ("add-runtime", "web", account.address, "--id-file", str(key), "--config", str(config))
    child = terminal(*words)
    child.expect(r"Added web in .*\r\n.*backup.*\r\nTry the connection now\? \[Y/n\]: ")
    child.sendline("")
    child.expect(r"The authenticity of host .* can't be established\.\r\n.*fingerprint is SHA256:")
    child.expect(r"continue connecting \(yes/no/\[fingerprint\]\)\? ")
    child.sendline("yes")
    child.expect(r"web: authentication refused .*\r\nInstall your public key there \(ssh-copy-id\)\? \[Y/n\]: ")
    child.sendline("y")
    child.expect(rf"\({account.user}@127\.0\.0\.1\) Password: ")
    child.sendline("wrong")
    child.expect("Password: ")
    child.sendline(PASSWORD)
    status, output = wait_for_exit(child)

    assert (status, output.split("\r\n")[1:]) == (
        0,
        ["Your public key is installed on web.", "web can be reached.", ""],
    )
    assert account.keys.read_text() == Path(f"{key}.pub").read_text()
    assert PASSWORD not in output
    assert list((tmp_path / ".ssh").iterdir()) == []

    status, output = wait_for_exit(terminal(*words, "--force", "--copy-key"))  # the host key is trusted by now
    assert (status, output.split("\r\n")[1:]) == (
        0,
        ["Your public key was there already on web.", "web can be reached.", ""],
    )


def test_add_runtime_refused_host_key_is_not_stored(
    config: Path, sshd: LocalSshd, terminal: Terminal, tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    write_trusting_config(config, known)
    words = ("add-runtime", "web", address(sshd), "--id-file", str(sshd.identity_file), "--config", str(config))
    child = terminal(*words, "--try")
    child.expect(r"continue connecting \(yes/no/\[fingerprint\]\)\? ")
    child.sendline("no")
    status, output = wait_for_exit(child)

    assert status == 1
    assert "web: the host key is not known" in output
    assert not known.exists()


def test_add_runtime_ctrl_c_at_password_leaves_nothing(
    config: Path, account: Account, terminal: Terminal, tmp_path: Path
) -> None:
    write_trusting_config(config, account.server.known_hosts)
    account.keys.unlink(missing_ok=True)
    key = ("--id-file", str(account.server.identity_file))
    child = terminal("add-runtime", "web", account.address, *key, "--config", str(config), "--copy-key")
    child.expect("Password: ")
    child.send("\x03")
    status, _ = wait_for_exit(child)

    assert status == 130
    assert not account.keys.exists()
    assert list((tmp_path / ".ssh").iterdir()) == []  # ssh-copy-id has a directory of its own there
    assert "web" in hosts_file(config).read_text()


def test_add_runtime_without_terminal_asks_no_password(
    cli: Cli, config: Path, account: Account, home_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home_environment["HOME"])
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    write_trusting_config(config, account.server.known_hosts)
    account.keys.unlink(missing_ok=True)
    key = ("--id-file", str(account.server.identity_file))
    status, _, err = cli("add-runtime", "web", account.address, *key, "--copy-key")

    assert status == 1
    assert (
        f"web: the public key was not installed (no answer was given to '({account.user}@127.0.0.1) Password:')" in err
    )
    assert "Try `ssh-copy-id web` in a terminal." in err
