"""What must never be in a log: the whole way of a client, at the level that says most."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.auth.conftest import CHEAP
from tests.protocol.authority import TestSite
from tests.protocol.psk_client import PskClient
from tests.worker.site import LABEL, WAIT, Bench, Remote, connect_request, running
from vpnd.auth.hasher import PasswordHasher
from vpnd.auth.password_hash import hash_password
from vpnd.config import ServerConfig
from vpnd.config.model import TUNNEL_IPV4
from vpnd.policy.leases import Pool
from vpnd.server.logins import Logins
from vpnd.server.sessions import Sessions
from vpnd.store.contract import User
from vpnd.store.memory import MemoryStore
from vpnd.worker.messages import LoginQuery, LoginReply, OpenQuery, OpenReply

PASSWORD, WRONG = "correct-horse-battery", "wrong-horse-battery"
COOKIE = re.compile(rb"webvpn(?:context)?=([^;\r]+)")


class Master:
    """The deciding half of the server, as the worker meets it."""

    def __init__(self, hasher: PasswordHasher) -> None:
        self.store = MemoryStore()
        self.store.users.put(User("alice", password_hash=str(hash_password(PASSWORD, CHEAP))))
        config = ServerConfig()
        pool = Pool(TUNNEL_IPV4, None)
        self.sessions = Sessions(config, self.store, pool, lambda _number, _reason: None)
        self.logins = Logins(config.auth, self.store, hasher, self.sessions)

    async def login(self, query: LoginQuery) -> LoginReply:
        return await self.logins.step(query)

    async def open(self, query: OpenQuery) -> OpenReply:
        return self.sessions.open(query, time.time())


def post(cookie: bytes = b"", **fields: str) -> bytes:
    body = "&".join(f"{key}={quote(value)}" for key, value in fields.items()).encode()
    line = b"Cookie: webvpncontext=%s\r\n" % cookie if cookie else b""
    return b"POST /auth HTTP/1.1\r\nHost: vpn\r\n%sContent-Length: %d\r\n\r\n%s" % (
        line, len(body), body,
    )  # fmt: skip


async def log_in(remote: Remote, secrets: set[bytes]) -> bytes:
    """Log in with a wrong password, then with the right one; return the session's cookie."""
    answer = await remote.request(post())
    for password in (WRONG, PASSWORD):
        found = set(COOKIE.findall(answer))
        secrets |= found
        context = found.pop() if found else b""
        answer = await remote.request(post(context, username="alice", password=password))
    cookie = COOKIE.findall(answer)
    secrets |= set(cookie)
    return next(c for c in cookie if len(c) == 43)


async def open_dtls(bench: Bench, app_id: bytes, psk: bytes) -> None:
    client = PskClient(psk, app_id=app_id)
    received: asyncio.Queue[bytes] = asyncio.Queue()

    class Udp(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002
            received.put_nowait(data)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Udp, remote_addr=bench.address)
    transport.sendto(client.hello())
    while not client.is_done:
        flight = client.step(await asyncio.wait_for(received.get(), WAIT))
        if flight:
            transport.sendto(flight)
    transport.close()


def test_no_secret_of_a_client_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cookies, passwords, App-IDs and keys; not even of what goes wrong."""
    caplog.set_level(logging.DEBUG)
    secrets: set[bytes] = {PASSWORD.encode(), WRONG.encode()}

    async def scene(bench: Bench) -> None:
        remote = await bench.remote()
        cookie = await log_in(remote, secrets)
        wish = {"X_DTLS_CipherSuite": "PSK-NEGOTIATE"}
        answer = await remote.request(connect_request(cookie.decode(), **wish))
        fields = dict(line.split(": ", 1) for line in answer.decode().split("\r\n")[1:] if line)
        app_id = bytes.fromhex(fields["X-DTLS-App-ID"])
        psk = remote.tls.connection.export_keying_material(LABEL, 32)
        secrets.update({app_id, psk, app_id.hex().encode(), psk.hex().encode()})
        await open_dtls(bench, app_id, psk)
        for broken in (  # whose errors are tempted to quote what came
            b"GET /?password=%s HTTP/1.1\r\n\r\n" % PASSWORD.encode(),
            b"CONNECT /CSCOSSLC/tunnel HTTP/1.1\r\nCookie: webvpn=%s\r\nX\r\n\r\n" % cookie,
            b"POST / HTTP/1.1\r\nHost: vpn\r\nContent-Length: x%s\r\n\r\n" % cookie,
            post(username="alice", password=PASSWORD)[:-1] + b"\xff",
            connect_request(cookie.decode()[:-1] + "!"),
            connect_request("A" * 43),
        ):
            await (await bench.remote()).request(broken)
        remote.send(b"\0no such packet" + cookie)
        await bench.border.end()

    play(TestSite(tmp_path), scene)
    assert len(caplog.records) > 6
    said = caplog.text.encode(errors="surrogateescape")
    assert b"alice" in said
    for secret in secrets | {b"A" * 43}:
        assert len(secret) > 8
        assert secret not in said, secret
        assert repr(secret)[2:-1].encode() not in said, secret


def play(site: TestSite, scene: Callable[[Bench], Awaitable[None]]) -> None:
    hasher = PasswordHasher(CHEAP)

    async def main() -> None:
        async with running(site) as bench:
            master = Master(hasher)
            bench.border.on_login, bench.border.on_open = master.login, master.open
            await scene(bench)

    try:
        asyncio.run(main())
    finally:
        hasher.close()
