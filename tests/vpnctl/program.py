"""Running vpnctl as its user does, against a daemon in a thread."""

import asyncio
import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ipc.caller import served
from tests.ipc.memory_backend import MemoryBackend
from vpnctl.main import main

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Daemon:
    """A daemon that answers on `run_dir` from `backend`."""

    run_dir: Path
    backend: MemoryBackend

    def vpnctl(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return vpnctl("--run-dir", str(self.run_dir), *arguments, stdin=stdin)


def vpnctl(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the program in this process, its input and outputs no terminal."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
        io.TextIOWrapper(io.BytesIO(stdin.encode())) as given,
    ):
        patch.setattr(sys, "stdin", given)
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = int(stop.code or 0)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


@contextmanager
def serve_in_thread(run_dir: Path, backend: MemoryBackend) -> Iterator[Daemon]:
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def main() -> None:
        async with served(run_dir / "vpnd.sock", backend):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), name="daemon")
    thread.start()
    try:
        assert ready.wait(10)
        yield Daemon(run_dir, backend)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
