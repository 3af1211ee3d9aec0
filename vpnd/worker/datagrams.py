"""UDP beside the data path: DTLS handshakes, what is not data, and clients that moved.

A datagram from an address without a channel is one of three things: a ClientHello that
names a session by its App-ID, the next step of a handshake under way, or a record of a
client whose outer address changed.  Anything else is dropped in silence, without state.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest

from vpnd import log
from vpnd.dataplane import counters
from vpnd.dataplane.counters import Drops
from vpnd.dataplane.inbound import Control
from vpnd.dataplane.peer import DtlsPath, Peer, PeerTable
from vpnd.dataplane.udp_socket import RECEIVE_SIZE, Ancillary, Train, UdpSocket
from vpnd.errors import Malformed
from vpnd.protocol.dtls_handshake import DtlsContext, DtlsHandshake, HandshakeFailed
from vpnd.wire.cstp import PacketType
from vpnd.wire.dtls_hello import is_client_hello, peek_client_hello
from vpnd.wire.dtls_record import ALERT, APPLICATION_DATA, HANDSHAKE
from vpnd.worker.tunnel import Tunnel
from vpnd.worker.turns import Turns

HANDSHAKES_PER_TUNNEL = 4  # under way at once; a fifth waits until one ends
SLOW_HANDSHAKE = 1.0  # seconds; one that takes longer gives way to a fifth
HANDSHAKES_TOTAL = 512  # 70 KiB each while they last
WAITING_STEPS = 256  # datagrams that may wait for their turn; clients repeat what is lost
REBIND_CANDIDATES = 4  # sessions of the same outer host that a stray record is tried on
REBIND_TRIES_PER_SECOND = 50  # stray records looked at; a flood of them costs no more

Address = tuple[str, int]


@dataclass(slots=True)
class _Pending:
    """A handshake that has not completed."""

    tunnel: Tunnel
    random: bytes
    """The client's, from its hello: a repeated hello has the same."""
    handshake: DtlsHandshake
    udp: UdpSocket
    ancillary: Ancillary


