"""Outbound: TUN -> segment -> seal -> network.

    readable TUN -> read frame (superpacket) -> destination -> peer
                 -> segment into slots -> seal_batch -> one sendmsg      DTLS
                                       -> CSTP header -> TLS records     otherwise

One decision per superpacket: all its segments share one flow.  Nothing awaits, nothing is
queued; what cannot be sent now is dropped and counted, as on any link.
"""

from collections.abc import Callable

from vpnd.dataplane import counters
from vpnd.dataplane.counters import Drops
from vpnd.dataplane.peer import DtlsPath, Peer, PeerTable
from vpnd.dataplane.tun_queue import TunQueue
from vpnd.dataplane.udp_socket import Sent
from vpnd.errors import LocalProtocolError, Malformed, ProtocolError
from vpnd.wire import cstp, ip, virtio
from vpnd.wire.dtls_record import MAX_OVERHEAD
from vpnd.wire.segment import segment, segment_room

READS_PER_WAKEUP = 8  # superpackets; then other readers get their turn
TLS_BACKLOG = 256 * 1024  # bytes that may wait for a slow client's TCP connection
DTLS_HEADROOM = 1  # the packet type, 0 for data
TLS_HEADROOM = cstp.HEADER_SIZE
_SEALED_ROOM = segment_room(DTLS_HEADROOM + MAX_OVERHEAD)


class Outbound:
    """Forwards what the kernel routes into the tunnel."""

    def __init__(
        self, tun: TunQueue, peers: PeerTable, drops: Drops, clock: Callable[[], float]
    ) -> None:
        self._tun = tun
        self._peers = peers
        self._drops = drops
        self._clock = clock
        self._slots = memoryview(bytearray(segment_room(TLS_HEADROOM)))
        self._sealed = memoryview(bytearray(_SEALED_ROOM))

    def on_readable(self) -> None:
        """Forward a bounded number of superpackets."""
        now = self._clock()
        for _ in range(READS_PER_WAKEUP):
            frame = self._tun.read()
            if frame is None:
                return
            self.forward(frame, now)

    def forward(self, frame: memoryview, now: float) -> None:
        """Send one frame of the TUN to the peer its destination belongs to."""
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
            if path is None or not self._send_dtls(peer, path, frame, now):
                self._send_tls(peer, frame, now)
        except ProtocolError:  # malformed, or larger than any record: an MTU set by hand
            peer.drops.add(counters.TUN_MALFORMED)

    def _send_dtls(self, peer: Peer, path: DtlsPath, frame: memoryview, now: float) -> bool:
        """Return False when this frame has to go over TLS."""
        slots = segment(frame, self._slots, DTLS_HEADROOM)
        if len(slots[0]) - DTLS_HEADROOM > peer.mtu:
            return False
        try:
            size = path.sealer.seal_batch(slots, self._sealed)
        except LocalProtocolError:
            peer.dtls_active = False
            peer.drops.add(counters.KEYS_USED_UP, len(slots))
            return True
        record = len(slots[0]) + path.sealer.suite.overhead
        result = path.udp.send_train(self._sealed[:size], record, path.address, path.ancillary)
        if result is Sent.FULL:
            peer.drops.add(counters.UDP_FULL, len(slots))
            return True
        if result is Sent.FAILED:
            peer.dtls_active = False
        if result is not Sent.OK:
            return False
        peer.liveness.sent_dtls(now)
        self._count(peer, slots, DTLS_HEADROOM, now)
        return True

    def _send_tls(self, peer: Peer, frame: memoryview, now: float) -> None:
        slots = segment(frame, self._slots, TLS_HEADROOM)
        if peer.stream.backlog() > TLS_BACKLOG:
            peer.drops.add(counters.TLS_BACKLOG, len(slots))
            return
        for slot in slots:
            cstp.write_header(slot, cstp.PacketType.DATA, len(slot) - TLS_HEADROOM)
        peer.stream.send_packets(slots)
        self._count(peer, slots, TLS_HEADROOM, now)

    def _count(self, peer: Peer, slots: list[memoryview], headroom: int, now: float) -> None:
        count = len(slots)
        peer.tx_packets += count
        peer.tx_bytes += (len(slots[0]) - headroom) * (count - 1) + len(slots[-1]) - headroom
        peer.liveness.sent(now)
