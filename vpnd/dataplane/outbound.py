"""Outbound: TUN -> segment -> seal -> network.

    readable TUN -> read frames (superpackets) -> destination -> peer
                 -> split into slots -> gather -> seal -> one sendmsg a train      DTLS
                                     -> CSTP header -> TLS records                 otherwise

One decision per superpacket: all its segments share one flow.  Packets of one size for one peer
are gathered over the superpackets, or the acknowledgements, of a wake-up: trains are full then,
and what is done once for all of them is done seldom.  A wake-up leaves nothing behind.  Nothing
awaits, nothing is queued; what cannot be sent now is dropped and counted, as on any link.
"""

from collections.abc import Callable

from vpnd.dataplane import counters
from vpnd.dataplane.counters import Drops
from vpnd.dataplane.peer import DtlsPath, Peer, PeerTable
from vpnd.dataplane.tun_queue import TunQueue
from vpnd.dataplane.udp_socket import Sent
from vpnd.errors import Malformed, ProtocolError
from vpnd.wire import cstp, ip, virtio
from vpnd.wire.dtls_record import MAX_OVERHEAD
from vpnd.wire.rows import Cells, RecordRows
from vpnd.wire.segment import VECTOR_FROM, Splitter, segment_room

READS_PER_WAKEUP = 64  # frames; then other readers get their turn
BYTES_PER_WAKEUP = 8 * 65536  # superpackets are as many as trains are received in one go
TLS_BACKLOG = 256 * 1024  # bytes that may wait for a slow client's TCP connection
DTLS_HEADROOM = 1  # the packet type, 0 for data
TLS_HEADROOM = cstp.HEADER_SIZE
_SLOTS_FULL = BYTES_PER_WAKEUP + 65536  # bytes; then what was gathered leaves before more is split
_SLOTS_ROOM = _SLOTS_FULL + segment_room(TLS_HEADROOM) + 65536  # the packets' places are aligned
_SEALED_ROOM = segment_room(DTLS_HEADROOM + MAX_OVERHEAD)


class _Gathered:
    """Packets of one size for one path, which wait for each other while frames are split."""

    __slots__ = ("frames", "path", "size", "slots", "tail")

    def __init__(self) -> None:
        self.path: DtlsPath | None = None
        self.size = 0
        """Bytes of each slot."""
        self.slots: list[memoryview] = []
        self.tail: list[memoryview] = []
        """A shorter one behind them, which nothing can follow."""
        self.frames: list[memoryview] = []
        """Where they come from, should they have to go another way."""