class Datagrams:
    """Everything that arrives by UDP and is not a data packet of a known channel."""

    def __init__(
        self,
        context: DtlsContext | None,
        peers: PeerTable,
        drops: Drops,
        clock: Callable[[], float],
        tunnels_of_host: Callable[[str], Iterable[Tunnel]],
        call_soon: Callable[[Callable[[], None]], object],
        prove: Callable[[Tunnel], None],
    ) -> None:
        self._context = context
        self._peers = peers
        self._drops = drops
        self._clock = clock
        self._tunnels_of_host = tunnels_of_host
        self._turns = Turns(call_soon)
        self._prove = prove
        self._by_app_id: dict[bytes, Tunnel] = {}
        self._by_peer: dict[Peer, Tunnel] = {}
        self._pending: dict[Address, _Pending] = {}
        self._tries_left = REBIND_TRIES_PER_SECOND
        self._tries_second = 0
        self._scratch = memoryview(bytearray(RECEIVE_SIZE))

    def add(self, tunnel: Tunnel) -> None:
        """Expect this tunnel's ClientHello."""
        self._by_app_id[tunnel.app_id] = tunnel
        self._by_peer[tunnel.peer] = tunnel

    def remove(self, tunnel: Tunnel) -> None:
        if self._by_app_id.get(tunnel.app_id) is tunnel:
            del self._by_app_id[tunnel.app_id]
        self._by_peer.pop(tunnel.peer, None)
        for address in [a for a, p in self._pending.items() if p.tunnel is tunnel]:
            self._drop_pending(address)

    def on_stray(self, udp: UdpSocket, train: Train, datagram: memoryview) -> None:
        """Take one datagram from an address that has no channel; it is only borrowed."""
        if datagram and datagram[0] == APPLICATION_DATA:
            self._rebind(udp, train, datagram)
        elif train.address in self._pending or self._tunnel_of(datagram) is not None:
            self._put_off(udp, train.address, train.ancillary, bytes(datagram))
        else:
            self._drops.add(counters.UNKNOWN_SOURCE)  # junk never takes a place in the line

    def _put_off(
        self, udp: UdpSocket, address: Address, ancillary: Ancillary, datagram: bytes
    ) -> None:
        """Let a handshake's datagram wait until the data of this wake-up is through."""
        if len(self._turns) >= WAITING_STEPS:
            self._drops.add(counters.HANDSHAKE_LIMIT)
            return
        train = Train(memoryview(datagram), len(datagram), address, ancillary)
        self._turns.add(partial(self._handshake_datagram, udp, train))

    def _handshake_datagram(self, udp: UdpSocket, train: Train) -> None:
        datagram = train.data
        pending = self._pending.get(train.address)
        if is_client_hello(datagram) and self._is_new(pending, datagram):
            self._hello(udp, train, datagram)
        elif pending is not None:
            self._step(train.address, pending, datagram)
        else:
            self._drops.add(counters.UNKNOWN_SOURCE)

    def _is_new(self, pending: _Pending | None, datagram: memoryview) -> bool:
        """A repeated ClientHello belongs to the handshake it began."""
        if pending is None:
            return True
        tunnel = self._tunnel_of(datagram)
        if tunnel is pending.tunnel:  # the same client, perhaps in a new attempt
            return peek_client_hello(datagram).random != pending.random
        return tunnel is not None

    def _tunnel_of(self, datagram: bytes | memoryview) -> Tunnel | None:
        """Return the tunnel that a ClientHello names, None for anything else."""
        if not is_client_hello(datagram):
            return None
        try:
            return self._by_app_id.get(peek_client_hello(datagram).app_id)
        except Malformed:
            return None

    def _hello(self, udp: UdpSocket, train: Train, datagram: memoryview) -> None:
        tunnel = self._tunnel_of(datagram)
        if tunnel is None or self._context is None:
            self._drops.add(counters.UNKNOWN_SOURCE)
            return
        self._drop_pending(train.address)
        if not self._make_room(tunnel, train.address[0]):
            tunnel.peer.drops.add(counters.HANDSHAKE_LIMIT)
            return
        random = peek_client_hello(datagram).random
        handshake = DtlsHandshake(self._context, tunnel.psk, now=self._clock())
        pending = _Pending(tunnel, random, handshake, udp, train.ancillary)
        self._pending[train.address] = pending
        tunnel.pending += 1
        self._step(train.address, pending, datagram)

    def _make_room(self, tunnel: Tunnel, host: str) -> bool:
        """Return whether another handshake may begin; perhaps one that stands still gives way.

        Whoever has seen an App-ID may send it again: he must not keep the client out.
        """
        if len(self._pending) >= HANDSHAKES_TOTAL:
            return False
        if tunnel.pending < HANDSHAKES_PER_TUNNEL:
            return True
        home, now = tunnel.channel.address[0], self._clock()
        held = [(a, p.handshake) for a, p in self._pending.items() if p.tunnel is tunnel]
        strangers = [(a, h) for a, h in held if a[0] != home]
        slow = [(a, h) for a, h in held if now - h.started_at >= SLOW_HANDSHAKE]
        if host == home:
            victims = strangers or slow
        else:
            victims = [each for each in slow if each in strangers]
        if victims:
            self._drop_pending(victims[0][0])  # the oldest: a dictionary keeps the order
        return bool(victims)

    def _step(self, address: Address, pending: _Pending, datagram: memoryview) -> None:
        handshake = pending.handshake
        try:
            handshake.receive(bytes(datagram), now=self._clock())
        except HandshakeFailed:
            self._drop_pending(address)
            return
        self._flush(handshake, pending.udp, address, pending.ancillary)
        if handshake.keys is not None:
            self._complete(address, pending)

    def _complete(self, address: Address, pending: _Pending) -> None:
        """Replace the tunnel's channel; it carries data once the client has used it."""
        self._drop_pending(address)
        tunnel = pending.tunnel
        path = DtlsPath(
            tunnel.peer,
            pending.udp,
            address,
            pending.ancillary,
            pending.handshake,
            self._clock(),
        )
        self._peers.set_path(path)
        log.event(
            "DTLS channel ready",
            level=logging.DEBUG,  # as it should be: that UDP does not pass is the news
            user=tunnel.user,
            session=tunnel.session,
            address=log.endpoint(address),
            cipher=path.sealer.suite.name,
        )

    @staticmethod
    def _flush(
        handshake: DtlsHandshake, udp: UdpSocket, address: Address, ancillary: Ancillary
    ) -> None:
        for flight in handshake.data_to_send():
            udp.send(flight, address, ancillary)

    def _drop_pending(self, address: Address) -> None:
        pending = self._pending.pop(address, None)
        if pending is not None:
            pending.tunnel.pending -= 1
            pending.handshake.close()

    def on_confirmed(self, path: DtlsPath) -> None:
        """An authentic data record came in on a channel that carries no packets of ours.

        The first one answers our Finished: DTLS carries the packets from now on.  A channel
        that was given up has to answer a question first, or one that UDP reaches in one
        direction alone would be taken up, and packets lost, with every record.
        """
        tunnel = self._by_peer.get(path.peer)
        if not path.confirmed:
            path.confirmed = True
            self._use(path)
            if tunnel is not None and not tunnel.proved:
                self._prove(tunnel)
        elif not path.peer.dtls_active and path.peer.liveness.may_ask_dtls(self._clock()):
            self._answer(path, bytes([PacketType.DPD_REQUEST]))

    @staticmethod
    def _use(path: DtlsPath) -> None:
        path.peer.liveness.answered_dtls()
        if path.sealer.records_left and path.peer.dtls is path:
            path.peer.dtls_active = True

    def on_control(self, control: Control) -> None:
        """Take a record of a known channel that is not a data packet."""
        path = control.path
        if not control.authentic:
            self._unauthentic(control)
        elif control.kind == HANDSHAKE:
            self._repeat_flight(path)
        elif control.kind == ALERT:
            self._peers.drop_path(path.peer)
        elif control.kind == APPLICATION_DATA and control.payload:
            self._packet(path, control.payload)

    def _packet(self, path: DtlsPath, payload: bytes) -> None:
        if payload[0] == PacketType.DPD_REQUEST:
            # echoed whole: stock clients measure the path with it before they bring up the TUN
            self._answer(path, bytes([PacketType.DPD_RESPONSE]) + payload[1:])
        elif payload[0] == PacketType.DPD_RESPONSE:
            self._use(path)

    def _answer(self, path: DtlsPath, payload: bytes) -> None:
        tunnel = self._by_peer.get(path.peer)
        if tunnel is not None:
            tunnel.send_dtls(payload)

    def _unauthentic(self, control: Control) -> None:
        """Take what may belong to a handshake; anybody can send it from this address.

        The client that repeats its last flight shows it by the Finished in it, which is
        authentic: forged records must not use up our repetitions.
        """
        path = control.path
        if path.address in self._pending or self._tunnel_of(control.payload) is not None:
            self._put_off(path.udp, path.address, path.ancillary, control.payload)

    def _repeat_flight(self, path: DtlsPath) -> None:
        handshake = path.handshake
        if isinstance(handshake, DtlsHandshake):
            handshake.repeat_last_flight(now=self._clock())
            self._flush(handshake, path.udp, path.address, path.ancillary)

    def _rebind(self, udp: UdpSocket, train: Train, datagram: memoryview) -> None:
        """Find the session whose client now sends from another address or port.

        A client that moved is not heard any more where it was: the most silent ones are tried.
        """
        neighbours = self._tunnels_of_host(train.address[0]) if self._may_try() else ()
        paths = [(t, t.peer.dtls) for t in neighbours if t.peer.dtls is not None]
        for tunnel, path in nsmallest(REBIND_CANDIDATES, paths, key=_last_heard):
            try:
                _, sequence, _ = path.opener.open(datagram, self._scratch)
            except Malformed:
                continue
            if sequence <= path.replay.newest:
                break  # one that was overtaken must not move the client back (RFC 9146, 6)
            # it is not taken here: the data path opens it once more, as of a known address
            self._peers.move_path(path, udp, train.address, train.ancillary)
            log.event(
                "client moved",
                user=tunnel.user,
                session=tunnel.session,
                address=log.endpoint(train.address),
            )
            return
        self._drops.add(counters.UNKNOWN_SOURCE)

    def _may_try(self) -> bool:
        """Spend one of this second's tries."""
        second = int(self._clock())
        if second != self._tries_second:
            self._tries_second, self._tries_left = second, REBIND_TRIES_PER_SECOND
        self._tries_left -= 1
        return self._tries_left >= 0

    def expire(self, now: float) -> None:
        """Give up handshakes that take too long."""
        late = [a for a, p in self._pending.items() if p.handshake.expire(now=now)]
        for address in late:
            self._drop_pending(address)


def _last_heard(candidate: tuple[Tunnel, DtlsPath]) -> float:
    return candidate[0].peer.liveness.heard_dtls_at
