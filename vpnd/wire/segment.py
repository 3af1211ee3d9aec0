"""Split what one TUN read gave into packets as they travel (the kernel's GSO, done here).

A superpacket is one IP header, one TCP or UDP header and up to 64 KiB of payload.  Every
segment gets a copy of the headers, `gso_size` bytes of payload, and what differs: lengths,
sequence number, checksums, and flags (CWR on the first, FIN and PSH on the last alone).
A datagram that may be fragmented counts up its IPv4 identification; one that may not keeps
it, since nobody may look at it (RFC 6864 section 4).

    out:  | headroom | segment 0 | headroom | segment 1 | ... | headroom | shorter last |

The first segments are made by numpy, as rows of one array; the last is made by itself, as
are all of a short train.  The sum of the pseudo-header is taken from the checksum field,
where the kernel has put it for the whole superpacket: this is right also behind an IPv6
routing header, whose addresses are not those of the pseudo-header.
"""

from struct import Struct
from typing import NamedTuple

import numpy as np

from vpnd.errors import Malformed
from vpnd.wire import checksum, ip, virtio

TCP_HEADER = 20
UDP_HEADER = 8
TCP_CHECKSUM = 16  # offsets in the upper layer's header
UDP_CHECKSUM = 6
FIN, PSH, CWR = 0x01, 0x08, 0x80

MIN_GSO_SIZE = 8  # TCP_MIN_GSO_SIZE of net/tcp.h: a 48-byte MSS less 40 bytes of options
MAX_HEADERS = 120  # IPv4 and TCP with all options; IPv6 extensions may cost a segment or two
MAX_SEGMENTS = -(-ip.MAX_PACKET // MIN_GSO_SIZE)
VECTOR_FROM = 4  # rows; below, array calls cost more than they spare

_U16 = Struct("!H")
_U32 = Struct("!I")


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
    """Return the packets of a frame as views of `out`, each behind `headroom` zero bytes.

    `frame` is one TUN read: virtio_net_hdr and an IP packet that has passed `ip.version`.
    The packets lie back to back from the start of `out`, are complete with right checksums,
    and all but the last have the same length, headroom included.  The views are valid until
    `out` is written again.  Raises Malformed for a frame that contradicts itself or does
    not fit `out` (see `segment_room`); `out` may then have been written to.
    """
    needs_csum, gso_type, gso_size, start, offset = virtio.decode(frame)
    packet = frame[virtio.SIZE :]
    if gso_type != virtio.GSO_NONE:
        if not needs_csum:
            raise Malformed("GSO without NEEDS_CSUM")
        return _write_train(_train(packet, gso_type, gso_size, start, offset), out, headroom)
    end = headroom + len(packet)
    if end > len(out):
        raise Malformed("packet larger than the room for it")
    out[:headroom] = bytes(headroom)
    out[headroom:end] = packet
    if needs_csum:
        _complete(out[headroom:end], start, offset)
    return [out[:end]]


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


def _write_train(train: _Train, out: memoryview, headroom: int) -> list[memoryview]:
    stride = headroom + train.header + train.gso_size
    rows = train.segments - 1
    payload = len(train.packet) - train.header
    end = train.segments * (headroom + train.header) + payload
    if end > len(out):
        raise Malformed("superpacket larger than the room for its segments")
    if rows >= VECTOR_FROM:
        _write_rows(train, out, headroom, rows)
    else:
        for index in range(rows):
            _write_one(train, out, index * stride, headroom, index)
    _write_one(train, out, rows * stride, headroom, rows)
    views = [out[at : at + stride] for at in range(0, rows * stride, stride)]
    views.append(out[rows * stride : end])
    return views


def _headers(train: _Train, index: int, payload_size: int) -> bytearray:
    """Return the headers of one segment, its upper checksum being that of an empty payload.

    Flags are those of segment `index`; only the payload's sum is missing.
    """
    packet, is_tcp, upper, header_size, gso_size, count, seed = train
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
        if index < count - 1:
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
    header = _headers(train, index, len(payload))
    check = train.upper + (TCP_CHECKSUM if train.is_tcp else UDP_CHECKSUM)
    value = (_U16.unpack_from(header, check)[0] - checksum.word_sum(payload)) % checksum.MODULUS
    _U16.pack_into(header, check, value if train.is_tcp else value or 0xFFFF)
    out[at : at + headroom] = bytes(headroom)
    at += headroom
    out[at : at + train.header] = header
    at += train.header
    out[at : at + len(payload)] = payload


def _write_rows(train: _Train, out: memoryview, headroom: int, rows: int) -> None:
    """Write segments 0..rows-1, none of which is the last."""
    packet, is_tcp, upper, header_size, gso_size, _count, _seed = train
    stride = headroom + header_size + gso_size
    header = _headers(train, 1, gso_size)  # the second: without CWR, FIN and PSH
    shape = (rows, gso_size)
    steps = np.arange(-1, rows - 1)

    template = np.frombuffer(bytes(headroom) + header, np.uint8)
    np.ndarray((rows, len(template)), np.uint8, out, 0, (stride, 1))[:] = template
    body = np.ndarray(shape, np.uint8, packet, header_size)
    np.ndarray(shape, np.uint8, out, headroom + header_size, (stride, 1))[:] = body

    sums = checksum.row_sums(
        packet, offset=header_size, rows=rows, width=gso_size, stride=gso_size
    )
    check = upper + (TCP_CHECKSUM if is_tcp else UDP_CHECKSUM)
    sums -= _U16.unpack_from(header, check)[0]
    if is_tcp:
        first = _U32.unpack_from(header, upper + 4)[0]
        sequence = (first + steps * gso_size) & 0xFFFFFFFF
        np.ndarray((rows,), ">u4", out, headroom + upper + 4, (stride,))[:] = sequence
        sums += sequence - first  # 65536 is 1: a 32-bit number is the sum of its halves
    values = -sums % checksum.MODULUS
    if not is_tcp:
        values[values == 0] = 0xFFFF
    np.ndarray((rows,), ">u2", out, headroom + check, (stride,))[:] = values

    if header[0] >> 4 == 4 and not header[6] & ip.IPV4_DONT_FRAGMENT >> 8:
        number, value = _U16.unpack_from(header, 4)[0], _U16.unpack_from(header, 10)[0]
        numbers = (number + steps) & 0xFFFF
        np.ndarray((rows,), ">u2", out, headroom + 4, (stride,))[:] = numbers
        values = (value - (numbers - number)) % checksum.MODULUS
        np.ndarray((rows,), ">u2", out, headroom + 10, (stride,))[:] = values
    if is_tcp and packet[upper + 13] & CWR:
        _write_one(train, out, 0, headroom, 0)
