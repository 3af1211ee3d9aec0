"""A small service manager, for daemons under test: what systemd does for them and no more.

It hears sd_notify messages, keeps the descriptors that come with them over restarts, feeds on
the watchdog, and answers `systemctl list-jobs`.  Real systemd is for tests/systemd.
"""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.netns.client import CONNECT_S, Client
from tests.netns.daemons import Config, Daemons
from tests.netns.namespace import ENVIRONMENT, Namespace
from tests.netns.process import BedError, Pid, Process
from tests.netns.site import Site

UNIT = "pyvpn-test.service"
MAX_FDS = 253  # SCM_MAX_FD
READY_S = 20.0
LAUNCHER = """
import fcntl, os, sys
names, fds, *argv = sys.argv[1:]
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 1000) for fd in fds.split(",") if fd]
os.closerange(3, 1000)
for number, fd in enumerate(high, 3):
    os.dup2(fd, number)
    os.close(fd)
if high:
    os.environ |= {"LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": names}
    os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execvp(argv[0], argv)
"""
SYSTEMCTL = """#!/bin/sh
[ "$1" = list-jobs ] && [ "$5" = {unit} ] && cat {folder}/job
"""


class Manager:
    """One service: started, stopped and restarted as systemd would."""

    process: Process

    def __init__(self, namespace: Namespace, folder: Path, *, watchdog_s: float = 0.0) -> None:
        self.namespace = namespace
        self.folder = folder
        self.watchdog_s = watchdog_s
        self.stored: list[tuple[str, int]] = []
        self.messages: list[dict[str, str]] = []
        self.began = 0.0
        self.env: dict[str, str] = {}
        """What the service's environment has beside what a service manager sets."""
        self._changed = threading.Condition()
        folder.mkdir(mode=0o755)
        (folder / "bin").mkdir(mode=0o755)
        (folder / "job").touch(0o644)
        systemctl = folder / "bin/systemctl"
        systemctl.write_text(SYSTEMCTL.format(unit=UNIT, folder=folder))
        systemctl.chmod(0o755)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        (folder / "notify").chmod(0o777)
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._hearing.start()

    # what the service says

    def _hear(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self._socket, 4096, MAX_FDS)
            if data == b"END":
                return
            message = dict(line.split("=", 1) for line in data.decode().splitlines())
            with self._changed:
                self._take(message, fds)
                self.messages.append(message | {"AT": str(time.monotonic())})
                self._changed.notify_all()

    def _take(self, message: Mapping[str, str], fds: list[int]) -> None:
        name = message.get("FDNAME", "stored")
        if "FDSTOREREMOVE" in message:
            self._drop(name)
        if "FDSTORE" in message:
            self.stored += [(name, fd) for fd in fds]
        else:
            for fd in fds:
                os.close(fd)

    def _drop(self, name: str | None = None) -> None:
        for each, fd in self.stored:
            if name in {None, each}:
                os.close(fd)
        self.stored = [pair for pair in self.stored if name not in {None, pair[0]}]

    @property
    def names(self) -> list[str]:
        """The names of what is stored."""
        with self._changed:
            return sorted(name for name, _ in self.stored)

    def status(self) -> str:
        """Return the newest STATUS=."""
        with self._changed:
            told = [message["STATUS"] for message in self.messages if "STATUS" in message]
        return told[-1] if told else ""

    def mark(self) -> int:
        """Return the place where all messages from now on begin."""
        with self._changed:
            return len(self.messages)

    def wait_message(
        self, key: str, pattern: str = "", *, since: int = 0, timeout_s: float = READY_S
    ) -> dict[str, str]:
        """Return the first message with a key and a value like this, since a mark."""

        def found() -> dict[str, str] | None:
            messages = (m for m in self.messages[since:] if re.search(pattern, m.get(key, "\0")))
            return next((m for m in messages if key in m), None)

        deadline = time.monotonic() + timeout_s
        with self._changed:
            while (message := found()) is None:
                if time.monotonic() > deadline or not self.process.is_alive:
                    raise BedError(f"no {key}={pattern}: {self.messages[since:]}")
                self._changed.wait(0.2)
        return message

    # what is done with it

    def start(self, name: str, *argv: str, user: str, **options: Any) -> Process:
        """Start the service with all that is stored."""
        env = {
            "NOTIFY_SOCKET": str(self.folder / "notify"),
            "PATH": f"{self.folder}/bin:{ENVIRONMENT['PATH']}",
            "PYVPN_UNIT": UNIT,
            **self.env,
        }
        if self.watchdog_s:
            env["WATCHDOG_USEC"] = str(int(self.watchdog_s * 1e6))
        with self._changed:
            fds = [fd for _, fd in self.stored]
            names = ":".join(name for name, _ in self.stored)
            launcher = (sys.executable, "-I", "-S", "-c", LAUNCHER)
            self.began = time.monotonic()
            self.process = self.namespace.start(
                name, *launcher, names, ",".join(map(str, fds)), *argv,
                user=user, env=env, pass_fds=fds, **options,
            )  # fmt: skip
        return self.process

    def wait_ready(self, *, since: int = 0) -> float:
        """Wait until it says so; return the seconds since its start."""
        message = self.wait_message("READY", since=since)
        return float(message["AT"]) - self.began

    def end(self, signum: int = signal.SIGTERM, *, job: str = "") -> int:
        """End it and what is left of its group, while `systemctl` knows of a job."""
        pid = self.process.pid.number
        (self.folder / "job").write_text(f"17 {UNIT} {job} running\n" if job else "")
        try:
            return self.process.stop(signum)
        finally:
            (self.folder / "job").write_text("")
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # KillMode=mixed

    def wait_watchdog(self) -> None:
        """Wait until the watchdog was not fed in time; then kill the service, as systemd does."""
        with self._changed:
            while True:
                fed = [float(m["AT"]) for m in self.messages if "WATCHDOG" in m]
                left = max(fed, default=self.began) + self.watchdog_s - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
        self.end(signal.SIGKILL)

    def release(self) -> None:
        """Let go of what is stored: the service is stopped or has failed for good."""
        with self._changed:
            self._drop()

    def close(self) -> None:
        """Be of no use any more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"END", str(self.folder / "notify"))
        self._hearing.join()
        self._socket.close()
        self.release()


class ManagedDaemons(Daemons):
    """A server whose vpnd is a service; its helper is not."""

    def __init__(
        self, namespace: Namespace, config: Config | None = None, *, watchdog_s: float = 0.0
    ) -> None:
        super().__init__(namespace, config)
        self.manager = Manager(namespace, namespace.folder / "manager", watchdog_s=watchdog_s)
        self.helper_env: dict[str, str] = {}

    def start_helper(self) -> None:
        """Start pyvpn-helper and wait for its socket."""
        self.socket.unlink(missing_ok=True)
        self.helper = self.namespace.start("helper", *self._helper_argv(), env=self.helper_env)
        self.helper.wait_for_path(self.socket, timeout_s=READY_S)

    def start_vpnd(self, *, wait: bool = True) -> None:
        """Start vpnd with all that is stored."""
        since = self.manager.mark()
        self.vpnd = self.manager.start("vpnd", *self._vpnd_argv(), user="pyvpn")
        if wait:
            self.manager.wait_ready(since=since)

    def restart(self, signum: int = signal.SIGTERM) -> None:
        """What `systemctl restart` does, or Restart= after vpnd was killed."""
        self.manager.end(signum, job="restart" if signum == signal.SIGTERM else "")
        self.start_vpnd()

    def stop_vpnd(self) -> None:
        """What `systemctl stop` does."""
        self.manager.end(job="stop")
        self.manager.release()


class ManagedClient(Client):
    """A client whose vpnd is a service; its helper is not."""

    def prepare(self) -> None:
        """Make the folders."""
        super().prepare()
        self.manager = Manager(self.namespace, self.folder / "manager")

    def _launch(self, argv: Sequence[str], stdin: bytes) -> None:
        self._argv = argv
        since = self.manager.mark()
        name = f"vpnd-{self.folder.name}"
        self.vpnd = self.manager.start(name, *argv, user="pyvpn-client", stdin=stdin)
        self.manager.wait_ready(since=since)

    def end(self, signum: int = signal.SIGTERM, *, job: str = "restart") -> None:
        """End vpnd, which the service manager may be about to start again."""
        self.manager.end(signum, job=job if signum == signal.SIGTERM else "")

    def go_on(self) -> None:
        """Start vpnd with all that is stored, and nothing else to log in with."""
        self._launch(self._argv, b"not the password\n")
        self.vpnd.wait_for(r"INFO connected\b", timeout_s=CONNECT_S)


def managed(site: Site) -> ManagedDaemons:
    """Return the programs of a site whose server is a service."""
    assert isinstance(site.daemons, ManagedDaemons)
    return site.daemons


def index_of(namespace: Namespace, interface: str) -> int:
    """Return the index of an interface: one that was deleted and made again has another."""
    (link,) = json.loads(namespace.run("ip", "-j", "link", "show", interface).stdout)
    index: int = link["ifindex"]
    return index


def children(pid: Pid) -> list[Pid]:
    """Return the living children of a process."""
    numbers = Path(f"/proc/{pid.number}/task/{pid.number}/children").read_text().split()
    return [Pid.of(int(number)) for number in numbers]
