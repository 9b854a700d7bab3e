"""What the benchmarks share: what they run on, how they time a call, servers in processes of their own, a browser."""

import importlib.metadata
import os
import platform
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from router_data import PROJECT_ROOT, InputError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

READY_SECONDS = 180
CHROMIUM = Path("/usr/bin/chromium")


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe(*packages: str) -> str:
    """The machine, how busy it is, and the versions that matter, in one line; figures mean little without it."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{package} {importlib.metadata.version(package)}" for package in packages]
    return f"{processor()}, {cores()} cores{load}; {', '.join(versions)}"


def memory_mb(pid: int, field: str = "VmRSS") -> float:
    """Memory of a process in MB (10^6 bytes), as Linux counts it (VmHWM: its peak); 0 where it can't be told."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field + ":")), 0.0)


@contextmanager
def server(command: Sequence[str], health: str, environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """A server in a process of its own, started as its users start it; yields its port once `health` answers.

    Args:
        command: what starts it; `{port}` in an argument is replaced by a free port.
        health: a path that answers with status 200 when the server is ready.
        environment: its environment (default: this process's).

    Raises:
        InputError: it ended, or did not answer in time; its last line is named.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [argument.replace("{port}", str(port)) for argument in command]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=PROJECT_ROOT)
        try:
            until = time.monotonic() + READY_SECONDS
            while not answers(f"http://127.0.0.1:{port}{health}"):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    last = log.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
                    raise InputError(f"{' '.join(arguments[:2])} did not serve: {last or 'it printed nothing'}")
                time.sleep(0.2)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def chromium() -> "Iterator[Browser]":
    """A headless Chromium (Debian's) with nothing in its cache.

    Raises:
        InputError: there is none.
    """
    if not CHROMIUM.exists():
        raise InputError(f"no {CHROMIUM}; install it: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=quiet)
        yield browser
        browser.close()


def answers(url: str) -> bool:
    """Whether this address answers with status 200; a proxy of the environment is not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(url, timeout=5).status == 200
    except OSError:
        return False
