"""What we tell systemd, and what it keeps for us (sd_notify(3), sd_listen_fds(3)).

Nothing happens without systemd.  What it keeps are descriptors, each under a name: they outlive
this process, also when it is killed, and come back at the next start.  A stop of the service, or
a failure for good, closes them.
"""

import asyncio
import os
import socket
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl
from functools import cache

import sdnotify

FIRST_FD = 3  # SD_LISTEN_FDS_START
MAX_SECRET = 1024 * 1024  # bytes; of ours they have some thousand
JOB_TIMEOUT = 2.0  # seconds for systemd to say what it is doing with us
BARRIER_TIMEOUT = 5.0  # seconds for systemd to read what we sent before
ALL_SEALS = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE


def ready(status: str) -> None:
    """Start-up, or a reload, is over; `status` is what `systemctl status` shows."""
    _notify("READY=1", f"STATUS={_line(status)}")


def status(text: str) -> None:
    """Say how the service is, in one line, for `systemctl status`."""
    _notify(f"STATUS={_line(text)}")


def reloading() -> None:
    """The configuration is being read again; `ready` follows."""
    _notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    _notify("STOPPING=1", "STATUS=closing tunnels")


async def watch(answer: Callable[[], Awaitable[None]]) -> None:
    """Feed the watchdog, if there is one, each time `answer` returns; runs until cancelled.

    `answer` returns when everybody has answered: who does not starves it.
    """
    interval = _watchdog_interval()
    if not interval:
        await asyncio.Event().wait()
    while True:
        await answer()
        _notify("WATCHDOG=1")
        await asyncio.sleep(interval)


def _watchdog_interval() -> float:
    """Return how often to feed the watchdog, in seconds: twice in its time.  0 without one."""
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    with suppress(ValueError):
        return int(os.environ.get("WATCHDOG_USEC", "")) / 2e6 if pid == str(os.getpid()) else 0.0
    return 0.0


async def stops_for_good() -> bool:
    """Return whether nobody is about to start this service again.

    False also where that cannot be known: who comes back by mistake does no harm.  The unit names
    itself in PYVPN_UNIT.
    """
    if not os.environ.get("NOTIFY_SOCKET"):
        return True
    unit = os.environ.get("PYVPN_UNIT", "")
    try:
        async with asyncio.timeout(JOB_TIMEOUT):
            asking = await asyncio.create_subprocess_exec(
                *("systemctl", "list-jobs", "--plain", "--no-legend", "--", unit),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            said, _ = await asking.communicate()
    except (OSError, TimeoutError):
        return False
    # JOB UNIT TYPE STATE; the type of a restart becomes "start" only once we have ended
    jobs = [line.split() for line in said.decode(errors="replace").splitlines()]
    return [job[2] for job in jobs if len(job) == 4 and job[1] == unit] == ["stop"]


class Kept:
    """Descriptors that systemd keeps for us."""

    def __init__(self, found: Iterable[tuple[str, int]] = ()) -> None:
        self._found: dict[str, list[int]] = defaultdict(list)
        self._names: set[str] = set()
        self._unsettled = False  # something was dropped, and systemd may not have read that yet
        for name, fd in found:
            self._found[name].append(fd)
            self._names.add(name)

    @classmethod
    def of_this_start(cls) -> "Kept":
        """Return what came with the start of this process; the environment forgets it."""
        names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
        count, pid = os.environ.pop("LISTEN_FDS", "0"), os.environ.pop("LISTEN_PID", "")
        if pid != str(os.getpid()) or not count.isdigit():
            return cls()
        fds = range(FIRST_FD, FIRST_FD + int(count))
        for fd in fds:
            os.set_inheritable(fd, False)
        return cls(zip(names, fds, strict=len(names) == len(fds)))

    @property
    def names(self) -> list[str]:
        """What was found and has not been taken yet."""
        return sorted(self._found)

    def has(self, name: str) -> bool:
        """Return whether something is kept under this name, taken or not."""
        return name in self._names

    def take(self, name: str) -> int | None:
        """Return a descriptor from before, the caller's to close; systemd's copy stays."""
        fds = self._found.pop(name, [])
        if len(fds) > 1:  # not ours to choose
            self._found[name] = fds
            self.drop(name)
            return None
        return fds[0] if fds else None

    def put(self, name: str, fd: int) -> None:
        """Have a copy kept, instead of what was kept under this name."""
        if name in self._names:
            self.drop(name)
        self._names.add(name)
        # not polled: systemd would let go of a TUN queue that is only detached for a while
        _notify("FDSTORE=1", "FDPOLL=0", f"FDNAME={name}", fds=[fd])

    def drop(self, name: str) -> None:
        """Close systemd's copy, and ours if it was not taken."""
        for fd in self._found.pop(name, []):
            os.close(fd)
        if name in self._names:
            self._names.discard(name)
            self._unsettled = True
            _notify("FDSTOREREMOVE=1", f"FDNAME={name}")

    def drop_rest(self) -> None:
        """Close what nobody has taken: another version's, or of an earlier configuration."""
        for name in self.names:
            self.drop(name)

    async def settled(self) -> None:
        """Return when systemd has let go of what was dropped (sd_notify_barrier(3))."""
        if not self._unsettled or not os.environ.get("NOTIFY_SOCKET"):
            return
        self._unsettled = False
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        loop, closed = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(ours, closed.set)
        try:
            _notify("BARRIER=1", fds=[theirs])
            os.close(theirs)
            with suppress(TimeoutError):
                await asyncio.wait_for(closed.wait(), BARRIER_TIMEOUT)
        finally:
            loop.remove_reader(ours)
            os.close(ours)

    def put_secret(self, name: str, secret: bytes) -> None:
        """Have some bytes kept in memory; they are never on a disk (memfd_create(2))."""
        if not os.environ.get("NOTIFY_SOCKET"):
            return
        fd = os.memfd_create(f"pyvpn-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(fd, secret)
            fcntl(fd, F_ADD_SEALS, ALL_SEALS)
            self.put(name, fd)
        finally:
            os.close(fd)

    def take_secret(self, name: str) -> bytes:
        """Return the bytes kept under this name, none if there are none."""
        fd = self.take(name)
        if fd is None:
            return b""
        try:
            return os.pread(fd, MAX_SECRET, 0)
        except OSError:
            return b""
        finally:
            os.close(fd)


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def is_there() -> bool:
    """Return whether systemd started us and waits to hear of it."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def _notify(*lines: str, fds: Iterable[int] = ()) -> None:
    """Send one message; `sdnotify` has no way to send descriptors."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:  # without it the library leaves an open socket behind
        return
    message, descriptors = "\n".join(lines), list(fds)
    if not descriptors:
        _notifier().notify(message)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.connect(f"\0{path[1:]}" if path.startswith("@") else path)
        socket.send_fds(sock, [message.encode()], descriptors)


@cache
def _notifier() -> sdnotify.SystemdNotifier:
    return sdnotify.SystemdNotifier()
