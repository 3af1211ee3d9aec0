"""The calling side of a test: another uid, a raw connection, a served backend."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from vpnd.ipc.api import Backend
from vpnd.ipc.server import IpcServer, serve

STRANGER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user to call")


@contextmanager
def as_user(uid: int, groups: tuple[int, ...] = (), gid: int = STRANGER) -> Iterator[None]:
    """Have another effective uid, gid and groups: what SO_PEERCRED shows of a connect."""
    before = os.getegid(), os.getgroups()
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(before[0])
        os.setgroups(before[1])


@asynccontextmanager
async def served(
    path: Path, backend: Backend, admin_group: str = "daemon"
) -> AsyncIterator[IpcServer]:
    """Serve `backend`; the group is one that every host has."""
    server = await serve(path, backend, admin_group=admin_group)
    try:
        yield server
    finally:
        server.close()
        await server.wait_closed()


class RawCaller:
    """A connection that sends what it likes; connects when made, so under the uid of then."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(os.fspath(path))
        self.socket.setblocking(False)
        self._rest = b""

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        await self.send(message(method, **parameters))
        answer = await self.answer()
        assert answer is not None, "connection closed instead of an answer"
        return answer

    async def answer(self) -> dict[str, Any] | None:
        """Return the next answer, or None when the connection was closed."""
        loop = asyncio.get_running_loop()
        while b"\0" not in self._rest:
            try:
                data = await loop.sock_recv(self.socket, 65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._rest += data
        first, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(first)
        return answer

    def close(self) -> None:
        self.socket.close()


def message(method: str, **parameters: Any) -> bytes:
    if "." not in method:
        method = f"org.pyvpn.Daemon.{method}"
    return json.dumps({"method": method, "parameters": parameters}).encode() + b"\0"
