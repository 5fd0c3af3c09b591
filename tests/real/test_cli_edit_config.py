"""`add-runtime` and `delete-runtime` with the real ssh, which judges what was written, and with private sshds."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pexpect
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazycluster._cli import main
from lazycluster._ssh import config_hosts
from lazycluster._ssh.config import EffectiveConfig, parse_effective_config
from lazycluster._ssh.config_edit import (
    add_host,
    global_setting_line_number,
    host_line_numbers,
    remove_host,
    replace_host,
)
from lazycluster.testing import LocalSshd, _process_guard

Cli = Callable[..., tuple[int, str, str]]


def ask_ssh(config: Path, name: str) -> EffectiveConfig:
    ended = subprocess.run(
        ("ssh", "-G", "-F", config, "--", name), check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return parse_effective_config(ended.stdout)


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


# Whatever is in a file, ssh reads the rest of it as before ------------------------------------------------------------

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
SETTINGS = (("HostName", "h.example"), ("Port", "2222"), ("User", "me"), ("IdentityFile", "/mine"))
WANTED = {"hostname": "h.example", "port": "2222", "user": "me"}
many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def settle(config: Path, text: str, *names: str) -> list[EffectiveConfig]:
    config.write_bytes(text.encode())
    return [ask_ssh(config, name) for name in names]


def holds(config: Path, text: str, name: str) -> bool:
    """Tell whether what was asked for is what ssh takes, save for what the file sets for all hosts."""
    (found,) = settle(config, text, name)
    free = [keyword for keyword in WANTED if global_setting_line_number(text, keyword) is None]
    return "/mine" in found.identity_files and all(found.value(keyword) == WANTED[keyword] for keyword in free)


@many
@given(TEXTS)
def test_a_new_host_is_as_was_asked_for_and_all_others_are_as_before(config: Path, text: str) -> None:
    others = ("web", "a", "b", "x")
    before = settle(config, text, *others)
    added = add_host(text, "new", SETTINGS)

    assert settle(config, added, *others) == before
    assert holds(config, added, "new")
    assert settle(config, remove_host(added, "new"), "new", *others) == settle(config, text, "new", *others)


@many
@given(TEXTS)
def test_a_host_that_goes_or_is_replaced_takes_nothing_with_it(config: Path, text: str) -> None:
    if host_line_numbers(text, "web"):
        others = ("a", "b", "x", "new")
        before = settle(config, text, *others)

        assert settle(config, remove_host(text, "web"), *others) == before
        assert settle(config, replace_host(text, "web", SETTINGS), *others) == before
        assert holds(config, replace_host(text, "web", SETTINGS), "web")


# add-runtime ----------------------------------------------------------------------------------------------------------


def test_a_first_host_in_a_file_of_its_own(cli: Cli, config: Path) -> None:
    key = config.with_name('my "k" \\ 100%')
    key.touch()
    options = ("--option", "ProxyJump=bastion", "--option", "LocalForward=8080 localhost:80")
    status, out, err = cli("add-runtime", "web", "me@[::1]:2222", "--id-file", str(key), *options)

    assert (status, out, err) == (0, f"Added web in {config}.\n", "")
    found = ask_ssh(config, "web")
    assert (found.hostname, found.user, found.port, found.proxy_jump) == ("::1", "me", 2222, "bastion")
    assert found.identity_files == (str(key).replace("%", "%%"),)  # as ssh is to expand it
    assert found.forwardings == (("localforward", "8080 [localhost]:80"),)


def test_the_users_own_configuration_is_the_one_of_the_password_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert config_hosts.default_config() == Path(pwd.getpwuid(os.getuid()).pw_dir, ".ssh", "config")
    monkeypatch.setattr(config_hosts, "home", lambda: tmp_path)
    monkeypatch.setenv("HOME", "/nonexistent")
    assert main(["add-runtime", "web", "h"]) == 0

    assert (tmp_path / ".ssh/config").read_text() == "Host web\n  HostName h\n"
    assert (tmp_path / ".ssh").stat().st_mode & 0o777 == 0o700
    assert main(["delete-runtime", "web"]) == 0
    assert (tmp_path / ".ssh/config").read_text() == ""


def test_what_is_there_is_not_overwritten_without_force(cli: Cli, config: Path) -> None:
    config.write_text("# mine\nHost web b\n  Port 1\n")
    status, out, err = cli("add-runtime", "web", "h")

    assert (status, out) == (1, "")
    assert err == f"lazycluster: {config} was not changed: line 2 names web already. Use --force to replace it.\n"
    assert config.read_text() == "# mine\nHost web b\n  Port 1\n"

    status, out, _ = cli("add-runtime", "web", "h", "--force")
    assert status == 0
    assert cli("add-runtime", "web", "h", "--force") == (0, f"{config} says that of web already.\n", "")
    assert out.startswith(f"Replaced web in {config}.\nThe file as it was: {config.parent}/.config.lazycluster-backup-")
    assert Path(out.split()[-1]).read_text() == "# mine\nHost web b\n  Port 1\n"
    assert config.read_text() == "# mine\nHost b\n  Port 1\n\nHost web\n  HostName h\n"


def test_what_an_included_file_names_is_not_overwritten_either(cli: Cli, config: Path) -> None:
    included = config.with_name("more")
    included.write_text("Host web\n  Port 1\n")
    config.write_text(f'Include "{included}"\n')
    status, _, err = cli("add-runtime", "web", "h")

    assert status == 1
    assert f"it includes {included}, which names web already. Choose another name, or change it there: add" in err

    status, _, err = cli("add-runtime", "web", "h:2", "--force")  # the included file comes first
    assert status == 1
    assert "Port of web would be 1 and not 2, because something before it wins" in err
    assert config.read_text() == f'Include "{included}"\n'
    assert cli("add-runtime", "web", "h", "--force")[0] == 0


@pytest.mark.parametrize("option", ["Foo=bar", "ServerAliveInterval=soon", "ForwardAgent=yes no", 'User="x'])
def test_an_option_that_ssh_does_not_know_is_never_written(cli: Cli, config: Path, option: str) -> None:
    config.write_text("Host a\n")
    status, out, err = cli("add-runtime", "web", "h", "--option", option)

    assert (status, out) == (1, "")
    assert f"{config} was not changed: " in err
    assert ".lazycluster-new-" not in err
    assert config.read_text() == "Host a\n"
    assert [file.name for file in config.parent.iterdir()] == ["config"]


def test_a_configuration_that_is_broken_already_is_told_as_such(cli: Cli, config: Path) -> None:
    config.write_text("Host a\n  Foo bar\n")
    for arguments in (("add-runtime", "web", "h"), ("delete-runtime", "a")):
        status, _, err = cli(*arguments)
        if arguments[0] == "add-runtime":
            assert status == 1
            assert "ssh does not accept it as it is now. Mend that first.\n" in err
            assert f"{config}: line 2: Bad configuration option: foo" in err
        else:
            assert status == 0  # what was wrong is gone


def test_what_would_not_hold_is_not_written(cli: Cli, config: Path) -> None:
    config.write_text("# mine\nUser everybody\nPort=7\n")
    status, _, err = cli("add-runtime", "web", "me@h")

    assert status == 1
    assert (
        "User of web would be everybody and not me, because line 2 sets it for all hosts. ssh takes the first value "
        "that it finds: move that line to the end, under a line `Host *`." in err
    )
    assert config.read_text() == "# mine\nUser everybody\nPort=7\n"
    assert cli("add-runtime", "web", "h")[0] == 0
    assert cli("add-runtime", "db", "everybody@h")[0] == 0  # the same is no contradiction


def test_a_match_that_hangs_does_not_hang_us(cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazycluster._ssh.config_file._CONFIG_CHECK_TIMEOUT_SECONDS", 0.5)
    pid = config.with_name("pid")
    config.write_text(f'Host a\nMatch exec "echo $$ >{pid}; exec sleep 30"\n  Port 1\n')
    begun = time.monotonic()
    status, _, err = cli("add-runtime", "web", "h")

    assert status == 1
    assert "`ssh -G web` did not end within 0.5 s" in err
    assert time.monotonic() - begun < 10
    assert _process_guard.wait_until(lambda: int(pid.read_text()) not in _process_guard.parent_by_pid(), timeout=5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add-runtime", "w*", "h"), "must not hold '*'"),
        (("add-runtime", "a b", "h"), "must not hold spaces: 'a b'"),
        (("add-runtime", "web", "h:x"), "the port must be"),
        (("add-runtime", "web", "h", "--option", "Host=*"), "begins a block of its own"),
        (("add-runtime", "web", "h", "--option", "HostName=i"), "HostName is given twice"),
        (("add-runtime", "web", "h", "--id-file", "/nonexistent/key"), "there is no file /nonexistent/key"),
        (("add-runtime", "web", "h", "--connect-timeout", "0"), "--connect-timeout"),
        (("delete-runtime", "*"), "must not hold '*'"),
    ],
)
def test_a_wrong_call_ends_with_2(cli: Cli, config: Path, arguments: tuple[str, ...], said: str) -> None:
    status, out, err = cli(*arguments)

    assert (status, out) == (2, "")
    assert said in err
    assert not config.exists()


def test_a_name_with_a_dash_in_front_is_a_wrong_call(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert main(["add-runtime", "--config", str(config), "--", "-w", "h"]) == 2
    assert "must not begin with a dash" in capsys.readouterr().err


def test_a_public_half_stands_for_its_private_one(cli: Cli, config: Path) -> None:
    key = config.with_name("key")
    public = config.with_name("key.pub")
    public.touch()
    assert cli("add-runtime", "web", "h", "--id-file", str(public))[0] == 0
    assert ask_ssh(config, "web").identity_files == (str(public),)  # of an agent, then
    key.touch()
    assert cli("add-runtime", "web", "h", "--id-file", str(public), "--force")[0] == 0
    assert ask_ssh(config, "web").identity_files == (str(key),)


# delete-runtime -------------------------------------------------------------------------------------------------------


def test_delete(cli: Cli, config: Path) -> None:
    config.write_bytes(b"# \xe4\r\nHost web\r\n\tPort 1\r\n\r\nMatch all\r\n\tUser u")
    status, out, _ = cli("delete-runtime", "web")

    assert status == 0
    assert out.startswith(f"Removed web from {config}.\nThe file as it was: ")
    assert config.read_bytes() == b"# \xe4\r\nMatch all\r\n\tUser u"


def test_who_is_not_there_cannot_be_deleted(cli: Cli, config: Path) -> None:
    assert cli("delete-runtime", "web") == (
        1,
        "",
        f"lazycluster: {config} was not changed: there is no such file.\n",
    )
    config.write_text("Host w*\n")
    assert cli("delete-runtime", "web") == (
        1,
        "",
        f"lazycluster: {config} was not changed: it names no host web. Patterns such as `*` are no names.\n",
    )


def test_who_stands_in_an_included_file_is_deleted_there(cli: Cli, config: Path) -> None:
    included = config.with_name("more")
    included.write_text("Host web\n  Port 1\n")
    config.write_text(f"Host web b\nHost *\nInclude {included}\n")

    status, out, _ = cli("delete-runtime", "web")
    assert status == 0
    assert out.endswith(f"\n{included}, which it includes, still names web.\n")
    status, _, err = cli("delete-runtime", "web")
    assert status == 1
    assert f"includes {included}. Use `lazycluster delete-runtime web --config {included}`." in err
    assert main(["delete-runtime", "web", "--config", str(included)]) == 0
    assert config.read_text() == f"Host b\nHost *\nInclude {included}\n"
    assert included.read_text() == ""


def test_what_is_kept_is_not_included(cli: Cli, config: Path) -> None:
    """An `Include conf.d/*` must not read the file as it was: the host would still be there."""
    directory = config.with_name("conf.d")
    directory.mkdir()
    (directory / "work").write_text("Host web\n  Port 7\n")
    config.write_text(f"Include {directory}/*\n")
    assert ask_ssh(config, "web").port == 7
    assert main(["delete-runtime", "web", "--config", str(directory / "work")]) == 0

    assert len(list(directory.iterdir())) == 2
    assert ask_ssh(config, "web").port == 22


# The first contact ----------------------------------------------------------------------------------------------------


def address(server: LocalSshd) -> str:
    return f"{server.user}@127.0.0.1:{server.port}"


def trusting(config: Path, known_hosts: Path) -> None:
    """Write what a private sshd needs of a client, into the block for all hosts."""
    config.write_text(
        f"Host *\n  UserKnownHostsFile {known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking ask\n  IdentitiesOnly yes\n  IdentityAgent none\n"
    )


def test_try(cli: Cli, config: Path, sshd: LocalSshd) -> None:
    trusting(config, sshd.known_hosts)
    words = ("add-runtime", "web", address(sshd), "--id-file", str(sshd.identity_file), "--force")
    assert "web can be reached.\n" not in cli(*words)[1]  # nobody at a terminal, nobody to ask
    status, out, err = cli(*words, "--try")

    assert (status, err) == (0, "")
    assert out.endswith("web can be reached.\n")


def test_a_host_that_cannot_be_reached_is_added_all_the_same(cli: Cli, config: Path, sshd: LocalSshd) -> None:
    trusting(config, config.with_name("known_hosts"))
    words = ("add-runtime", "web", address(sshd), "--id-file", str(sshd.identity_file))
    status, out, err = cli(*words, "--try")

    assert status == 1
    assert out.startswith("Added web in ")
    assert "web: the host key is not known" in err
    assert not config.with_name("known_hosts").exists()  # nobody was asked, so nothing was trusted
    assert ask_ssh(config, "web").port == sshd.port


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
def at_home(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a user who has a .ssh and no agent; ssh-copy-id needs a $HOME."""
    (tmp_path / ".ssh").mkdir(mode=0o700)
    environment = {**os.environ, "HOME": str(tmp_path), "TERM": "dumb", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("SSH_AUTH_SOCK", None)
    return environment


Terminal = Callable[..., pexpect.spawn]


@pytest.fixture
def terminal(at_home: dict[str, str]) -> Iterator[Terminal]:
    """Run a command at a terminal of its own."""
    with contextlib.ExitStack() as stack:

        def run(*arguments: str) -> pexpect.spawn:
            words = ["-m", "lazycluster", *arguments]
            size = (40, 200)
            child = pexpect.spawn(sys.executable, words, env=at_home, encoding="utf-8", timeout=30, dimensions=size)
            stack.callback(child.close)
            return child

        yield run


def ended(child: pexpect.spawn) -> tuple[int | None, str]:
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus, child.before


def test_ctrl_c_at_a_prompt_begins_a_new_line(config: Path, terminal: Terminal) -> None:
    child = terminal("add-runtime", "web", "h", "--config", str(config))
    child.expect(r"Try the connection now\? \[Y/n\]: ")
    child.send("\x03")

    assert ended(child) == (130, "^C\r\nlazycluster: interrupted; what was under way was ended\r\n")


def test_first_contact_at_a_terminal(config: Path, account: Account, terminal: Terminal, tmp_path: Path) -> None:
    """Everything that a person meets: a host key, no key there yet, a wrong password, and the right one."""
    trusting(config, tmp_path / "known_hosts")
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
    status, said = ended(child)

    assert (status, said.split("\r\n")[1:]) == (0, ["Your public key is installed on web.", "web can be reached.", ""])
    assert account.keys.read_text() == Path(f"{key}.pub").read_text()
    assert PASSWORD not in said
    assert list((tmp_path / ".ssh").iterdir()) == []

    status, said = ended(terminal(*words, "--force", "--copy-key"))  # the answer is known already
    assert (status, said.split("\r\n")[1:]) == (
        0,
        ["Your public key was there already on web.", "web can be reached.", ""],
    )


def test_a_host_key_that_the_user_does_not_trust(
    config: Path, sshd: LocalSshd, terminal: Terminal, tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    trusting(config, known)
    words = ("add-runtime", "web", address(sshd), "--id-file", str(sshd.identity_file), "--config", str(config))
    child = terminal(*words, "--try")
    child.expect(r"continue connecting \(yes/no/\[fingerprint\]\)\? ")
    child.sendline("no")
    status, said = ended(child)

    assert status == 1
    assert "web: the host key is not known" in said
    assert not known.exists()


def test_ctrl_c_at_the_password_leaves_nothing_behind(
    config: Path, account: Account, terminal: Terminal, tmp_path: Path
) -> None:
    trusting(config, account.server.known_hosts)
    account.keys.unlink(missing_ok=True)
    key = ("--id-file", str(account.server.identity_file))
    child = terminal("add-runtime", "web", account.address, *key, "--config", str(config), "--copy-key")
    child.expect("Password: ")
    child.send("\x03")
    status, _ = ended(child)

    assert status == 130
    assert not account.keys.exists()
    assert list((tmp_path / ".ssh").iterdir()) == []  # ssh-copy-id has a directory of its own there
    assert "web" in config.read_text()


def test_without_a_terminal_nobody_is_asked_for_a_password(
    cli: Cli, config: Path, account: Account, at_home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", at_home["HOME"])
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    trusting(config, account.server.known_hosts)
    account.keys.unlink(missing_ok=True)
    key = ("--id-file", str(account.server.identity_file))
    status, _, err = cli("add-runtime", "web", account.address, *key, "--copy-key")

    assert status == 1
    assert f"web: the public key was not installed (nobody answered '({account.user}@127.0.0.1) Password:')" in err
    assert "Try `ssh-copy-id web` in a terminal." in err
