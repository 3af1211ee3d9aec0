"""Inbound: network -> open -> replay window -> source check -> coalesce -> TUN.

Anything that is not a data packet on a known path goes on a list that the session code
gets after the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from vpnd.dataplane import counters
from vpnd.dataplane.counters import Drops
from vpnd.dataplane.peer import DtlsPath, Peer, PeerTable
from vpnd.dataplane.tun_queue import TunQueue
from vpnd.dataplane.udp_socket import RECEIVE_SIZE, RECEIVES_PER_WAKEUP, Train, UdpSocket
from vpnd.errors import Malformed
from vpnd.wire import ip
from vpnd.wire.coalesce import MAX_SEGMENTS, coalesce
from vpnd.wire.cstp import PacketType
from vpnd.wire.dtls_record import APPLICATION_DATA, HEADER, RecordSealer, split_records
from vpnd.wire.rows import MAX_ROWS, Cells, RecordRows, Rows
from vpnd.wire.virtio import PLAIN

TYPE_SIZE = 1  # the packet type, in front of each packet in a record
VECTOR_FROM = 4  # records; below, array calls cost more than they spare
_RETRY_AFTER = 8  # records, where a train was not in order: looking at the rest anew costs as much
# Payloads are shorter than records, but runs of one size, of VECTOR_FROM at least, begin at a
# multiple of it.
_ROOM = RECEIVES_PER_WAKEUP * RECEIVE_SIZE * 5 // 4
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
        self._rows = RecordRows()
        self._room = Cells(memoryview(bytearray(_ROOM)))
        self._used = 0

    def on_readable(self, udp: UdpSocket) -> None:
        """Take a bounded number of trains and write their packets in as few frames as possible."""
        now = self._clock()
        packets: list[Rows | bytes] = []
        controls: list[Control] = []
        owner: Peer | None = None
        self._used = 0
        for found in udp.receive_some():
            train = found
            path = self._peers.outer.get(train.address)
            if path is None:
                train = self._strays(udp, train)
                path = self._peers.outer.get(train.address)
                if path is None:
                    continue
            if path.peer is not owner:
                self._write(owner, packets, TYPE_SIZE, now)
                packets, owner = [], path.peer
            self._open(path, udp, train, packets, controls, now)
        written = self._write(owner, packets, TYPE_SIZE, now)
        for control in controls:
            self._on_control(control)
        if written and self._tun.on_written is not None:
            self._tun.on_written()

    def _strays(self, udp: UdpSocket, train: Train) -> Train:
        """Show each datagram to the session code, until one tells whose they are.

        Return the train from that one on.
        """
        for at in range(0, len(train.data), train.size):
            self._on_stray(udp, train, train.data[at : at + train.size])
            if train.address in self._peers.outer:
                return replace(train, data=train.data[at:], at=train.at + at)
        return train

    def _open(
        self,
        path: DtlsPath,
        udp: UdpSocket,
        train: Train,
        packets: list[Rows | bytes],
        controls: list[Control],
        now: float,
    ) -> None:
        """Open the records of one train; add the packets, their type byte in front."""
        data, size = train.data, train.size
        if len(data) <= size:  # the way of a single packet is as short as can be
            if self._open_datagram(path, data, packets, controls):
                self._heard(path, now)
            return
        full, at, rows_from, authentic = len(data) // size, 0, 0, False
        ciphertexts = self._ciphertexts(path, udp, train, full)
        while at * size < len(data):
            if at >= rows_from and len(ciphertexts) - at >= VECTOR_FROM:
                some = ciphertexts[at : at + MAX_ROWS]
                count, fresh = self._open_rows(path, train, at, some, packets, controls)
                at += count
                authentic = authentic or fresh
                if count == len(some):
                    continue
                rows_from = at + _RETRY_AFTER
            if at * size < len(data):
                datagram = data[at * size : at * size + size]
                if self._open_datagram(path, datagram, packets, controls):
                    authentic = True
                at += 1
        if authentic:
            self._heard(path, now)

    def _heard(self, path: DtlsPath, now: float) -> None:
        path.peer.liveness.heard_dtls(now)
        if not (path.confirmed and path.peer.dtls_active):
            self._on_confirmed(path)

    @staticmethod
    def _ciphertexts(
        path: DtlsPath, udp: UdpSocket, train: Train, count: int
    ) -> Sequence[memoryview]:
        """Return what to decrypt of the train's full records, nothing where that is no train."""
        size, prefix = train.size, path.opener.prefix_size
        if count < VECTOR_FROM or size <= prefix:
            return ()
        first, odd = divmod(train.at, size)
        if odd:
            data = train.data
            return [data[at + prefix : at + size] for at in range(0, count * size, size)]
        return udp.cells.views(size, count, first=first, skip=prefix)

    def _open_rows(
        self,
        path: DtlsPath,
        train: Train,
        at: int,
        ciphertexts: Sequence[memoryview],
        packets: list[Rows | bytes],
        controls: list[Control],
    ) -> tuple[int, bool]:
        """Open records from `at` on; return how many were in order, and if any was no replay."""
        size, room = train.size, self._room
        stride = max(size - path.opener.suite.overhead, 1)
        first = -(-self._used // stride)
        data = train.data[at * size :]
        sequence, count = path.opener.open_rows(self._rows, data, size, ciphertexts, room, first)
        if not count:
            return 0, False
        start = first * stride
        self._used = start + count * stride
        rows = Rows(room.buffer, start, stride, count, TYPE_SIZE)
        accepted = path.replay.accept_run(sequence, count)
        if accepted and not np.ndarray((count,), np.uint8, room.buffer, start, (stride,)).any():
            packets.append(rows)
            return count, True
        fresh = False
        for number, payload in enumerate(room.views(stride, count, first=first)):
            if accepted or path.replay.accept(sequence + number):
                fresh = True
                self._sort(path, bytes(payload), packets, controls)
            else:
                path.peer.drops.add(counters.REPLAYED)
        return count, fresh

    def _open_datagram(
        self,
        path: DtlsPath,
        datagram: memoryview,
        packets: list[Rows | bytes],
        controls: list[Control],
    ) -> bool:
        """Open the records of one datagram; return whether one of them was authentic data."""
        authentic = False
        for record in self._records(datagram):
            try:
                kind, sequence, payload = path.opener.read(record)
            except Malformed:
                self._refused(path, record, controls)
                continue
            if not path.replay.accept(sequence):
                path.peer.drops.add(counters.REPLAYED)
                continue
            if kind == APPLICATION_DATA:
                authentic = True
                self._sort(path, payload, packets, controls)
            else:
                controls.append(Control(path, kind, payload, authentic=True))
        return authentic

    @staticmethod
    def _sort(
        path: DtlsPath, payload: bytes, packets: list[Rows | bytes], controls: list[Control]
    ) -> None:
        if payload and payload[0] == PacketType.DATA:
            packets.append(payload)
        else:
            controls.append(Control(path, APPLICATION_DATA, payload, authentic=True))

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
        self._write(peer, packets, 0, self._clock())

    def _write(
        self,
        peer: Peer | None,
        packets: Sequence[Rows | bytes | memoryview],
        headroom: int,
        now: float,
    ) -> bool:
        """Write what the peer may send; return whether there was any."""
        if peer is None or not packets:
            return False
        if len(packets) == 1 and not isinstance(packets[0], Rows):
            packet = memoryview(packets[0])[headroom:]
            if not self._may_send(peer, packet, 1):
                return False
            peer.liveness.data(now)
            if not self._tun.write((PLAIN, packet)):
                peer.drops.add(counters.TUN_FULL)
            return True
        most = MAX_SEGMENTS if self._tun.gso else 1
        judge = partial(self._may_send, peer)
        frames = coalesce(packets, headroom=headroom, judge=judge, most=most)
        if frames:
            peer.liveness.data(now)
        for pieces in frames:
            if not self._tun.write(pieces):
                peer.drops.add(counters.TUN_FULL)
        return bool(frames)

    def _may_send(self, peer: Peer, packet: memoryview, count: int) -> bool:
        """Return whether packets like this are packets and come from the peer's own address.

        From a gateway they must be for our own inner address instead.
        """
        try:
            source = ip.destination(packet) if peer.is_gateway else ip.source(packet)
        except Malformed:
            peer.drops.add(counters.INNER_MALFORMED, count)
            return False
        if source in (peer.address4, peer.address6):
            peer.rx_packets += count
            peer.rx_bytes += count * len(packet)
            return True
        link_local = source[:2] == _LINK_LOCAL6 or source == _UNSPECIFIED6
        local = len(source) == 16 and link_local
        peer.drops.add(counters.LINK_LOCAL if local else counters.INNER_SOURCE, count)
        return False


def seal_one(sealer: RecordSealer, payload: bytes) -> bytes:
    """Return one record; for the few that are not data packets."""
    out = memoryview(bytearray(len(payload) + sealer.suite.overhead))
    sealer.seal_batch([memoryview(payload)], out)
    return bytes(out)
