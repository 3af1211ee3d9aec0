"""Programs of a test bed: started with their output in a file, watched without polling.

Output goes to a file and not to a pipe, so that a program may outlive the one that started it
(`./run.sh demo --keep`) and so that a failure can name a log to read.
"""

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

IN_MODIFY, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x2, 0x80, 0x100, 0x200  # linux/inotify.h
HEARS_CTRL_C = ("env", "--default-signal=INT")  # lost where a script starts the tests with `&`
STOP_TIMEOUT_S = 10.0  # vpnd and openconnect say good-bye to their peers first
T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


class BedError(Exception):
    """A step of the bed failed; the message is one sentence that says which and what to read."""


@dataclass(frozen=True)
class Pid:
    """A process by number and start time, so that a number used again is never taken for it."""

    number: int
    started: int

    @classmethod
    def of(cls, number: int) -> "Pid":
        """Return the identity of a living process; ProcessLookupError when there is none."""
        started = _start_time(number)
        if started is None:
            raise ProcessLookupError(f"no process {number}")
        return cls(number, started)

    @classmethod
    def parse(cls, text: str) -> "Pid":
        """Return what `str` wrote."""
        number, started = text.split()
        return cls(int(number), int(started))

    def __str__(self) -> str:
        return f"{self.number} {self.started}"

    def is_alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        return _start_time(self.number) == self.started

    def send(self, signum: int) -> None:
        """Send a signal if this very process still runs."""
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(self.number)
            try:
                if self.is_alive():  # checked while the pidfd holds the number
                    signal.pidfd_send_signal(fd, signum)
            finally:
                os.close(fd)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of a process that need not be our child; True when it ended."""
        try:
            fd = os.pidfd_open(self.number)
        except ProcessLookupError:
            return True
        try:
            return not self.is_alive() or bool(_poll([fd], timeout_s))
        finally:
            os.close(fd)

    def end(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ask it to end (SIGTERM), then make it end (SIGKILL)."""
        self.send(signal.SIGTERM)
        if not self.wait(timeout_s):
            self.send(signal.SIGKILL)
            self.wait(timeout_s)


def _start_time(number: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)), counted behind the name, which may hold anything."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _poll(fds: Sequence[int], timeout_s: float) -> list[int]:
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return [fd for fd, _ in poller.poll(max(0, timeout_s * 1000))]


@contextlib.contextmanager
def _watch(path: Path) -> Iterator[int]:
    """Yield an inotify descriptor: readable when a file grew or a folder changed."""
    fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mask = IN_MODIFY | IN_MOVED_TO | IN_CREATE | IN_DELETE
        if fd < 0 or _libc.inotify_add_watch(fd, os.fsencode(path), mask) < 0:
            raise OSError(ctypes.get_errno(), f"inotify on {path}")
        yield fd
    finally:
        os.close(fd)


class Process:
    """A started program and its log."""

    def __init__(
        self, name: str, popen: subprocess.Popen[bytes], log: Path, *, begin: int
    ) -> None:
        self.name = name
        self.log = log
        self.begin = begin
        self._popen = popen
        self.pid = Pid(popen.pid, _start_time(popen.pid) or 0)

    @classmethod
    def start(
        cls,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str],
        stdin: bytes | None = None,
        pass_fds: Sequence[int] = (),
    ) -> "Process":
        """Start a program in a session of its own, with what it prints appended to the log.

        What stdin gets is written and closed at once; it must fit into a pipe (64 KiB).
        """
        with log.open("ab") as output:
            begin = output.tell()
            popen = subprocess.Popen(
                [*HEARS_CTRL_C, *argv],
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd="/",
                env=dict(env),
                start_new_session=True,
                pass_fds=pass_fds,
            )
        if popen.stdin is not None:
            with popen.stdin as pipe, contextlib.suppress(BrokenPipeError):
                pipe.write(stdin or b"")
        return cls(name, popen, log, begin=begin)

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    @property
    def exit_status(self) -> int | None:
        """The exit status (negative: the signal), None while it runs."""
        return self._popen.poll()

    def mark(self) -> int:
        """Return the place in the log where everything printed from now on begins."""
        return self.log.stat().st_size

    def wait_for(
        self, pattern: str, *, since: int | None = None, timeout_s: float = 30.0
    ) -> re.Match[str]:
        """Return the first match of a pattern (MULTILINE) in what it printed, since a mark.

        BedError when the time is over or the program ended without having printed it.
        """
        return self.wait_until(
            lambda: re.search(pattern, self.text(since), re.MULTILINE),
            watched=self.log,
            what=f"/{pattern}/",
            timeout_s=timeout_s,
        )

    def wait_for_path(self, path: Path, *, timeout_s: float = 30.0) -> None:
        """Wait until it has made a file or socket, see `wait_for`."""
        self.wait_until(
            lambda: path.exists() or None,
            watched=path.parent,
            what=str(path),
            timeout_s=timeout_s,
        )

    def wait_until(
        self, reached: Callable[[], T | None], *, watched: Path, what: str, timeout_s: float
    ) -> T:
        """Return the first value that is not None, asked again at each change of the watched."""
        deadline = time.monotonic() + timeout_s
        with _watch(watched) as changed, self._ended() as ended:
            while True:
                is_over = not self.is_alive  # asked first: its last words still count
                value = reached()
                if value is not None:
                    return value
                remaining = deadline - time.monotonic()
                if is_over or remaining <= 0:
                    end = f"ended ({self.exit_status})" if is_over else f"{timeout_s:.0f} s passed"
                    raise BedError(f"{self.name}: {end} without {what}: read {self.log}")
                _poll([changed, ended], remaining)
                with contextlib.suppress(BlockingIOError):
                    os.read(changed, 4096)

    def text(self, since: int | None = None) -> str:
        """Return what it printed, since a mark."""
        with self.log.open("rb") as log:
            log.seek(self.begin if since is None else since)
            return log.read().decode(errors="replace")

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for its end and return the exit status; BedError when it does not end."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            message = f"{self.name} still runs after {timeout_s:.0f} s: read {self.log}"
            raise BedError(message) from None

    def send(self, signum: int) -> None:
        """Send a signal if it still runs."""
        if self.is_alive:
            self._popen.send_signal(signum)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Ask it to end and return its exit status; SIGKILL when it does not."""
        self.send(signum)
        try:
            return self.wait()
        except BedError:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill it (SIGKILL) and wait."""
        self.send(signal.SIGKILL)
        self.wait()

    @contextlib.contextmanager
    def _ended(self) -> Iterator[int]:
        fd = os.pidfd_open(self._popen.pid) if self.is_alive else os.eventfd(1, os.EFD_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
