"""A whole worker in this process: loopback for the internet, a socket pair for the TUN.

The test is the master at the other end of the border, and the clients.
"""

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from tests.protocol.authority import ClientFiles, TestSite
from tests.protocol.tls_client import TlsClient
from vpnd.wire import cstp
from vpnd.worker.control import ControlChannel
from vpnd.worker.messages import (
    LoginQuery,
    LoginReply,
    Message,
    OpenQuery,
    OpenReply,
    Ready,
    Start,
    StatusQuery,
    StatusReply,
    TunnelEnded,
)
from vpnd.worker.worker import Worker

WAIT = 20.0  # seconds; a test that needs them has failed
COOKIE = "C" * 43
LABEL = b"EXPORTER-openconnect-psk"
GRANTED = OpenReply(
    tunnel=7,
    session="s7",
    user="alice",
    address4="10.8.0.7",
    netmask4="255.255.255.0",
    address6="fd00::7",
    prefix6=64,
    mtu=1400,
    dpd_s=30,
    keepalive_s=0,
)


def connect_request(cookie: str = COOKIE, **fields: str) -> bytes:
    lines = {
        "Host": "vpn",
        "Cookie": f"webvpn={cookie}",
        "X-CSTP-Base-MTU": "1500",
        "X-CSTP-Address-Type": "IPv6,IPv4",
        "X-CSTP-Full-IPv6-Capability": "true",
    }
    lines |= {name.replace("_", "-"): value for name, value in fields.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"CONNECT /CSCOSSLC/tunnel HTTP/1.1\r\n{head}\r\n".encode()


class Remote:
    """A client: TLS by pyOpenSSL's public calls over a plain stream."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: TlsClient
    ) -> None:
        self._reader = reader
        self.writer = writer
        self.tls = tls
        self.records: list[bytes] = []
        self._packets = cstp.CstpReader()

    async def establish(self) -> None:
        self.writer.write(self.tls.step())
        while True:
            data = await asyncio.wait_for(self._reader.read(65536), WAIT)
            if not data:
                raise ConnectionError("the server closed the connection")
            self.writer.write(self.tls.step(data))
            if self.tls.connection.get_cipher_name():
                return

    def send(self, *payloads: bytes) -> None:
        self.writer.write(self.tls.send(*payloads))

    async def record(self) -> bytes:
        """Return the plaintext of the next TLS record; b"" at the end."""
        while not self.records:
            data = await asyncio.wait_for(self._reader.read(65536), WAIT)
            if not data:
                return b""
            try:
                self.records += self.tls.read(data)
            except Exception as exc:
                self.end = exc
                return b""
        return self.records.pop(0)

    async def request(self, data: bytes) -> bytes:
        """Send a request, return the whole answer."""
        self.send(data)
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = await self.record()
            if not piece:
                return answer
            answer += piece
        return answer

    async def packet(self) -> tuple[int, bytes]:
        """Return the next CSTP packet; it must fill its record."""
        record = await self.record()
        ((kind, payload),) = self._packets.receive(record)
        return kind, bytes(payload)

    async def is_closed(self) -> bool:
        """Wait for the end of the connection."""
        while await self.record():
            pass
        return True

    def close(self) -> None:
        self.writer.close()


class Border:
    """The master, as the test plays it."""

    def __init__(self) -> None:
        self.seen: list[Message] = []
        self.ended: asyncio.Queue[TunnelEnded] = asyncio.Queue()
        self.ready = asyncio.Event()
        self.asked = asyncio.Event()
        self.on_login: Callable[[LoginQuery], Awaitable[LoginReply]] = self._accept
        self.on_open: Callable[[OpenQuery], Awaitable[OpenReply]] = self._grant
        self._number = GRANTED.tunnel - 1
        self.channel: ControlChannel

    async def _accept(self, _query: LoginQuery) -> LoginReply:
        return LoginReply("accepted", cookie=COOKIE)

    async def _grant(self, _query: OpenQuery) -> OpenReply:
        self._number += 1
        n = self._number
        return dataclasses.replace(
            GRANTED, tunnel=n, session=f"s{n}", address4=f"10.8.0.{n}", address6=f"fd00::{n}"
        )

    async def handle(self, message: Message) -> Message | None:
        self.seen.append(message)
        if isinstance(message, Ready):
            self.ready.set()
        elif isinstance(message, TunnelEnded):
            self.ended.put_nowait(message)
        elif isinstance(message, LoginQuery):
            self.asked.set()
            return await self.on_login(message)
        elif isinstance(message, OpenQuery):
            self.asked.set()
            return await self.on_open(message)
        return None

    async def status(self) -> StatusReply:
        reply = await asyncio.wait_for(self.channel.ask(StatusQuery()), WAIT)
        assert isinstance(reply, StatusReply)
        return reply

    async def end(self) -> TunnelEnded:
        return await asyncio.wait_for(self.ended.get(), WAIT)


class Bench:
    """A running worker and what surrounds it."""

    def __init__(self, site: TestSite, **limits: int) -> None:
        ours, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (ours, self.kernel):
            end.setblocking(False)
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.address: tuple[str, int] = listener.getsockname()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(self.address)
        options = {
            "connections": 100,
            "connections_per_address": 100,
            "handshakes_pending": 100,
            "login_timeout_s": 60,
        }
        self.start = Start(
            tcp_listeners=1,
            udp_sockets=1,
            certificate=str(site.certificate),
            key=str(site.key),
            client_ca=str(site.client_ca),
            allow_tls12=False,
            dtls=True,
            port=self.address[1],
            log_level="info",
            **(options | limits),
        )
        listener.setblocking(False)
        fds = [ours.detach(), listener.detach(), udp.detach()]
        self.worker = Worker(self.start, fds)
        self.border = Border()
        self._remotes: list[Remote] = []

    async def remote(
        self, *, files: ClientFiles | None = None, source: str = "127.0.0.1"
    ) -> Remote:
        """Return a client whose TLS handshake is done."""
        reader, writer = await asyncio.open_connection(*self.address, local_addr=(source, 0))
        self._remotes.append(Remote(reader, writer, TlsClient(files=files)))
        await self._remotes[-1].establish()
        return self._remotes[-1]

    async def tunnel(self, **fields: str) -> Remote:
        """Return a client whose tunnel is open."""
        remote = await self.remote()
        answer = await remote.request(connect_request(**fields))
        assert answer.startswith(b"HTTP/1.1 200 CONNECTED\r\n"), answer
        self.last_answer = answer
        return remote

    async def from_tun(self) -> bytes:
        """Return the next frame that the worker writes to the TUN."""
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.sock_recv(self.kernel, 1 << 17), WAIT)

    async def close(self) -> None:
        self.kernel.close()
        for remote in self._remotes:
            remote.close()
            with suppress(OSError):
                await remote.writer.wait_closed()
        self.worker._tun.close()
        for udp in self.worker._udp:
            udp.close()
        for listener in self.worker._listeners:
            listener.close()


@asynccontextmanager
async def running(site: TestSite, **limits: int) -> AsyncIterator[Bench]:
    """Run a worker until the block ends; it must then end by itself."""
    bench = Bench(site, **limits)
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    bench.border.channel = ControlChannel(reader, writer, bench.border.handle)
    bench.run = asyncio.create_task(bench.worker.run(theirs))  # type: ignore[attr-defined]
    listening = asyncio.create_task(bench.border.channel.run())
    try:
        await asyncio.wait_for(bench.border.ready.wait(), WAIT)
        yield bench
    finally:
        bench.border.channel.close()
        loop = asyncio.get_running_loop()
        for fd in (bench.worker._tun.fd, *(u.socket.fileno() for u in bench.worker._udp)):
            loop.remove_reader(fd)
        await asyncio.wait_for(bench.run, WAIT)  # type: ignore[attr-defined]
        await asyncio.wait_for(listening, WAIT)
        await bench.close()