class Outbound:
    """Forwards what the kernel routes into the tunnel."""

    def __init__(
        self, tun: TunQueue, peers: PeerTable, drops: Drops, clock: Callable[[], float]
    ) -> None:
        self._tun = tun
        self._peers = peers
        self._drops = drops
        self._clock = clock
        self._splitter = Splitter(memoryview(bytearray(_SLOTS_ROOM)))
        self._sealed = Cells(memoryview(bytearray(_SEALED_ROOM)))
        self._rows = RecordRows()
        self._gathered = _Gathered()
        tun.on_written = self.on_readable

    def on_readable(self) -> None:
        """Forward a bounded number of superpackets."""
        now = self._clock()
        for frame in self._tun.read(READS_PER_WAKEUP, BYTES_PER_WAKEUP):
            self._take(frame, now)
        self._flush(now)

    def forward(self, frame: memoryview, now: float) -> None:
        """Send one frame of the TUN to the peer its destination belongs to."""
        self._take(frame, now)
        self._flush(now)

    def _take(self, frame: memoryview, now: float) -> None:
        peer = self._peer_of(frame)
        if peer is None:
            return
        if self._splitter.used > _SLOTS_FULL:
            self._flush(now)
        path = peer.dtls if peer.dtls_active else None
        try:
            if path is None or not self._gather(path, frame, now):
                self._send_tls(peer, frame, now)
        except ProtocolError:  # malformed, or larger than any record: an MTU set by hand
            peer.drops.add(counters.TUN_MALFORMED)

    def _peer_of(self, frame: memoryview) -> Peer | None:
        try:
            destination = ip.destination(frame[virtio.HEADER.size :])
        except Malformed:
            self._drops.add(counters.TUN_MALFORMED)
            return None
        peer = self._peers.inner.get(destination)
        if peer is None:
            multicast = destination[0] >= 224 if len(destination) == 4 else destination[0] == 255
            peer = None if multicast else self._peers.gateway
        if peer is None:
            self._drops.add(counters.MULTICAST if multicast else counters.NO_PEER)
        return peer

    def _gather(self, path: DtlsPath, frame: memoryview, now: float) -> bool:
        """Take the packets of a frame for the path; return False when it has to go over TLS."""
        slots = self._splitter.split(frame, DTLS_HEADROOM)
        size, peer, gathered = len(slots[0]), path.peer, self._gathered
        if size - DTLS_HEADROOM > peer.mtu:
            return False
        count = len(gathered.slots) + len(slots)
        if (
            gathered.path is not path
            or gathered.size != size
            or gathered.tail
            or count > path.sealer.records_left
            or count * (size + path.sealer.suite.overhead) > _SEALED_ROOM
        ):
            self._send(now)
            if not peer.dtls_active:  # that has shown that UDP does not leave here
                return False
            gathered = self._gathered
        if len(slots) > path.sealer.records_left:
            peer.dtls_active = False
            peer.drops.add(counters.KEYS_USED_UP, len(slots))
            return True
        gathered.path, gathered.size = path, size
        gathered.frames.append(frame)
        if len(slots[-1]) < size:
            gathered.tail.append(slots.pop())
        gathered.slots += slots
        return True

    def _flush(self, now: float) -> None:
        """Send what was gathered, and split into an empty buffer from now on."""
        self._send(now)
        self._splitter.used = 0

    def _send(self, now: float) -> None:
        """Seal and send what was gathered; nothing is then."""
        gathered, self._gathered = self._gathered, _Gathered()
        path = gathered.path
        if path is None:
            return
        peer, packets = path.peer, len(gathered.slots) + len(gathered.tail)
        overhead = path.sealer.suite.overhead
        record = gathered.size + overhead
        data = self._seal(path, gathered, record)
        result = path.udp.send_train(data, record, path.address, path.ancillary)
        if result is Sent.OK:
            peer.tx_packets += packets
            peer.tx_bytes += len(data) - packets * (overhead + DTLS_HEADROOM)
            peer.liveness.sent_dtls(now)
            peer.liveness.sent(now)
        elif result is Sent.FULL:
            peer.drops.add(counters.UDP_FULL, packets)
        else:
            peer.dtls_active = peer.dtls_active and result is not Sent.FAILED
            for frame in gathered.frames:
                self._send_tls(peer, frame, now)

    def _seal(self, path: DtlsPath, gathered: _Gathered, record: int) -> memoryview:
        """Return the records of what was gathered, back to back."""
        sealer, room, slots = path.sealer, self._sealed, gathered.slots
        size = len(slots) * record
        if len(slots) >= VECTOR_FROM:
            sealer.seal_rows(self._rows, slots, room, 0)
            slots = []
        rest = slots + gathered.tail
        if rest:
            size = size - len(slots) * record
            size += sealer.seal_batch(rest, room.buffer[size:])
        return room.buffer[:size]

    def _send_tls(self, peer: Peer, frame: memoryview, now: float) -> None:
        used = self._splitter.used
        slots = self._splitter.split(frame, TLS_HEADROOM)
        self._splitter.used = used  # they are gone when this returns
        if peer.stream.backlog() > TLS_BACKLOG:
            peer.drops.add(counters.TLS_BACKLOG, len(slots))
            return
        for slot in slots:
            cstp.write_header(slot, cstp.PacketType.DATA, len(slot) - TLS_HEADROOM)
        peer.stream.send_packets(slots)
        count = len(slots)
        peer.tx_packets += count
        peer.tx_bytes += sum(map(len, slots)) - count * TLS_HEADROOM
        peer.liveness.sent(now)
