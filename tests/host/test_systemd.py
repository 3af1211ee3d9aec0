"""sd_notify messages and kept descriptors, with a service manager that is a socket."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vpnd.host import systemd
from vpnd.host.systemd import Kept

FREE = 300  # the first of two descriptors that nothing uses


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(10)

    def hear(self) -> tuple[str, list[int]]:
        data, fds, _, _ = socket.recv_fds(self.socket, 4096, 10)
        return data.decode(), fds


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    systemd._notifier.cache_clear()
    manager = Manager(path)
    yield manager
    manager.socket.close()
    if systemd._notifier.cache_info().currsize:
        systemd._notifier().socket.close()
    systemd._notifier.cache_clear()


def test_a_reload_is_told_with_the_time_of_its_beginning(manager: Manager) -> None:
    """systemd tells from it which READY=1 belongs to it."""
    systemd.reloading()
    said, _ = manager.hear()
    first, second = said.splitlines()
    assert first == "RELOADING=1"
    assert second.startswith("MONOTONIC_USEC=")
    systemd.ready("as before")
    assert manager.hear()[0] == "READY=1\nSTATUS=as before"


def test_a_status_is_one_line(manager: Manager) -> None:
    """It quotes what others say, which must not become a message of its own."""
    systemd.status("connecting x\nREADY=1")
    assert manager.hear()[0] == "STATUS=connecting x READY=1"


def test_the_watchdog_is_fed_after_each_answer(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not answer starves it."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))

    async def scenario() -> None:
        answers, asked = [1, 2], asyncio.Event()

        async def answer() -> None:
            if answers.pop() == 1:
                asked.set()
                await asyncio.Event().wait()

        answers.append(3)
        watching = asyncio.create_task(systemd.watch(answer))
        await asyncio.wait_for(asked.wait(), 10)
        watching.cancel()

    asyncio.run(scenario())
    assert [manager.hear()[0] for _ in range(2)] == ["WATCHDOG=1"] * 2
    manager.socket.settimeout(0)
    with pytest.raises(BlockingIOError):
        manager.hear()


@pytest.mark.parametrize("usec", ["", "junk"])
def test_without_a_watchdog_nothing_is_fed(monkeypatch: pytest.MonkeyPatch, usec: str) -> None:
    """And the task does not end, which would end the service."""
    monkeypatch.setenv("WATCHDOG_USEC", usec)

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(systemd.watch(asyncio.Event().wait), 0.01)  # type: ignore[arg-type]

    asyncio.run(scenario())


def test_what_is_kept_has_a_name_and_replaces_its_namesake(manager: Manager) -> None:
    """Names in systemd's store are not unique by themselves."""
    kept = Kept()
    kept.put("tun-0", 0)
    said, (fd,) = manager.hear()
    assert said == "FDSTORE=1\nFDPOLL=0\nFDNAME=tun-0"
    os.close(fd)
    kept.put("tun-0", 0)
    assert manager.hear() == ("FDSTOREREMOVE=1\nFDNAME=tun-0", [])
    os.close(manager.hear()[1][0])
    kept.drop("tun-0")
    kept.drop("tun-0")
    assert manager.hear()[0] == "FDSTOREREMOVE=1\nFDNAME=tun-0"


def test_what_comes_with_the_start_is_taken_once(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is nobody else's: neither the worker nor a script is to have it."""
    read, write = os.pipe()
    monkeypatch.setattr(systemd, "FIRST_FD", FREE)
    os.dup2(read, FREE, inheritable=True)
    os.dup2(write, FREE + 1, inheritable=True)
    os.close(write)
    for name, value in (
        ("LISTEN_FDS", "2"),
        ("LISTEN_FDNAMES", "a:b"),
        ("LISTEN_PID", str(os.getpid())),
    ):
        monkeypatch.setenv(name, value)
    kept = Kept.of_this_start()
    assert "LISTEN_FDS" not in os.environ
    assert kept.names == ["a", "b"]
    assert kept.take("a") == FREE
    assert not os.get_inheritable(FREE)
    assert kept.take("a") is None
    kept.drop_rest()
    assert manager.hear()[0] == "FDSTOREREMOVE=1\nFDNAME=b"
    assert os.read(read, 1) == b""  # the other end is closed
    os.close(FREE)
    os.close(read)


def test_anothers_descriptors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables may be inherited from whoever started us."""
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.setenv("LISTEN_PID", "1")
    assert Kept.of_this_start().names == []


def test_two_of_a_name_are_none(manager: Manager) -> None:
    """Which of them is right nobody can tell."""
    read, write = os.pipe()
    kept = Kept([("tun-0", write), ("tun-0", os.dup(write))])
    assert kept.take("tun-0") is None
    assert manager.hear()[0] == "FDSTOREREMOVE=1\nFDNAME=tun-0"
    assert os.read(read, 1) == b""  # the other ends are closed
    os.close(read)


def test_the_barrier_waits_for_systemd(manager: Manager) -> None:
    """A port is free only once systemd has closed its copy too."""

    async def scenario() -> None:
        kept = Kept([("tcp-0", os.dup(0))])
        await kept.settled()  # nothing was dropped
        kept.drop("tcp-0")
        assert manager.hear()[0] == "FDSTOREREMOVE=1\nFDNAME=tcp-0"
        settled = asyncio.create_task(kept.settled())
        said, (fd,) = await asyncio.to_thread(manager.hear)
        assert said == "BARRIER=1"
        assert not settled.done()
        os.close(fd)
        await asyncio.wait_for(settled, 10)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("jobs", "for_good"),
    [
        ("17 pyvpn-client@x.service stop running\n", True),
        ("17 pyvpn-client@x.service restart running\n", False),
        ("17 pyvpn-client@x.service start waiting\n", False),
        ("17 pyvpn-client@y.service stop running\n", False),
        ("", False),
        ("No jobs listed.\n", False),
        (None, False),
    ],
)
@pytest.mark.usefixtures("manager")
def test_only_a_stop_job_is_a_stop_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str | None, *, for_good: bool
) -> None:
    """When in doubt the session is kept: systemd may have reasons of its own to start us again."""
    if jobs is not None:
        program = tmp_path / "systemctl"
        program.write_text(f"#!/bin/sh\nprintf '%s' '{jobs}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.setenv("PYVPN_UNIT", "pyvpn-client@x.service")
    assert asyncio.run(systemd.stops_for_good()) is for_good


def test_without_systemd_every_stop_is_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at a terminal."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert asyncio.run(systemd.stops_for_good())
