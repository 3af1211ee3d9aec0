"""Outbound: TUN -> segment -> seal -> network.

    readable TUN -> read frame (superpacket) -> destination -> peer
                 -> split into slots -> seal -> gather -> one sendmsg a train      DTLS
                                     -> CSTP header -> TLS records                 otherwise

One decision per superpacket: all its segments share one flow.  Records of one size for one peer
are gathered over the superpackets, or the acknowledgements, of a wake-up, so that trains are
full; a wake-up leaves nothing behind.  Nothing awaits, nothing is queued; what cannot be sent
now is dropped and counted, as on any link.
"""

from collections.abc import Callable

from vpnd.dataplane import counters
from vpnd.dataplane.counters import Drops
from vpnd.dataplane.peer import DtlsPath, Peer, PeerTable
from vpnd.dataplane.tun_queue import TunQueue
from vpnd.dataplane.udp_socket import Sent, per_train
from vpnd.errors import LocalProtocolError, Malformed, ProtocolError
from vpnd.wire import cstp, ip, virtio
from vpnd.wire.dtls_record import MAX_OVERHEAD
from vpnd.wire.rows import Cells, RecordRows
from vpnd.wire.segment import VECTOR_FROM, Splitter, segment_room

READS_PER_WAKEUP = 8  # superpackets; then other readers get their turn
TLS_BACKLOG = 256 * 1024  # bytes that may wait for a slow client's TCP connection
DTLS_HEADROOM = 1  # the packet type, 0 for data
TLS_HEADROOM = cstp.HEADER_SIZE
_SEALED_ROOM = segment_room(DTLS_HEADROOM + MAX_OVERHEAD)


class _Run:
    """Sealed records of one size that wait for each other, until the wake-up ends at most."""

    __slots__ = ("count", "path", "record", "sent", "tail")

    def __init__(self) -> None:
        self.path: DtlsPath | None = None
        self.record = 0
        """Bytes of each; they lie back to back from the start of the buffer."""
        self.count = 0
        self.sent = 0
        """How many of them have left, or are lost."""
        self.tail = 0
        """Bytes of a shorter record behind them."""


