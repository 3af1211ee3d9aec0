"""The worker process is started, watched and started again: with real processes."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.protocol.authority import TestSite
from vpnd.errors import HelperError
from vpnd.server import supervisor
from vpnd.server.supervisor import Supervisor, worker_environment
from vpnd.worker.control import PeerGone
from vpnd.worker.messages import Message, Start, StatusQuery, StatusReply

WAIT = 20.0  # seconds; a test that needs them has failed


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> TestSite:
    return TestSite(tmp_path_factory.mktemp("site"))


class House:
    """A supervisor and the descriptors it gives away."""

    def __init__(self, site: TestSite) -> None:
        self.tun, self._kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self._site = site
        self.gone = 0
        self.died = asyncio.Event()
        self.supervisor = Supervisor(self._start, self._on_message, self._on_gone)

    def _start(self) -> tuple[Start, list[int]]:
        start = Start(
            tcp_listeners=1,
            udp_sockets=1,
            certificate=str(self._site.certificate),
            key=str(self._site.key),
            client_ca=str(self._site.client_ca),
            allow_tls12=False,
            dtls=True,
            port=self.listener.getsockname()[1],
            connections=10,
            connections_per_address=10,
            handshakes_pending=10,
            login_timeout_s=10,
            log_level="info",
        )
        return start, [self.tun.fileno(), self.listener.fileno(), self.udp.fileno()]

    async def _on_message(self, _message: Message) -> Message | None:
        return None

    def _on_gone(self) -> None:
        self.gone += 1
        self.died.set()

    def close(self) -> None:
        for one in (self.tun, self._kernel, self.listener, self.udp):
            one.close()


def play(site: TestSite, scene: Callable[[House], Awaitable[None]]) -> None:
    """Run a scene with a supervised worker, and stop it."""

    async def main() -> None:
        house = House(site)
        running = asyncio.create_task(house.supervisor.run())
        try:
            assert await asyncio.wait_for(house.supervisor.wait_ready(), WAIT)
            await scene(house)
        finally:
            await asyncio.wait_for(house.supervisor.stop(), WAIT)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            house.close()

    asyncio.run(main())


def test_a_worker_answers_and_stops_when_told(site: TestSite) -> None:
    """The life of a process that nothing happens to."""
    seen: list[int] = []

    async def scene(house: House) -> None:
        reply = await house.supervisor.ask(StatusQuery())
        assert isinstance(reply, StatusReply)
        assert reply.tunnels == []
        seen.append(house.supervisor.pid)

    play(site, scene)
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


def test_a_worker_that_dies_is_replaced(site: TestSite, caplog: pytest.LogCaptureFixture) -> None:
    """The sessions hear of it, who asks meanwhile too, and then there is another."""
    caplog.set_level(logging.INFO)

    async def scene(house: House) -> None:
        first = house.supervisor.pid
        os.kill(first, signal.SIGKILL)
        await asyncio.wait_for(house.died.wait(), WAIT)
        assert not house.supervisor.is_ready
        with pytest.raises(PeerGone):
            await house.supervisor.ask(StatusQuery())
        assert await asyncio.wait_for(house.supervisor.wait_ready(), WAIT)
        assert house.supervisor.pid != first
        assert isinstance(await house.supervisor.ask(StatusQuery()), StatusReply)
        assert house.gone == 1

    play(site, scene)
    assert any("worker died" in record.getMessage() for record in caplog.records)


def test_a_worker_whose_interface_was_deleted_is_not_replaced(site: TestSite) -> None:
    """The next one would find it gone too: who restarts vpnd gets a new interface."""

    async def main() -> None:
        house = House(site)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
            nobody.bind(("127.0.0.1", 0))
            house.tun.close()
            house.tun = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            house.tun.setblocking(False)
            house.tun.connect(nobody.getsockname())
        running = asyncio.create_task(house.supervisor.run())
        try:
            assert await asyncio.wait_for(house.supervisor.wait_ready(), WAIT)
            house.tun.send(b"x")  # refused: the next read fails as that of a deleted link does
            with pytest.raises(HelperError, match="interface was deleted"):
                await asyncio.wait_for(running, WAIT)
        finally:
            await asyncio.wait_for(house.supervisor.stop(), WAIT)
            house.close()

    asyncio.run(main())


GARBAGE = """
import socket, sys, time
border = socket.socket(fileno=int(sys.argv[-1]))
border.recv(1 << 16)
border.sendall(b"\\x00\\x00\\x00\\x05hello")
time.sleep(600)
"""


def test_a_worker_that_breaks_the_protocol_is_killed(
    site: TestSite,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It may be somebody else's by now: it is not asked to leave."""
    impostor = tmp_path / "impostor"
    impostor.write_text(f"#!{sys.executable}\n{GARBAGE}")
    impostor.chmod(0o755)
    real, starts = sys.executable, []

    async def main() -> None:
        house = House(site)
        monkeypatch.setattr(supervisor.sys, "executable", str(impostor))
        running = asyncio.create_task(house.supervisor.run())
        try:
            await asyncio.wait_for(house.died.wait(), WAIT)
            starts.append(house.supervisor.pid)
            monkeypatch.setattr(supervisor.sys, "executable", real)
            assert await asyncio.wait_for(house.supervisor.wait_ready(), WAIT)
        finally:
            await asyncio.wait_for(house.supervisor.stop(), WAIT)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            house.close()

    asyncio.run(main())
    with pytest.raises(ProcessLookupError):
        os.kill(starts[0], 0)
    assert any("not in the protocol" in record.getMessage() for record in caplog.records)


def test_the_worker_does_not_import_from_the_current_directory(
    site: TestSite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The daemon may be started in a directory where others can write."""
    trap = tmp_path / "vpnd"
    trap.mkdir()
    (trap / "__init__.py").write_text("raise SystemExit(99)")
    (tmp_path / "socket.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)

    async def scene(house: House) -> None:
        assert house.supervisor.is_ready

    play(site, scene)


def test_the_workers_environment_is_bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operator's shell holds is none of its business."""
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    environment = worker_environment()
    assert "SECRET_TOKEN" not in environment
    assert "NOTIFY_SOCKET" not in environment
    assert Path(environment["PYTHONPATH"], "vpnd", "worker").is_dir()


def test_a_worker_without_a_master_says_so_in_one_line(tmp_path: Path) -> None:
    """Started by hand, or its master died at once."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vpnd.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True,
            env=worker_environment(), cwd=tmp_path,
        )  # fmt: skip
    ours.close()
    _, said = process.communicate(timeout=WAIT)
    assert process.returncode == 1
    assert "Traceback" not in said
