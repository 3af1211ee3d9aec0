"""The TCP connection to the server: TLS, then whatever `protocol.client_channel` makes of it.

Before the tunnel the owner awaits `next_event`; once it is open, packets and control packets
go to two callbacks, without a queue between.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from vpnd.errors import ProtocolError, VpnError
from vpnd.protocol.client_channel import ClientChannel, ClientEvent
from vpnd.protocol.tls_client import TlsClientStream
from vpnd.protocol.tls_connection import TlsFailed
from vpnd.wire.cstp import PacketType

MAX_EVENTS = 16  # of one connection before its tunnel; a login has four
MAX_BACKLOG = 1024 * 1024  # bytes of ciphertext the server may leave unread

T = TypeVar("T")


class ConnectionFailed(VpnError):
    """This connection is over; the text says why.  Another may work."""


class ServerConnection(asyncio.Protocol):
    """One TCP connection to a server."""

    def __init__(self, tls: TlsClientStream, channel: ClientChannel) -> None:
        self.tls = tls
        self.channel = channel
        self.address: tuple[str, int] = ("", 0)
        self.local: tuple[str, int] = ("", 0)
        self.on_packets: Callable[[list[memoryview]], None] = _ignore
        self.on_control: Callable[[int, memoryview], None] = _ignore_control
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done, with the reason, when nothing will come any more."""
        self.error: ProtocolError | None = None
        """What the server did wrong, if that was the reason."""
        self._events: asyncio.Queue[ClientEvent] = asyncio.Queue()
        self._secured = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.address = transport.get_extra_info("peername")[:2]
        self.local = transport.get_extra_info("sockname")[:2]
        self.flush()

    def data_received(self, data: bytes) -> None:
        try:
            records = self.tls.receive(data)
            if self.tls.established:
                self._secured.set()
            for record in records:
                self._take(record)
        except TlsFailed as exc:
            self.error = exc
            self.flush()  # the alert
            self._at_end(str(exc))  # ocserv ends the refusal of a cookie with an alert
            return
        except ProtocolError as exc:
            self.error = exc
            self.flush()
            self.fail(str(exc))
            return
        self.flush()
        if self.tls.closed:
            self._at_end("the server closed the connection")

    def eof_received(self) -> None:
        self._at_end("the server closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        why = getattr(exc, "strerror", None) or exc
        self._at_end(f"connection lost ({why})" if why else "the server closed the connection")

    def _at_end(self, reason: str) -> None:
        if not self.channel.is_open and not self.lost.done():
            for event in self.channel.eof():
                self._events.put_nowait(event)
        self.fail(reason)

    # plaintext

    def _take(self, record: bytes) -> None:
        if not self.channel.is_open:
            for event in self.channel.receive(record):
                if self._events.qsize() >= MAX_EVENTS:
                    self.fail("the server says more than a login takes")
                    return
                self._events.put_nowait(event)
            self._send_plaintext()
            return
        packets: list[memoryview] = []
        for kind, payload in self.channel.reader.receive(record):
            if kind == PacketType.DATA:
                packets.append(payload)
            else:
                self.on_control(kind, payload)
        if packets:
            self.on_packets(packets)

    async def secured(self) -> None:
        """Return once TLS stands and the server is the right one.

        Raises ConnectionFailed, or ProtocolError (ServerNotTrusted for another server).
        """
        await self._first(self._secured.wait())

    async def next_event(self) -> ClientEvent:
        """Return what the server said next.  Raises ConnectionFailed, ProtocolError."""
        if not self._events.empty():
            return self._events.get_nowait()
        try:
            return await self._first(self._events.get())
        except (ConnectionFailed, ProtocolError):
            if self._events.empty():
                raise
            return self._events.get_nowait()  # what the end itself meant

    async def _first(self, waited: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(waited)
        waiting: set[asyncio.Future[Any]] = {task, self.lost}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        raise self.error or ConnectionFailed(self.lost.result())

    # sending

    def backlog(self) -> int:
        """Return the bytes of ciphertext that wait for the kernel (dataplane.PacketStream)."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    def send_packets(self, slots: list[memoryview]) -> None:
        """Send CSTP packets, one TLS record each (dataplane.PacketStream)."""
        if not self.lost.done():
            self.tls.send_records(slots)
            self.flush()

    def send_control(self, packet: bytes) -> None:
        """Send one CSTP packet."""
        if self.backlog() > MAX_BACKLOG:
            self.fail("the server does not read")
        elif not self.lost.done():
            self.tls.send_records([packet])
            self.flush()

    def send_requests(self) -> None:
        """Send what the channel has made."""
        self._send_plaintext()
        self.flush()

    def _send_plaintext(self) -> None:
        data = self.channel.data_to_send()
        if data and not self.lost.done():
            self.tls.send(data)

    def flush(self) -> None:
        data = self.tls.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # ending

    def fail(self, reason: str) -> None:
        """Note why this is over, and cut the connection."""
        if not self.lost.done():
            self.lost.set_result(reason)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()

    def close(self) -> None:
        """Leave in good order."""
        if not self.lost.done():
            self.tls.shutdown()
            self.flush()
        self.fail("closed by us")


def _ignore(_packets: list[memoryview]) -> None:
    return


def _ignore_control(_kind: int, _payload: memoryview) -> None:
    return