class Outbound:
    """Forwards what the kernel routes into the tunnel."""

    def __init__(
        self, tun: TunQueue, peers: PeerTable, drops: Drops, clock: Callable[[], float]
    ) -> None:
        self._tun = tun
        self._peers = peers
        self._drops = drops
        self._clock = clock
        self._splitter = Splitter(memoryview(bytearray(segment_room(TLS_HEADROOM))))
        self._sealed = Cells(memoryview(bytearray(_SEALED_ROOM)))
        self._rows = RecordRows()
        self._run = _Run()
        self._now = 0.0

    def on_readable(self) -> None:
        """Forward a bounded number of superpackets."""
        now = self._now = self._clock()
        for _ in range(READS_PER_WAKEUP):
            frame = self._tun.read()
            if frame is None:
                break
            self.forward(frame, now)
        self._flush()

    def forward(self, frame: memoryview, now: float) -> None:
        """Take one frame of the TUN for the peer its destination belongs to."""
        try:
            destination = ip.destination(frame[virtio.HEADER.size :])
        except Malformed:
            self._drops.add(counters.TUN_MALFORMED)
            return
        peer = self._peers.inner.get(destination)
        if peer is None:
            multicast = destination[0] >= 224 if len(destination) == 4 else destination[0] == 255
            peer = None if multicast else self._peers.gateway
        if peer is None:
            self._drops.add(counters.MULTICAST if multicast else counters.NO_PEER)
            return
        path = peer.dtls if peer.dtls_active else None
        try:
            if path is None or not self._send_dtls(peer, path, frame):
                self._send_tls(peer, frame, now)
        except ProtocolError:  # malformed, or larger than any record: an MTU set by hand
            peer.drops.add(counters.TUN_MALFORMED)

    def _send_dtls(self, peer: Peer, path: DtlsPath, frame: memoryview) -> bool:
        """Return False when this frame has to go over TLS."""
        slots = self._splitter.split(frame, DTLS_HEADROOM)
        size, overhead = len(slots[0]), path.sealer.suite.overhead
        if size - DTLS_HEADROOM > peer.mtu:
            return False
        run, record = self._run, size + overhead
        room = len(self._sealed.buffer) // record - run.count
        if run.path is not path or run.record != record or room < len(slots):
            self._flush()
            run.path, run.record = path, record
        waiting = run.count - run.sent
        try:
            self._seal(path, slots)
        except LocalProtocolError:
            self._flush()
            peer.dtls_active = False
            peer.drops.add(counters.KEYS_USED_UP, len(slots))
            return True
        earlier, waiting = waiting, run.count - run.sent
        if record <= path.proven and not run.tail:
            waiting -= waiting % per_train(record)
        if not (waiting or run.tail):
            return True
        result = self._send(waiting)
        if result is Sent.OK or result is Sent.FULL:
            if run.sent == run.count:
                self._flush()
            return True
        if earlier:
            peer.drops.add(counters.UDP_REFUSED, earlier)
        run.sent, run.tail = run.count, 0  # this frame goes over TLS instead
        self._flush()
        return False

    def _seal(self, path: DtlsPath, slots: list[memoryview]) -> None:
        """Append the records of the slots, of which the last may be shorter, to the run."""
        run, cells, sealer = self._run, self._sealed, path.sealer
        count, tail = len(slots), 0
        if len(slots) > sealer.records_left:
            raise LocalProtocolError("these keys are used up")
        if len(slots[-1]) < len(slots[0]):
            count, tail = count - 1, len(slots[-1]) + sealer.suite.overhead
        at = run.count
        if count >= VECTOR_FROM:
            sealer.seal_rows(self._rows, slots[:count], cells, at)
            at, slots = at + count, slots[count:]
        if slots:
            sealer.seal_batch(slots, cells.buffer[at * run.record :])
        run.count += count
        run.tail = tail

    def _flush(self) -> None:
        """Send what waits; the run is empty then."""
        run, waiting = self._run, self._run.count - self._run.sent
        if waiting or run.tail:
            packets = waiting + bool(run.tail)
            assert run.path is not None
            if self._send(waiting) not in (Sent.OK, Sent.FULL):
                run.path.peer.drops.add(counters.UDP_REFUSED, packets)
        run.path, run.count, run.sent, run.tail = None, 0, 0, 0

    def _send(self, count: int) -> Sent:
        """Send that many records of the run, and the tail if they are all that is left."""
        run, path = self._run, self._run.path
        assert path is not None
        peer, overhead = path.peer, path.sealer.suite.overhead + DTLS_HEADROOM
        start, stop = run.sent * run.record, (run.sent + count) * run.record
        run.sent += count
        packets, tail = count, 0
        if run.tail and run.sent == run.count:
            packets, tail, run.tail = count + 1, run.tail, 0
        data = self._sealed.buffer[start : stop + tail]
        result = path.udp.send_train(data, run.record, path.address, path.ancillary)
        if result is Sent.OK:
            path.proven = max(path.proven, run.record)
            peer.tx_packets += packets
            peer.tx_bytes += len(data) - packets * overhead
            peer.liveness.sent_dtls(self._now)
            peer.liveness.sent(self._now)
        elif result is Sent.FULL:
            peer.drops.add(counters.UDP_FULL, packets)
        else:
            path.proven = 0
            peer.dtls_active = peer.dtls_active and result is not Sent.FAILED
        return result

    def _send_tls(self, peer: Peer, frame: memoryview, now: float) -> None:
        slots = self._splitter.split(frame, TLS_HEADROOM)
        if peer.stream.backlog() > TLS_BACKLOG:
            peer.drops.add(counters.TLS_BACKLOG, len(slots))
            return
        for slot in slots:
            cstp.write_header(slot, cstp.PacketType.DATA, len(slot) - TLS_HEADROOM)
        peer.stream.send_packets(slots)
        count = len(slots)
        peer.tx_packets += count
        full = len(slots[0]) - TLS_HEADROOM
        peer.tx_bytes += full * (count - 1) + len(slots[-1]) - TLS_HEADROOM
        peer.liveness.sent(now)
