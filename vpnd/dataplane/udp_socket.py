"""The worker's unconnected UDP socket of one address family.

`receive` takes a whole train of equal datagrams at once where the kernel merges them
(UDP_GRO); `send_train` hands one over (UDP_SEGMENT).  Answers leave from the address the
client asked (IP_PKTINFO).  The constants are missing from Python's `socket`.
"""

import errno
import socket
import struct
from dataclasses import dataclass
from enum import Enum

from vpnd.wire.rows import Cells

IP_PKTINFO = 8  # linux/in.h
IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
PMTUDISC_PROBE = 3  # set DF, and do not believe ICMP: the peers probe
UDP_SEGMENT = 103  # linux/udp.h
UDP_GRO = 104
SOL_UDP = 17

MAX_SEGMENTS = 64  # UDP_MAX_SEGMENTS of the oldest kernels
MAX_TRAIN = 65_000  # bytes; a train must fit one IP packet of 65,535 with its headers
RECEIVE_SIZE = 65_536
RECEIVES_PER_WAKEUP = 12  # trains; opening and joining across them is worth more than 10 %
_IN_PKTINFO = struct.Struct("=i 4s 4s")  # ip(7): interface, local address, destination
_IN6_PKTINFO = struct.Struct("=16s i")  # ipv6(7)
_INT = struct.Struct("=i")
_U16 = struct.Struct("=H")
_GSO_REFUSED = frozenset({errno.EIO, errno.EINVAL, errno.EOPNOTSUPP})
_FULL = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})

Ancillary = list[tuple[int, int, bytes]]


class Sent(Enum):
    """What became of a train."""

    OK = 0
    FULL = 1
    """The send buffer is full: the packets are lost, the path is fine."""
    TOO_BIG = 2
    """The path's first link does not carry datagrams of this size."""
    FAILED = 3
    """The kernel refuses to send there."""


@dataclass(slots=True)
class Train:
    """What one `receive` brought, or several that go on where the one before stopped."""

    data: memoryview
    """All datagrams back to back; valid until the next receive to this place."""
    size: int
    """Bytes of each datagram but the last."""
    address: tuple[str, int]
    """Where it came from."""
    ancillary: Ancillary
    """Hand this to `send_train` so that the answer leaves from the address asked."""
    at: int = 0
    """Where `data` begins in the socket's buffer."""


