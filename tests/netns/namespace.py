"""Network namespaces of a test bed, entered with nsenter(1).

`ip netns exec` would remount /sys and needs `/` to be a mount point, which it is not in a plain
chroot; `nsenter --net=` changes the network and nothing else.
"""

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tests.netns.process import BedError, Pid, Process

ROOT = Path(__file__).resolve().parent.parent.parent
NETNS = Path("/run/netns")  # where `ip netns` keeps its names
RUN_TIMEOUT_S = 60.0
LINK_UP_S = 5.0
CLONE_NEWNET = 0x40000000  # linux/sched.h
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
}
PYTHON = (sys.executable, "-P", "-m")
T = TypeVar("T")
UNPRIVILEGED = ("--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")


def as_user(user: str | None) -> tuple[str, ...]:
    """Return the command prefix that gives up every privilege for a user's, () for None."""
    if user is None:
        return ()
    return ("setpriv", f"--reuid={user}", f"--regid={user}", *UNPRIVILEGED, "--")


def run(
    *argv: str,
    stdin: str | None = None,
    check: bool = True,
    timeout_s: float = RUN_TIMEOUT_S,
    env: Mapping[str, str] = ENVIRONMENT,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; with check, a bad exit status is a BedError that quotes it."""
    try:
        done = subprocess.run(
            argv,
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd="/",
            env=dict(env),
        )
    except subprocess.TimeoutExpired:
        message = f"`{' '.join(argv)}` did not end within {timeout_s:.0f} s"
        raise BedError(message) from None
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise BedError(f"`{' '.join(argv)}` ended with {done.returncode}: {said}")
    return done


class Namespace:
    """One network namespace and the programs that run in it.

    Its name and each program are noted in the folder first, so that `teardown.take_down` finds
    them when this process is no longer there to end them.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.processes: list[Process] = []

    def create(self) -> None:
        """Create it with its loopback up and IPv6 addresses usable at once."""
        with (self.folder / "namespaces").open("a") as notes:
            notes.write(f"{self.name}\n")
        run("ip", "netns", "add", self.name)
        self.sysctl("net/ipv6/conf/default/accept_dad", "0")
        self.ip("link set lo up")

    def enter(self, user: str | None = None) -> tuple[str, ...]:
        """Return the command prefix that runs a program in here."""
        return ("nsenter", f"--net={NETNS / self.name}", "--", *as_user(user))

    def run(
        self,
        *argv: str,
        user: str | None = None,
        stdin: str | None = None,
        check: bool = True,
        timeout_s: float = RUN_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in here to its end, see `run`."""
        return run(*self.enter(user), *argv, stdin=stdin, check=check, timeout_s=timeout_s)

    def start(
        self,
        name: str,
        *argv: str,
        user: str | None = None,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Process:
        """Start a program in here; its log is log/NAME.log in the folder, appended to."""
        process = Process.start(
            name,
            [*self.enter(user), *argv],
            log=self.folder / "log" / f"{name}.log",
            env=ENVIRONMENT | dict(env or {}),
            stdin=stdin,
            pass_fds=pass_fds,
        )
        with (self.folder / "processes").open("a") as notes:
            notes.write(f"{process.pid} {name}\n")
        self.processes.append(process)
        return process

    def ip(self, *commands: str) -> None:
        """Run `ip` commands in one batch."""
        self.run("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in commands))

    def ping(self, address: str, *, count: int = 3) -> str:
        """Return the mean round trip in ms; BedError unless every echo came back."""
        echoes = ("-c", str(count), "-i", "0.05", "-W", "5")
        said = self.run("ping", *echoes, address).stdout
        if f" {count} received" not in said:
            raise BedError(f"{self.name} does not get all echoes of {address}: {said}")
        return said.rpartition(" = ")[2].split("/")[1]

    def wait_link(self, link: str) -> None:
        """Wait until the kernel calls a link UP, up to a second after it carries packets.

        Asked again and again: `ip monitor` may subscribe just after the one event it is for.
        """
        deadline = time.monotonic() + LINK_UP_S
        while "state UP" not in self.run("ip", "-o", "link", "show", link).stdout:
            if time.monotonic() > deadline:
                raise BedError(f"{self.name}: the link {link} does not come up")

    def nft(self, rules: str) -> None:
        """Run an nft script."""
        self.run("nft", "-f", "-", stdin=rules)

    def sysctl(self, key: str, value: str) -> None:
        """Write a value below /proc/sys, which shows the namespace of whoever writes."""
        self.run("sh", "-c", 'printf %s "$1" >"/proc/sys/$2"', "sysctl", value, key)


def inside(namespace: Namespace, work: Callable[[], T]) -> T:
    """Return what `work` returns, or raise what it raises, in a thread in the namespace.

    A TUN and a socket belong to the namespace they were made in, whoever uses them later.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with (NETNS / namespace.name).open() as name:
                _set_network(name.fileno())
            results.append(work())
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _set_network(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):  # os.setns is Python 3.12's
        raise OSError(ctypes.get_errno(), "setns to a network namespace")


def inhabitants(name: str) -> list[Pid]:
    """Return the processes that live in a namespace and have no controlling terminal.

    Who has one is a person's shell that entered a demo; everything we start has none.
    """
    try:
        wanted = (NETNS / name).stat()
    except FileNotFoundError:
        return []
    return [
        pid
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (pid := _lives_in(entry, wanted)) is not None
    ]


def _lives_in(entry: Path, wanted: os.stat_result) -> Pid | None:
    try:
        net = (entry / "ns/net").stat()
        terminal = (entry / "stat").read_text().rpartition(")")[2].split()[4]  # tty_nr, proc(5)
        if (net.st_dev, net.st_ino) != (wanted.st_dev, wanted.st_ino) or terminal != "0":
            return None
        return Pid.of(int(entry.name))
    except OSError:  # it ended while we looked, or is a zombie
        return None
