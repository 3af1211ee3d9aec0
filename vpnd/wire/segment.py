"""Split what one TUN read gave into packets as they travel (the kernel's GSO, done here).

A superpacket is one IP header, one TCP or UDP header and up to 64 KiB of payload.  Every
segment gets a copy of the headers, `gso_size` bytes of payload, and what differs: lengths,
sequence number, checksums, and flags (CWR on the first, FIN and PSH on the last alone).
A datagram that may be fragmented counts up its IPv4 identification; one that may not keeps
it, since nobody may look at it (RFC 6864 section 4).

    out:  | headroom | segment 0 | headroom | segment 1 | ... | headroom | shorter last |

The full segments are made by numpy, as rows of one array; a shorter last one is made by
itself, as are all of a short train.  Arrays and views of the output buffer are kept from train
to train, since a bulk transfer always cuts alike.  The sum of the pseudo-header is taken from
the checksum field, where the kernel has put it for the whole superpacket: this is right also
behind an IPv6 routing header, whose addresses are not those of the pseudo-header.
"""

from struct import Struct
from typing import NamedTuple

import numpy as np

from vpnd.errors import Malformed
from vpnd.wire import checksum, ip, virtio
from vpnd.wire.rows import Cells

TCP_HEADER = 20
UDP_HEADER = 8
TCP_CHECKSUM = 16  # offsets in the upper layer's header
UDP_CHECKSUM = 6
FIN, PSH, CWR = 0x01, 0x08, 0x80

