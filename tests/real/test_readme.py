"""The examples of the README run as they are printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lazycluster.testing import LocalSshd, write_config
from tests.reserved_ports import reserve_free_port
from tests.sshd_fixtures import MakeSshd

README = Path(__file__).parents[2] / "README.md"
_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
_SAID = re.compile(r"```text\n(?!\$)(.*?)```", re.DOTALL)
_SAME_EVERYWHERE = re.compile(r"[\[{].*|host-\d( 0)?|\d (active |inactive )?hosts?")
_HOST = re.compile(r'\b(Runtime|Connection)\("(host-\d)"')


def blocks() -> list[str]:
    return _BLOCK.findall(README.read_text(encoding="utf-8"))


def test_examples(make_sshd: MakeSshd, tmp_path: Path) -> None:
    """Only the way to the hosts is put in: a configuration file, which a user's own would be."""
    servers: list[LocalSshd] = [make_sshd(name=f"host-{number}") for number in (1, 2)]
    dead = "Host dead\n    HostName 127.0.0.1\n    Port 9\n"
    config = write_config(tmp_path / "ssh_config", *servers, extra=dead)
    program = "\n\n".join(block for block in blocks() if "# doctest: " not in block)
    program, replaced = _HOST.subn(rf'\1("\2", config_file={str(config)!r}, python={sys.executable!r}', program)
    program = program.replace(
        'RuntimeGroup(hosts=["host-1", "host-2"]',
        f'RuntimeGroup(hosts=["host-1", "host-2"], config_file={str(config)!r}, python={sys.executable!r}',
    )
    program = program.replace("RuntimeManager()", f"RuntimeManager({str(config)!r}, python={sys.executable!r})")
    program = re.sub(r"(Connection\([^)]*?), python='[^']*'", r"\1", program)
    program, ports = re.subn("local_port=40100", f"local_port={reserve_free_port()}", program)
    assert replaced >= 3
    assert ports == 1
    script = tmp_path / "readme.py"
    script.write_text(f"{program}\n\nruntime.close()\n", encoding="utf-8")
    ran = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    for expected in ("Linux\n\n42\n", "[6]\n", "hello\nworld from /", "raised on the host: division by zero", "real\n",
                     "\ndead  connection refused (connect to host 127.0.0.1 port 9: Connection refused)."):  # fmt: skip
        assert expected in ran.stdout
    said = [line for block in _SAID.findall(README.read_text(encoding="utf-8")) for line in block.splitlines()]
    same = [line for line in said if _SAME_EVERYWHERE.fullmatch(line)]
    assert len(same) >= 8
    assert [line for line in same if line not in ran.stdout.splitlines()] == []
    assert "2.0\n" in ran.stdout
    assert ran.stdout.count("True\n") >= 2
    assert all(not [pid for pid in server.processes() if pid != server.pid] for server in servers)


@pytest.mark.parametrize("block", [block for block in blocks() if "# doctest: pytest" in block])
def test_examples_for_tests(block: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(block, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV_CORE")}
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    ran = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_demo_shows_the_main_job_and_leaves_nothing() -> None:
    ran = subprocess.run([sys.executable, "-m", "lazycluster", "demo"], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for expected in ("node-1", "node-2", "node-3", "counting 4 words", "'anywhere': 8", "RUN ANYWHERE", "Memory",
                     "[0, 1, 4, 9] ... 998001",
                     "-> 200 <h1>served", "is free again", "processes on the hosts: 0"):  # fmt: skip
        assert expected in ran.stdout
    assert "\x1b" not in ran.stdout
