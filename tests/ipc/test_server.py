"""The socket: its file, its mode, and how many may hold it."""

import asyncio
import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from tests.ipc.caller import STRANGER, RawCaller, as_user, needs_root, served
from tests.ipc.memory_backend import MemoryBackend
from vpnd.errors import ConfigError, VpnError
from vpnd.ipc.server import MAX_CONNECTIONS_PER_UID, serve


def test_everybody_may_connect_and_nothing_is_left_behind(path: Path) -> None:
    """Rights are per method, so the file is open; and a stopped daemon leaves no file."""

    async def test() -> int:
        async with served(path, MemoryBackend()):
            return (await asyncio.to_thread(path.stat)).st_mode

    assert stat.S_IMODE(asyncio.run(test())) == 0o666
    assert not path.exists()


def test_a_missing_admin_group_is_said_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Else its would-be members wonder why they may not."""

    async def test() -> None:
        async with served(path, MemoryBackend(), admin_group="pyvpn-t-none"):
            pass

    asyncio.run(test())
    assert caplog.messages == ["no group pyvpn-t-none on this host: vpnctl works for root only"]


@needs_root
def test_another_admin_group_holds_for_who_connects_then(path: Path) -> None:
    """After a reload; a connection keeps the rights it was made with."""
    group = grp.getgrgid(2)

    async def test() -> None:
        async with served(path, MemoryBackend(), admin_group="daemon") as server:
            with as_user(STRANGER, gid=group.gr_gid):
                before = RawCaller(path)
            assert "error" in await before.call("ListUsers")
            server.admit(group.gr_name)
            with as_user(STRANGER, gid=group.gr_gid):
                after = RawCaller(path)
            assert "parameters" in await after.call("ListUsers")
            assert "error" in await before.call("ListUsers")
            before.close()
            after.close()

    asyncio.run(test())


def test_a_dead_daemons_socket_is_replaced(path: Path) -> None:
    """After kill -9 the next start must not need a hand."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(os.fspath(path))

    async def test() -> None:
        async with served(path, MemoryBackend()):
            caller = RawCaller(path)
            assert "parameters" in await caller.call("GetStatus")
            caller.close()

    asyncio.run(test())


def test_a_living_daemons_socket_is_not_taken(path: Path) -> None:
    """Two daemons on one directory would each answer for the other."""

    async def test() -> None:
        async with served(path, MemoryBackend()):
            with pytest.raises(VpnError, match="another vpnd answers"):
                await serve(path, MemoryBackend())
            caller = RawCaller(path)
            assert "parameters" in await caller.call("GetStatus")
            caller.close()

    asyncio.run(test())


def test_close_leaves_a_successors_socket_alone(path: Path) -> None:
    """The old daemon may still be stopping when the new one listens."""

    async def test() -> None:
        old = await serve(path, MemoryBackend())
        await asyncio.to_thread(path.unlink)
        async with served(path, MemoryBackend()):
            old.close()
            await old.wait_closed()
            assert await asyncio.to_thread(path.exists)

    asyncio.run(test())


@pytest.mark.parametrize("kind", ["file", "missing directory", "long path"])
def test_a_path_that_cannot_be_used_is_one_sentence(run_dir: Path, kind: str) -> None:
    """Where, and what to do."""
    path = {
        "file": run_dir / "file",
        "missing directory": run_dir / "none" / "vpnd.sock",
        "long path": run_dir / ("x" * 100) / "vpnd.sock",
    }[kind]
    (run_dir / "file").write_text("mine")
    with pytest.raises(ConfigError) as error:
        asyncio.run(serve(path, MemoryBackend()))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert (run_dir / "file").read_text() == "mine"


def test_one_uid_has_so_many_connections(path: Path) -> None:
    """One script that leaks connections must not lock the others out for good."""

    async def test() -> None:
        async with served(path, MemoryBackend()) as server:
            callers = [RawCaller(path) for _ in range(MAX_CONNECTIONS_PER_UID)]
            for caller in callers:
                await caller.call("GetStatus")
            late = RawCaller(path)
            assert await late.answer() is None
            assert server.refusals == {"too many connections": 1}
            callers.pop().close()
            await asyncio.wait({next(reversed(server._transports)).closed_future})
            another = RawCaller(path)
            assert "parameters" in await another.call("GetStatus")
            for caller in (late, another, *callers):
                caller.close()

    asyncio.run(test())


@needs_root
def test_another_uid_is_not_counted_with_the_first(path: Path) -> None:
    """Strangers who fill their share leave root's alone, and one another's."""

    async def test() -> None:
        async with served(path, MemoryBackend()):
            with as_user(STRANGER):
                strangers = [RawCaller(path) for _ in range(MAX_CONNECTIONS_PER_UID + 1)]
            assert await strangers[-1].answer() is None
            root = RawCaller(path)
            assert "parameters" in await root.call("GetStatus")
            for caller in (root, *strangers):
                caller.close()

    asyncio.run(test())


@needs_root
def test_strangers_together_leave_room_for_administrators(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many accounts of one person are still not the operator."""
    monkeypatch.setattr("vpnd.ipc.server.MAX_CONNECTIONS_OF_STRANGERS", 3)

    async def test() -> None:
        async with served(path, MemoryBackend()):
            strangers = []
            for uid in range(60001, 60005):
                with as_user(uid):
                    strangers.append(RawCaller(path))
            assert await strangers[-1].answer() is None
            root = RawCaller(path)
            assert "parameters" in await root.call("GetStatus")
            for caller in (root, *strangers):
                caller.close()

    asyncio.run(test())


def test_closing_lets_a_call_in_progress_finish(path: Path) -> None:
    """A change that was begun is not torn; only its answer is lost."""
    started, go_on = asyncio.Event(), asyncio.Event()
    done = []

    class Slow(MemoryBackend):
        async def add_user(self, name: str, groups: list[str], password: str | None) -> None:
            started.set()
            await go_on.wait()
            await super().add_user(name, groups, password)
            done.append(name)

    async def test() -> None:
        server = await serve(path, Slow())
        caller = RawCaller(path)
        calling = asyncio.ensure_future(
            caller.call("AddUser", name="alice", groups=[], password=None)
        )
        await started.wait()
        server.close()
        go_on.set()
        await server.wait_closed()
        assert done == ["alice"]
        with pytest.raises(AssertionError, match="closed"):
            await calling
        caller.close()

    asyncio.run(test())
