"""Inbound: network -> open -> replay window -> source check -> coalesce -> TUN.

Anything that is not a data packet on a known path goes on a list that the session code
gets after the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vpnd.dataplane import counters
from vpnd.dataplane.counters import Drops
from vpnd.dataplane.peer import DtlsPath, Peer, PeerTable
from vpnd.dataplane.tun_queue import TunQueue
from vpnd.dataplane.udp_socket import RECEIVE_SIZE, Train, UdpSocket
from vpnd.errors import Malformed
from vpnd.wire import ip
from vpnd.wire.coalesce import coalesce
from vpnd.wire.cstp import PacketType
from vpnd.wire.dtls_record import APPLICATION_DATA, HEADER, RecordSealer, split_records

RECEIVES_PER_WAKEUP = 12  # trains; coalescing across them is worth 10-20 %
_LINK_LOCAL6 = b"\xfe\x80"
_UNSPECIFIED6 = bytes(16)


@dataclass(slots=True)
class Control:
    """A record that is not a data packet."""

    path: DtlsPath
    kind: int
    """Content type of the record."""
    payload: bytes
    """Plaintext if authentic (type byte first), else the whole record as it came."""
    authentic: bool


class Inbound:
    """Writes what authentic clients send to the TUN."""

    def __init__(
        self,
        tun: TunQueue,
        peers: PeerTable,
        drops: Drops,
        clock: Callable[[], float],
        *,
        on_control: Callable[[Control], None],
        on_stray: Callable[[UdpSocket, Train, memoryview], None],
        on_confirmed: Callable[[DtlsPath], None],
    ) -> None:
        self._tun = tun
        self._peers = peers
        self._drops = drops
        self._clock = clock
        self._on_control = on_control
        self._on_stray = on_stray
        self._on_confirmed = on_confirmed
        self._room = memoryview(bytearray(RECEIVES_PER_WAKEUP * RECEIVE_SIZE))

    def on_readable(self, udp: UdpSocket) -> None:
        """Take a bounded number of trains and write their packets in as few frames as possible."""
        now = self._clock()
        packets: list[memoryview] = []
        controls: list[Control] = []
        owner: Peer | None = None
        used = 0
        for _ in range(RECEIVES_PER_WAKEUP):
            train = udp.receive()
            if train is None:
                break
            path = self._peers.outer.get(train.address)
            if path is None:
                train = self._strays(udp, train)
                path = self._peers.outer.get(train.address)
                if path is None:
                    continue
            if path.peer is not owner:
                self._write(owner, packets, now)
                packets, owner = [], path.peer
            used = self._open(path, train, used, packets, controls, now)
        self._write(owner, packets, now)
        for control in controls:
            self._on_control(control)

    def _strays(self, udp: UdpSocket, train: Train) -> Train:
        """Show each datagram to the session code, until one tells whose they are.

        Return the train from that one on.
        """
        for at in range(0, len(train.data), train.size):
            self._on_stray(udp, train, train.data[at : at + train.size])
            if train.address in self._peers.outer:
                return Train(train.data[at:], train.size, train.address, train.ancillary)
        return train

    def _open(
        self,
        path: DtlsPath,
        train: Train,
        used: int,
        packets: list[memoryview],
        controls: list[Control],
        now: float,
    ) -> int:
        """Open the records of one train; return how much of the room is used."""
        peer, room, opener, replay = path.peer, self._room, path.opener, path.replay
        authentic = False
        for at in range(0, len(train.data), train.size):
            datagram = train.data[at : at + train.size]
            for record in self._records(datagram):
                try:
                    kind, sequence, size = opener.open(record, room[used:])
                except Malformed:
                    self._refused(path, record, controls)
                    continue
                if not replay.accept(sequence):
                    peer.drops.add(counters.REPLAYED)
                    continue
                payload = room[used : used + size]
                if kind != APPLICATION_DATA:
                    controls.append(Control(path, kind, bytes(payload), authentic=True))
                    continue
                authentic = True
                if size and payload[0] == PacketType.DATA:
                    packets.append(payload[1:])
                    used += size
                else:
                    controls.append(Control(path, kind, bytes(payload), authentic=True))
        if authentic:
            peer.liveness.heard_dtls(now)
            if not (path.confirmed and peer.dtls_active):
                self._on_confirmed(path)
        return used

    def _records(self, datagram: memoryview) -> Sequence[memoryview]:
        """Return the datagram's records: nearly always it is one."""
        size = len(datagram)
        if size >= HEADER.size and size == HEADER.size + (datagram[11] << 8 | datagram[12]):
            return (datagram,)
        try:
            return split_records(datagram)
        except Malformed:
            self._drops.add(counters.NOT_AUTHENTIC)
            return ()

    def _refused(self, path: DtlsPath, record: memoryview, controls: list[Control]) -> None:
        """Keep the first fragment of a handshake: a repeated Finished, or a new ClientHello."""
        kind = record[0]
        if kind == APPLICATION_DATA:
            path.peer.drops.add(counters.NOT_AUTHENTIC)
        else:
            controls.append(Control(path, kind, bytes(record), authentic=False))

    def from_tls(self, peer: Peer, packets: Sequence[memoryview]) -> None:
        """Take the data packets one reading of a TLS channel brought."""
        self._write(peer, packets, self._clock())

    def _write(self, peer: Peer | None, packets: Sequence[memoryview], now: float) -> None:
        if peer is None or not packets:
            return
        good = [packet for packet in packets if self._may_send(peer, packet)]
        if not good:
            return
        peer.rx_packets += len(good)
        peer.rx_bytes += sum(map(len, good))
        peer.liveness.data(now)
        for pieces in coalesce(good):
            if not self._tun.write(pieces):
                peer.drops.add(counters.TUN_FULL)

    def _may_send(self, peer: Peer, packet: memoryview) -> bool:
        """Return whether the packet is one and comes from the peer's own inner address.

        From a gateway it must be for our own inner address instead.
        """
        try:
            source = ip.destination(packet) if peer.is_gateway else ip.source(packet)
        except Malformed:
            peer.drops.add(counters.INNER_MALFORMED)
            return False
        if source in (peer.address4, peer.address6):
            return True
        link_local = source[:2] == _LINK_LOCAL6 or source == _UNSPECIFIED6
        local = len(source) == 16 and link_local
        peer.drops.add(counters.LINK_LOCAL if local else counters.INNER_SOURCE)
        return False


def seal_one(sealer: RecordSealer, payload: bytes) -> bytes:
    """Return one record; for the few that are not data packets."""
    out = memoryview(bytearray(len(payload) + sealer.suite.overhead))
    sealer.seal_batch([memoryview(payload)], out)
    return bytes(out)