def per_train(size: int) -> int:
    """Return how many datagrams of a size one train carries."""
    return max(1, min(MAX_SEGMENTS, MAX_TRAIN // size))


class UdpSocket:
    """Receives and sends trains of datagrams; owns the socket."""

    __slots__ = ("_ancillary", "cells", "family", "gro", "gso", "gso_reason", "socket")

    def __init__(self, udp: socket.socket, *, gso: bool = True, gro: bool = True) -> None:
        self.socket = udp
        self.family = udp.family
        udp.setblocking(False)
        self.cells = Cells(memoryview(bytearray(RECEIVES_PER_WAKEUP * RECEIVE_SIZE)))
        """What `receive` has brought, to be cut into its datagrams."""
        self._ancillary: dict[bytes, Ancillary] = {}
        self.gro = gro and self._enable(SOL_UDP, UDP_GRO, 1)
        self.gso = gso and self._enable(SOL_UDP, UDP_SEGMENT, 0)
        self.gso_reason = "" if self.gso else "not supported by this kernel"
        if self.family == socket.AF_INET:
            self._enable(socket.IPPROTO_IP, IP_PKTINFO, 1)
            self._enable(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
        else:
            self._enable(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            self._enable(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)

    def _enable(self, level: int, option: int, value: int) -> bool:
        try:
            self.socket.setsockopt(level, option, value)
        except OSError:
            return False
        return True

    def receive_some(self) -> list[Train]:
        """Return what waits, a wake-up's share; trains of one sender and size become one."""
        trains: list[Train] = []
        at = 0
        for _ in range(RECEIVES_PER_WAKEUP):
            train = self.receive(at)
            if train is None:
                break
            at += len(train.data)
            last = trains[-1] if trains else train
            if (
                last is not train
                and last.size == train.size
                and last.address == train.address
                and not len(last.data) % last.size
            ):
                last.data = self.cells.buffer[last.at : at]
            else:
                trains.append(train)
        return trains

    def receive(self, at: int = 0) -> Train | None:
        """Return the next train, or None when nothing waits.

        It is put at a place of the buffer behind which RECEIVE_SIZE bytes are free.
        """
        room = self.cells.buffer[at : at + RECEIVE_SIZE]
        try:
            size, found, _, address = self.socket.recvmsg_into((room,), 128)
        except OSError:  # EAGAIN, or an ICMP error queued for somebody else's datagram
            return None
        segment, ancillary = size, []
        for level, kind, data in found:
            if level == SOL_UDP and kind == UDP_GRO:
                segment = _INT.unpack_from(data)[0]
            elif kind in (IP_PKTINFO, socket.IPV6_PKTINFO):
                ancillary = self._answer_from(level, kind, data)
        # at least 1: an empty datagram has no length to step by
        return Train(room[:size], segment or size or 1, address[:2], ancillary, at)

    def _answer_from(self, level: int, kind: int, data: bytes) -> Ancillary:
        """Return the control message that makes an answer leave from where `data` arrived."""
        cached = self._ancillary.get(data)
        if cached is None:
            if level == socket.IPPROTO_IP:
                _, _, local = _IN_PKTINFO.unpack_from(data)
                answer = _IN_PKTINFO.pack(0, local, local)
            else:
                local, interface = _IN6_PKTINFO.unpack_from(data)
                # a link-local address needs its interface, others must be free to move
                answer = _IN6_PKTINFO.pack(local, interface if local[:2] == b"\xfe\x80" else 0)
            if len(self._ancillary) >= 64:  # local addresses; a host has a handful
                self._ancillary.clear()
            cached = self._ancillary[data] = [(level, kind, answer)]
        return cached

    def send(self, datagram: bytes, address: tuple[str, int], ancillary: Ancillary) -> Sent:
        """Send one datagram."""
        return self._sendmsg(memoryview(datagram), address, ancillary)

    def send_train(
        self, data: memoryview, size: int, address: tuple[str, int], ancillary: Ancillary
    ) -> Sent:
        """Send `data` as datagrams of `size` bytes, the last may be shorter."""
        if not self.gso or len(data) <= size:
            return self._send_each(data, size, address, ancillary)
        step = size * per_train(size)
        extra = [*ancillary, (SOL_UDP, UDP_SEGMENT, _U16.pack(size))]
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            if len(piece) <= size:
                return self._sendmsg(piece, address, ancillary)
            try:
                self.socket.sendmsg([piece], extra, 0, address)
            except OSError as exc:
                if exc.errno in _GSO_REFUSED:
                    return self._without_gso(exc, data[at:], size, address, ancillary)
                return _classify(exc)
        return Sent.OK

    def _without_gso(
        self,
        refusal: OSError,
        data: memoryview,
        size: int,
        address: tuple[str, int],
        ancillary: Ancillary,
    ) -> Sent:
        """Send a refused train one by one, and do so ever after.

        Unless they do not pass one by one either: Linux before 6.14 says EINVAL to datagrams
        too big for this one path, all say it of a blackhole, and others must not pay for it.
        """
        result = self._send_each(data, size, address, ancillary)
        if result is Sent.OK:
            self.gso = False
            self.gso_reason = f"the kernel refused a train ({refusal.strerror})"
        return result

    def _send_each(
        self, data: memoryview, size: int, address: tuple[str, int], ancillary: Ancillary
    ) -> Sent:
        result = Sent.OK
        for at in range(0, len(data), size):
            result = self._sendmsg(data[at : at + size], address, ancillary)
            if result is not Sent.OK:
                break
        return result

    def _sendmsg(
        self, datagram: memoryview, address: tuple[str, int], ancillary: Ancillary
    ) -> Sent:
        try:
            self.socket.sendmsg([datagram], ancillary, 0, address)
        except OSError as exc:
            return _classify(exc)
        return Sent.OK

    def close(self) -> None:
        self.socket.close()


def _classify(error: OSError) -> Sent:
    if error.errno in _FULL:
        return Sent.FULL
    return Sent.TOO_BIG if error.errno == errno.EMSGSIZE else Sent.FAILED
