"""The examples of the README and of docs/ run as they are printed, and print what the page says."""

from __future__ import annotations

import fnmatch
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from lazycluster.testing import LocalSshd, write_config
from tests.reserved_ports import reserve_free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DEAD_HOST = "Host dead\n    HostName 127.0.0.1\n    Port 9\n"
SEPARATOR = "---- the next example ----"
_BLOCK = re.compile(r"^```(python|text|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
_MEASURED = re.compile(r"\d+(\.\d+)*( [KMGT]iB)?")


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read_blocks(page: Path) -> list[tuple[str, str]]:
    """Return the fenced blocks of a page: language and text."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


def is_program(block: tuple[str, str]) -> bool:
    return block[0] == "python" and "# doctest: " not in block[1]


PROGRAM_PAGES = [page for page in PAGES if any(map(is_program, read_blocks(page)))]
CONSOLE_PAGES = [page for page in PAGES if any(language == "console" for language, _ in read_blocks(page))]
PYTEST_BLOCKS = [
    pytest.param(text, id=f"{page_id(page)}-{index}")
    for page in PAGES
    for index, (_, text) in enumerate(read_blocks(page))
    if "# doctest: pytest" in text
]


def normalize(line: str) -> str:
    """Replace measured values in the row of a table, which has two spaces somewhere; other lines are exact."""
    if "  " not in line and not line.startswith("--"):
        return line.rstrip()
    line = line.replace(platform.freedesktop_os_release()["PRETTY_NAME"], "Debian GNU/Linux 12 (bookworm)")
    return re.sub(r"-+", "-", re.sub(r" +", " ", _MEASURED.sub("0", line))).rstrip()


def assert_prints(output: str, expected: str) -> None:
    """Assert that an output has the expected lines, in any order; `...` stands for any text, or for other lines."""
    lines = list(map(normalize, output.splitlines()))
    for line in expected.splitlines():
        pattern = re.sub(r"([\[?])", r"[\1]", normalize(line).replace("*", "[*]")).replace("...", "*")
        assert any(fnmatch.fnmatchcase(found, pattern) for found in lines), f"no line {line!r} in:\n{output}"


@attrs.frozen
class Hosts:
    """Two hosts under the names of the examples, and the variables with which `ssh host-1` reaches them."""

    servers: list[LocalSshd]
    config: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def hosts(require_sshd: None, run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Start the hosts. A program `ssh` in front of the real one reads their configuration in place of the user's."""
    programs, host_programs = tmp_path_factory.mktemp("bin"), tmp_path_factory.mktemp("host-bin")
    (host_programs / "python3").symlink_to(sys.executable)
    host_environment = {"TMPDIR": str(run_directory), "PATH": f"{host_programs}:{os.environ['PATH']}"}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(LocalSshd(name=f"host-{number}", environment=host_environment)) for number in (1, 2)
        ]
        config = write_config(tmp_path_factory.mktemp("ssh") / "config", *servers, extra=DEAD_HOST)
        aliases = re.sub(r"^Host host-", "Host web-", config.read_text(), flags=re.MULTILINE)
        web_config = config.with_name("web-config")
        web_config.write_text(aliases)
        for name in ("ssh", "scp"):
            real = shutil.which(name)
            (programs / name).write_text(f'#!/bin/sh\nexec {real} -F {shlex.quote(str(config))} "$@"\n')
            (programs / name).chmod(0o755)
        yield Hosts(servers, web_config, {"PATH": f"{programs}:{os.environ['PATH']}"})


@pytest.mark.parametrize("page", PROGRAM_PAGES, ids=page_id)
def test_documents_examples_print_what_is_shown(page: Path, hosts: Hosts, tmp_path: Path) -> None:
    program, expected = [], []
    for language, text in read_blocks(page):
        if is_program((language, text)):
            program.append(text)
            expected.append("")
        elif language == "text" and program and not text.startswith("$"):
            expected[-1] += text
    source = f"\nprint({SEPARATOR!r})\n".join(program)
    manager_config = str(hosts.config.with_name("config"))
    source = source.replace("RuntimeManager()", f"RuntimeManager({manager_config!r})")
    source = source.replace("local_port=40100", f"local_port={reserve_free_port()}")
    script = tmp_path / "examples.py"
    script.write_text(source, encoding="utf-8")
    environment = {**os.environ, **hosts.environment}
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for output, shown in zip(ended.stdout.split(f"{SEPARATOR}\n"), expected, strict=True):
        assert_prints(output, shown)
    assert all(server.processes() == (server.pid,) for server in hosts.servers)


@pytest.mark.parametrize("page", CONSOLE_PAGES, ids=page_id)
def test_documents_console_prints_what_is_shown(page: Path, hosts: Hosts, short_tmpdir: Path) -> None:
    """Each command runs with `--config`, in a directory whose path is short enough to be printed whole."""
    (short_tmpdir / "site").mkdir()
    (short_tmpdir / "numbers.txt").touch()
    home_config = short_tmpdir / ".ssh/config"
    home_config.parent.mkdir()
    home_config.write_text(hosts.config.read_text())
    for server in hosts.servers:
        (server.home / "results").mkdir(exist_ok=True)
    for _, text in filter(lambda block: block[0] == "console", read_blocks(page)):
        for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
            words = shlex.split(command, comments=True)
            if words[0] == "cat":
                (short_tmpdir / words[1]).write_text(shown)
                continue
            assert words[0] == "lazycluster"
            ended = subprocess.run(
                [sys.executable, "-m", *words[:2], "--config", str(home_config), *words[2:]],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=short_tmpdir,
            )  # fmt: skip
            assert ended.returncode in {0, 1}, f"{command}: {ended.stdout}"
            output = ended.stdout.replace(str(short_tmpdir), "/home/me")
            assert_prints(output, re.sub(r"-backup-\w+", "-backup-...", shown))


@pytest.mark.parametrize("block", PYTEST_BLOCKS)
def test_documents_pytest_examples_pass(block: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(block, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV_CORE")}
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    ended = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_documents_links_lead_to_files(page: Path) -> None:
    missing = [link for link in _LINK.findall(page.read_text("utf-8")) if not (page.parent / link).exists()]

    assert missing == []


def test_readme_fits_on_a_page() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_demo_shows_the_main_job_and_leaves_nothing() -> None:
    ended = subprocess.run([sys.executable, "-m", "lazycluster", "demo"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for expected in ("node-1", "node-2", "node-3", "counting 4 words", "'anywhere': 8", "RUN ANYWHERE", "Memory",
                     "[0, 1, 4, 9] ... 998001",
                     "-> 200 <h1>served", "is free again", "processes on the hosts: 0"):  # fmt: skip
        assert expected in ended.stdout
    assert "\x1b" not in ended.stdout
