"""The main job, shown on three private sshds on this machine that stand for three hosts."""

from __future__ import annotations

import contextlib
import functools
import http.server
import platform
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lazycluster._display import Printer
from lazycluster.groups import RuntimeGroup
from lazycluster.runtimes import Runtime
from lazycluster.tasks import RuntimeTask
from lazycluster.testing import LocalSshd, write_config
from lazycluster.testing._process_guard import wait_until

_DEMO_HOSTS = ("node-1", "node-2", "node-3")
_PAGE_HTML = "<h1>served on the host, read here</h1>\n"


def run_demo() -> int:
    """Show everything; return 0 if all went as it should."""
    started = time.monotonic()
    out = Printer()
    before = _temporary_directories()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lazycluster-demo-")))
        servers = [stack.enter_context(LocalSshd(name=name)) for name in _DEMO_HOSTS]
        config = write_config(directory / "ssh_config", *servers)
        out.print_title(
            f"Three private sshds listen on loopback: {', '.join(f'{s.host} (port {s.port})' for s in servers)}"
        )
        with RuntimeGroup(hosts=_DEMO_HOSTS, config_file=config, python=sys.executable) as group:
            runtimes = group.runtimes
            _show_tasks(out, runtimes, directory)
            _show_group(out, group)
            out.print_title("The machine of a host: runtime.print_info()")
            runtimes[0].print_info()
            _show_tunnel(out, runtimes[0])
        out.print_title("The runtimes are closed. What is left behind?")
        # sshd needs a moment to see that a connection has ended.
        wait_until(lambda: not _remaining_processes(servers), timeout=5.0)
        remaining, connections = _remaining_processes(servers), sum(server.connections() for server in servers)
    files = _temporary_directories() - before
    out.print_line(
        f"processes on the hosts: {len(remaining)}, connections: {connections}, temporary directories: {len(files)}"
    )
    clean = not remaining and not connections and not files
    out.print_line("nothing" if clean else f"left: {remaining} {sorted(map(str, files))}", success=clean)
    out.print_line(f"{time.monotonic() - started:.1f} s in all")
    return 0 if clean else 1


def _show_tasks(out: Printer, runtimes: list[Runtime], directory: Path) -> None:
    """Run one task with all four kinds of step on each host at once."""

    def word_lengths(path: str) -> dict[str, int]:  # runs on the hosts
        words = Path(path).read_text(encoding="utf-8").split()
        print(f"counting {len(words)} words with Python {platform.python_version()}")  # noqa: T201
        return {word: len(word) for word in words}

    words = directory / "words.txt"
    words.write_text("run anywhere leave nothing\n", encoding="utf-8")
    task = (
        RuntimeTask("count-words")
        .send_file(words)
        .run_command("wc -w words.txt && tr a-z A-Z < words.txt > upper.txt")
        .run_function(word_lengths, "words.txt")
    )
    tasks = []
    for runtime in runtimes:
        copy = task.copy().get_file("upper.txt", directory / f"upper-{runtime.host}.txt")
        tasks.append(runtime.execute_task(copy))
    for runtime, done in zip(runtimes, tasks, strict=True):
        done.join()
        out.print_title(f"{runtime.host}: task.print_log(), task.function_returns, the fetched file")
        done.print_log()
        out.print_line(f"returned: {list(done.function_returns)}")
        out.print_line(f"fetched:  {(directory / f'upper-{runtime.host}.txt').read_text(encoding='utf-8').strip()}")


def _show_group(out: Printer, group: RuntimeGroup) -> None:
    """Run one command on all hosts, and spread items over them."""
    command = 'echo "process $$"'
    out.print_title(f"All hosts at once: group.run({command!r})")
    for host, result in group.run(command).items():
        out.print_line(f"{host}: {result.stdout.strip()}")
    out.print_title("Items spread over the hosts: group.map(square, range(1000))")
    started = time.monotonic()
    squares = list(group.map(lambda number: number * number, range(1000)))
    out.print_line(f"{squares[:4]} ... {squares[-1]}, in {time.monotonic() - started:.2f} s")


def _show_tunnel(out: Printer, runtime: Runtime) -> None:
    """Fetch a page from a server that listens on the host's side only, through a tunnel."""
    with _serve_page() as (remote_port, local_port):
        out.print_title(f"A tunnel: expose_port_from_runtime({remote_port}, {local_port})")
        key = runtime.expose_port_from_runtime(remote_port, local_port)
        with urllib.request.urlopen(f"http://localhost:{local_port}/", timeout=10) as answer:
            out.print_line(f"GET http://localhost:{local_port}/ -> {answer.status} {answer.read().decode().strip()}")
        runtime.stop_process(key)
        out.print_line(f"stop_process({key!r}): port {local_port} is free again")


@contextlib.contextmanager
def _serve_page() -> Iterator[tuple[int, int]]:
    """Serve a page on the host's side; yield its port, and a free local port for the tunnel."""
    with tempfile.TemporaryDirectory(prefix="lazycluster-demo-") as root:
        Path(root, "index.html").write_text(_PAGE_HTML, encoding="utf-8")
        handler: Callable[..., _QuietHandler] = functools.partial(_QuietHandler, directory=root)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as reserved:
                free = reserved.server_port
            yield server.server_port, free
            server.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


def _remaining_processes(servers: Sequence[LocalSshd]) -> list[int]:
    return [process for server in servers for process in server.processes() if process != server.pid]


def _temporary_directories() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("lazycluster-*"))