MIN_GSO_SIZE = 8  # TCP_MIN_GSO_SIZE of net/tcp.h: a 48-byte MSS less 40 bytes of options
MAX_HEADERS = 120  # IPv4 and TCP with all options; IPv6 extensions may cost a segment or two
MAX_SEGMENTS = -(-ip.MAX_PACKET // MIN_GSO_SIZE)
VECTOR_FROM = 4  # rows; below, array calls cost more than they spare
MAX_LAYOUTS = 8  # kept for each buffer; flows of one path have one or two

_U16 = Struct("!H")
_U32 = Struct("!I")
_LAST_UNWRAPPED = 0xFFFFFFFF - ip.MAX_PACKET


def segment_room(headroom: int, *, gso_size: int = MIN_GSO_SIZE) -> int:
    """Return the bytes `segment` may need in `out` for segments of `gso_size` or more."""
    segments = -(-ip.MAX_PACKET // gso_size)
    return segments * (headroom + MAX_HEADERS) + ip.MAX_PACKET + ip.IPV6_HEADER


class _Train(NamedTuple):
    """Where things are in one superpacket, all of it checked."""

    packet: memoryview
    is_tcp: bool
    upper: int  # offset of the TCP or UDP header
    header: int  # size of all headers
    gso_size: int
    segments: int
    seed: int  # sum of the pseudo-header without the length


def segment(frame: memoryview, out: memoryview, headroom: int) -> list[memoryview]:
    """Return the packets of a frame as views of `out`: `Splitter.split` for a single time."""
    return Splitter(out).split(frame, headroom)


class Splitter:
    """Splits frames into one output buffer, one behind the other."""

    __slots__ = ("_cells", "_layouts", "_out", "used")

    def __init__(self, out: memoryview) -> None:
        self._out = out
        self.used = 0
        """Where the next packets may begin; the caller sets it back."""
        self._cells = Cells(out)
        self._layouts: dict[tuple[int, int, int, int], _Layout] = {}

    def split(self, frame: memoryview, headroom: int) -> list[memoryview]:
        """Return the packets of a frame as views of `out`, each behind `headroom` zero bytes.

        `frame` is one TUN read: virtio_net_hdr and an IP packet that has passed `ip.version`.
        The packets lie back to back, are complete with right checksums, and all but the last
        have the same length, headroom included.  The views are valid until `used` is set back
        and more is split.  Raises Malformed for a frame that contradicts itself or does
        not fit `out` (see `segment_room`); `out` may then have been written to.
        """
        needs_csum, gso_type, gso_size, start, offset = virtio.decode(frame)
        packet, out = frame[virtio.SIZE :], self._out
        if gso_type != virtio.GSO_NONE:
            if not needs_csum:
                raise Malformed("GSO without NEEDS_CSUM")
            train = _train(packet, gso_type, gso_size, start, offset)
            return self._write_train(train, headroom)
        at = self.used + headroom
        end = at + len(packet)
        if end > len(out):
            raise Malformed("packet larger than the room for it")
        out[self.used : at] = bytes(headroom)
        out[at:end] = packet
        if needs_csum:
            _complete(out[at:end], start, offset)
        slot = out[self.used : end]
        self.used = end
        return [slot]

    def _write_train(self, train: "_Train", headroom: int) -> list[memoryview]:
        out, count, gso_size = self._out, train.segments, train.gso_size
        stride = headroom + train.header + gso_size
        payload = len(train.packet) - train.header
        first = -(-self.used // stride)  # in the grid that the layout is for
        start = first * stride
        end = start + count * (headroom + train.header) + payload
        if end > len(out):
            raise Malformed("superpacket larger than the room for its segments")
        rows = payload // gso_size
        if rows >= VECTOR_FROM:
            key = (headroom, train.header, gso_size, train.upper if train.is_tcp else 0)
            layout = self._layouts.get(key)
            if layout is None:
                if len(self._layouts) >= MAX_LAYOUTS:
                    self._layouts.clear()
                layout = self._layouts[key] = _Layout(train, out, headroom)
            layout.write(train, first, rows)
        else:
            rows = 0
        for index in range(rows, count):
            _write_one(train, out, start + index * stride, headroom, index)
        full = count if end == start + count * stride else count - 1
        views = self._cells.views(stride, full, first=first)
        if full < count:
            views.append(out[start + full * stride : end])
        self.used = end
        return views


def _complete(packet: memoryview, start: int, offset: int) -> None:
    at = start + offset
    if start < ip.IPV4_HEADER or at + 2 > len(packet):
        raise Malformed("checksum outside the packet")
    value = checksum.finish(checksum.word_sum(packet[start:]))
    if offset == UDP_CHECKSUM:
        value = value or 0xFFFF  # zero says "no checksum" (RFC 768)
    _U16.pack_into(packet, at, value)


def _train(packet: memoryview, gso_type: int, gso_size: int, start: int, offset: int) -> _Train:
    protocol, upper = ip.upper_layer(packet)
    is_tcp = gso_type != virtio.GSO_UDP_L4
    if protocol != (ip.TCP if is_tcp else ip.UDP) or start != upper:
        raise Malformed("GSO type and packet disagree")
    is_ipv4 = packet[0] >> 4 == 4
    if is_tcp and is_ipv4 != (gso_type == virtio.GSO_TCPV4):
        raise Malformed("GSO type of the other IP version")
    if is_ipv4 and (packet[6] << 8 | packet[7]) & ip.IPV4_FRAGMENT:
        raise Malformed("GSO of a fragment")
    if offset != (TCP_CHECKSUM if is_tcp else UDP_CHECKSUM):
        raise Malformed("checksum in the wrong place")
    size = len(packet)
    header = upper + (TCP_HEADER if is_tcp else UDP_HEADER)
    if is_tcp and header <= size:
        header = max(header, upper + (packet[upper + 12] >> 4 << 2))
    if header >= size or gso_size < MIN_GSO_SIZE:
        raise Malformed("GSO without payload, or of tiny segments")
    whole_sum = _U16.unpack_from(packet, upper + offset)[0]
    count = -(-(size - header) // gso_size)
    return _Train(packet, is_tcp, upper, header, gso_size, count, whole_sum - (size - upper))


def _headers(train: _Train, index: int, payload_size: int, *, last: bool) -> bytearray:
    """Return the headers of one segment, its upper checksum being that of an empty payload.

    Flags are those of segment `index`, `last` or not; only the payload's sum is missing.
    """
    packet, is_tcp, upper, header_size, gso_size, _count, seed = train
    header = bytearray(packet[:header_size])
    size = header_size + payload_size
    if header[0] >> 4 == 4:
        _U16.pack_into(header, 2, size)
        if not header[6] & ip.IPV4_DONT_FRAGMENT >> 8:
            number = _U16.unpack_from(header, 4)[0] + index
            _U16.pack_into(header, 4, number & 0xFFFF)
        _U16.pack_into(header, 10, 0)
        _U16.pack_into(header, 10, checksum.finish(checksum.word_sum(header[:upper])))
    else:
        _U16.pack_into(header, 4, size - ip.IPV6_HEADER)
    if is_tcp:
        sequence = _U32.unpack_from(header, upper + 4)[0] + index * gso_size
        _U32.pack_into(header, upper + 4, sequence & 0xFFFFFFFF)
        if index:
            header[upper + 13] &= ~CWR
        if not last:
            header[upper + 13] &= ~(FIN | PSH)
    else:
        _U16.pack_into(header, upper + 4, size - upper)
    at = upper + (TCP_CHECKSUM if is_tcp else UDP_CHECKSUM)
    _U16.pack_into(header, at, 0)
    total = seed + size - upper + checksum.word_sum(header[upper:])
    _U16.pack_into(header, at, checksum.finish(total))
    return header


def _write_one(train: _Train, out: memoryview, at: int, headroom: int, index: int) -> None:
    first = train.header + index * train.gso_size
    payload = train.packet[first : first + train.gso_size]
    header = _headers(train, index, len(payload), last=index == train.segments - 1)
    check = train.upper + (TCP_CHECKSUM if train.is_tcp else UDP_CHECKSUM)
    value = (_U16.unpack_from(header, check)[0] - checksum.word_sum(payload)) % checksum.MODULUS
    _U16.pack_into(header, check, value if train.is_tcp else value or 0xFFFF)
    out[at : at + headroom] = bytes(headroom)
    at += headroom
    out[at : at + train.header] = header
    at += train.header
    out[at : at + len(payload)] = payload


class _Layout:
    """Arrays over an output buffer for segments of one size behind headers of one size."""

    __slots__ = ("_bodies", "_checks", "_headers", "_headroom", "_numbers", "_offsets", "_out",
                 "_sequences", "_stride", "_sums")  # fmt: skip

    def __init__(self, train: _Train, out: memoryview, headroom: int) -> None:
        _packet, is_tcp, upper, header, gso_size, _count, _seed = train
        stride = headroom + header + gso_size
        rows, strides = len(out) // stride, (stride,)
        check = headroom + upper + (TCP_CHECKSUM if is_tcp else UDP_CHECKSUM)
        self._out, self._headroom, self._stride = out, headroom, stride
        self._offsets = np.arange(-1, ip.MAX_PACKET // gso_size) * gso_size
        self._headers = np.ndarray((rows, headroom + header), np.uint8, out, 0, (stride, 1))
        self._bodies = np.ndarray((rows, gso_size), np.uint8, out, headroom + header, (stride, 1))
        self._sequences = np.ndarray((rows,), ">u4", out, headroom + upper + 4, strides)
        self._checks = np.ndarray((rows,), ">u2", out, check, strides)
        self._numbers = np.ndarray((rows,), ">u2", out, headroom + 4, strides)
        self._sums = np.ndarray((rows,), ">u2", out, headroom + 10, strides)

    def write(self, train: _Train, first: int, rows: int) -> None:
        """Write segments 0..rows-1, all of them full, from a cell of the buffer on."""
        stop = first + rows
        packet, is_tcp, upper, header_size, gso_size, count, _seed = train
        header = _headers(train, 1, gso_size, last=False)  # without CWR, FIN and PSH
        template = bytes(self._headroom) + header
        self._headers[first:stop] = np.frombuffer(template, np.uint8)
        self._bodies[first:stop] = np.ndarray((rows, gso_size), np.uint8, packet, header_size)
        values = checksum.row_sums(
            packet, offset=header_size, rows=rows, width=gso_size, stride=gso_size
        )
        check = _U16.unpack_from(header, upper + (TCP_CHECKSUM if is_tcp else UDP_CHECKSUM))[0]
        if is_tcp:
            second = _U32.unpack_from(header, upper + 4)[0]
            sequences = self._offsets[:rows] + second
            if not gso_size <= second <= _LAST_UNWRAPPED:
                sequences &= 0xFFFFFFFF
            self._sequences[first:stop] = sequences
            values += sequences  # 65536 is 1: a 32-bit number is the sum of its halves
            values -= second + check
            self._checks[first:stop] = -values % checksum.MODULUS
            flags = packet[upper + 13]
            if flags & CWR:
                self._add_flags(first, upper, CWR)
            if rows == count and flags & (FIN | PSH):
                self._add_flags(stop - 1, upper, flags & (FIN | PSH))
        else:
            values = (check - values) % checksum.MODULUS
            values[values == 0] = 0xFFFF
            self._checks[first:stop] = values
        if header[0] >> 4 == 4 and not header[6] & ip.IPV4_DONT_FRAGMENT >> 8:
            number, value = _U16.unpack_from(header, 4)[0], _U16.unpack_from(header, 10)[0]
            numbers = (number + np.arange(-1, rows - 1)) & 0xFFFF
            self._numbers[first:stop] = numbers
            self._sums[first:stop] = (value - (numbers - number)) % checksum.MODULUS

    def _add_flags(self, row: int, upper: int, flags: int) -> None:
        """Set flags that are clear, and take them off the checksum."""
        at = row * self._stride + self._headroom + upper
        self._out[at + 13] |= flags
        value = _U16.unpack_from(self._out, at + TCP_CHECKSUM)[0] - flags
        _U16.pack_into(self._out, at + TCP_CHECKSUM, value % checksum.MODULUS)
