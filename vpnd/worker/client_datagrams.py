"""The DTLS channel of one tunnel, client side: its own socket, its handshake, what is not data.

A fresh socket for each tunnel gives it a port of its own, so that an old and a new tunnel can
live side by side while keys are rotated.
"""

import asyncio
import socket
from collections.abc import Callable

from vpnd import log
from vpnd.dataplane.counters import Drops
from vpnd.dataplane.inbound import Control, Inbound, seal_one
from vpnd.dataplane.peer import DtlsPath, Peer, PeerTable
from vpnd.dataplane.tun_queue import TunQueue
from vpnd.dataplane.udp_socket import Sent, Train, UdpSocket
from vpnd.errors import LocalProtocolError
from vpnd.protocol.dtls_client import (
    MIN_SPACING,
    RETRY_AFTER,
    DtlsClientContext,
    DtlsClientHandshake,
)
from vpnd.protocol.dtls_handshake import HandshakeFailed
from vpnd.wire.cstp import PacketType
from vpnd.wire.dtls_record import ALERT, APPLICATION_DATA

SOCKET_BUFFER = 4 * 1024 * 1024  # asked for; the system may give less
Address = tuple[str, int]


class ClientDatagrams:
    """Makes and keeps the DTLS channel of `peer` to one server address."""

    def __init__(
        self,
        context: DtlsClientContext,
        tun: TunQueue,
        peer: Peer,
        server: Address,
        *,
        psk: bytes,
        app_id: bytes,
        drops: Drops,
        clock: Callable[[], float],
        on_answer: Callable[[], None],
    ) -> None:
        self._context = context
        self._on_answer = on_answer
        self._peer = peer
        self._server = server
        self._psk = psk
        self._app_id = app_id
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._peers = PeerTable()
        self._handshake: DtlsClientHandshake | None = None
        self._next_try = 0.0
        self._udp: UdpSocket | None = None
        self.active = asyncio.Event()
        """The server has answered over DTLS: packets may go there."""
        self._inbound = Inbound(
            tun,
            self._peers,
            drops,
            clock,
            on_control=self._on_control,
            on_stray=self._on_stray,
            on_confirmed=self._on_confirmed,
        )

    def start(self) -> None:
        """Begin a handshake from a fresh port."""
        self._close_socket()
        now = self._clock()
        self._next_try = now + RETRY_AFTER
        try:
            self._udp = self._open_socket()
        except OSError as exc:
            log.warning("no UDP socket", reason=str(exc.strerror))
            return
        self._loop.add_reader(self._udp.socket.fileno(), self._inbound.on_readable, self._udp)
        self._handshake = DtlsClientHandshake(self._context, self._psk, self._app_id)
        self._handshake.start(now)
        self._flush()

    def _open_socket(self) -> UdpSocket:
        family = socket.AF_INET6 if ":" in self._server[0] else socket.AF_INET
        udp = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            udp.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
        return UdpSocket(udp)

    def _close_socket(self) -> None:
        if self._handshake is not None:
            self._handshake.close()
            self._handshake = None
        self._peers.drop_path(self._peer)
        self.active.clear()
        if self._udp is not None:
            self._loop.remove_reader(self._udp.socket.fileno())
            self._udp.close()
            self._udp = None

    def close(self) -> None:
        """End the channel; packets go over TLS, if at all."""
        self._next_try = 0.0
        self._close_socket()

    def _on_stray(self, _udp: UdpSocket, train: Train, datagram: memoryview) -> None:
        handshake = self._handshake
        if handshake is None or train.address != self._server:
            return
        try:
            handshake.receive(bytes(datagram), self._clock())
        except HandshakeFailed as exc:
            self._fail(str(exc))
            return
        self._flush()
        if handshake.keys is not None:
            self._complete(handshake)

    def _flush(self) -> None:
        if self._handshake is not None and self._udp is not None:
            for flight in self._handshake.data_to_send():
                if self._udp.send(flight, self._server, []) is Sent.FAILED:
                    self._fail("the system does not let UDP out")
                    return

    def _fail(self, reason: str) -> None:
        log.event("DTLS handshake failed, going on over TLS", reason=reason)
        self._next_try = max(self._next_try, self._clock() + MIN_SPACING)
        if self._handshake is not None:
            self._handshake.close()
            self._handshake = None

    def _complete(self, handshake: DtlsClientHandshake) -> None:
        assert self._udp is not None
        self._handshake = None
        path = DtlsPath(self._peer, self._udp, self._server, [], handshake, self._clock())
        self._peers.set_path(path)
        path.confirmed = True  # the server's Finished was the proof
        self.ask()  # the server sends nothing before our first record

    def ask(self) -> None:
        """Ask the server over DTLS whether it is there; the answer makes the channel active."""
        self._peer.liveness.asked(self._clock())
        self._send(bytes([PacketType.DPD_REQUEST]))

    def _send(self, payload: bytes) -> None:
        path = self._peer.dtls
        if path is None:
            return
        try:
            record = seal_one(path.sealer, payload)
        except LocalProtocolError:
            self._peer.dtls_active = False
            return
        path.udp.send(record, path.address, path.ancillary)

    def _on_confirmed(self, _path: DtlsPath) -> None:
        """An authentic record proves one direction only: ask before packets go there."""
        if not self._peer.dtls_active and self._peer.liveness.may_ask_dtls(self._clock()):
            self.ask()

    def _on_control(self, control: Control) -> None:
        if not control.authentic:
            return
        if control.kind == ALERT:
            self.restart_later()
        elif control.kind == APPLICATION_DATA and control.payload:
            kind = control.payload[0]
            if kind == PacketType.DPD_REQUEST:
                self._send(bytes([PacketType.DPD_RESPONSE]) + control.payload[1:])
            elif kind == PacketType.DPD_RESPONSE:
                self._answered(control.path)

    def _answered(self, path: DtlsPath) -> None:
        self._peer.liveness.answered_dtls()
        self._on_answer()
        if path is self._peer.dtls and path.sealer.records_left:
            self._peer.dtls_active = True
            self.active.set()

    def restart_later(self) -> None:
        """The channel is dead: try a new one when it is time."""
        self._peer.dtls_active = False
        self.active.clear()
        self._next_try = self._clock() + MIN_SPACING

    def expire(self, now: float) -> None:
        """Repeat what was lost, give up what takes too long, try again when it is time."""
        handshake = self._handshake
        if handshake is not None and now >= handshake.next_deadline():
            if handshake.expire(now):
                self._handshake = None
            else:
                self._flush()
        if self._handshake is None and not self._peer.dtls_active and now >= self._next_try > 0:
            self.start()

    @property
    def offload(self) -> UdpSocket | None:
        """The socket, for the status of its offloads."""
        return self._udp
