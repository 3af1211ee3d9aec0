"""Join consecutive TCP segments of one flow into superpackets (the kernel's GRO, done here).

The kernel then runs its TCP once for forty segments.  What it makes of a superpacket must be
what it would have made of the segments, so everything that is not plain data in order is
passed on as it came:

- headers: IPv4 without options or IPv6 without extensions, no fragment; TCP with ACK and at
  most PSH and FIN (SYN, RST, URG and ECN's marks never); all other bytes equal within a
  superpacket, which includes TOS and ECN field, TTL, window, acknowledgement, options.
- order: sequence numbers follow on.  IPv4 identifications too, unless fragmenting is
  forbidden, when they mean nothing (RFC 6864).
- sizes: all but the last equal; PSH, FIN or a shorter segment ends a superpacket.
- checksums: verified first, since the superpacket gets new ones.  A wrong one is the
  receiver's to see.

Two steps.  A stretch of packets of one length is examined as rows of one array, which says
where a row follows the row before it.  What hangs together is a block, a lone packet too;
blocks then extend the superpackets under way, one for each flow, in order of arrival.  The
packets of a block have the same addresses, so whether they may pass is asked once for all.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby
from struct import Struct
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from vpnd.wire import checksum, ip, virtio
from vpnd.wire.rows import Rows

Iovec: TypeAlias = list[bytes | memoryview]
Judge: TypeAlias = Callable[[memoryview, int], bool]

TCP_HEADER = 20
TCP_CHECKSUM = 16
FIN, PSH, ACK = 0x01, 0x08, 0x10

MAX_SEGMENTS = 512  # with two headers well below IOV_MAX, 1024
VECTOR_FROM = 4  # packets; below, array calls cost more than they spare

_NO_FLOW = b""
_U16 = Struct("!H")
_U32 = Struct("!I")


class _Part(NamedTuple):
    """Packets of a superpacket: rows of a stretch, or one packet that belongs to none."""

    rows: Rows | None
    first: int
    packets: int
    packet: memoryview


class _Block:
    """Packets that hang together, and the facts about the first of them."""

    __slots__ = ("checked", "count", "ended", "first", "flags", "flow", "header", "key", "number",
                 "packet", "parts", "rows", "sequence", "size", "upper")  # fmt: skip

    def __init__(self, packet: memoryview, flow: bytes | None, upper: int) -> None:
        self.packet = packet
        self.count = 1
        self.rows: Rows | None = None  # where the packets are, if there are several
        self.first = 0
        self.parts: list[_Part] = []  # of a superpacket under way
        self.flow = flow  # None: cannot be told; empty: not TCP
        self.upper = upper  # offset of the TCP header
        self.header = _plain_headers(packet, upper) if flow else 0  # 0: never merged
        if self.header:
            self.size = len(packet) - self.header  # payload of each packet
            self.key = int.from_bytes(packet[: self.header], "big") & _mask(upper, self.header)
            self.sequence: int = _U32.unpack_from(packet, upper + 4)[0]
            self.number = _number(packet)
            self.flags = packet[upper + 13] & (PSH | FIN)  # of the last packet
            self.ended = bool(self.flags)
            self.checked: bool | None = None  # not known yet

    def is_intact(self) -> bool:
        """Return whether the checksums hold, computing them at most once."""
        if self.checked is None:
            self.checked = _checksums_hold(self.packet, self.upper)
        return self.checked

    def part(self, count: int) -> _Part:
        """Return the first packets of the block."""
        return _Part(self.rows, self.first, count, self.packet)

    def drop_first(self, count: int) -> None:
        """Leave out packets that have gone elsewhere; some must stay."""
        assert self.rows is not None
        self.first += count
        self.count -= count
        self.packet = self.rows.row(self.first)
        self.sequence = self.sequence + count * self.size & 0xFFFFFFFF
        if self.number is not None:
            self.number = self.number + count & 0xFFFF


def coalesce(
    packets: Sequence[Rows | bytes | memoryview],
    *,
    headroom: int = 0,
    judge: Judge | None = None,
    most: int = MAX_SEGMENTS,
) -> list[Iovec]:
    """Return what to write to the TUN, one `os.writev` each, for packets of one peer.

    Each packet lies behind `headroom` bytes, rows behind their own.  `judge` is given a packet
    and the number of those that have the same length, and addresses, and are still to come;
    those it turns down are left out.  Each iovec begins with a 10-byte virtio_net_hdr.  A
    superpacket follows as its headers and pieces of payload, anything else as the packet
    itself, untouched.
    A superpacket is made of `most` packets at most.
    The packets of a flow keep their order; flows may be overtaken by one another.  The views
    are of the caller's memory, which must stay as it is until they are written.  Never raises:
    what does not look like TCP is passed on as it is.
    """
    blocks: list[_Block] = []
    under_way: dict[bytes, _Block] = {}
    for block in _blocks(packets, headroom, most):
        if judge is not None and not judge(block.packet, block.count):
            continue
        if block.flow is None:  # a fragment, say, which may be part of any flow
            under_way.clear()
            blocks.append(block)
            continue
        taken = 0
        if run := under_way.get(block.flow):
            taken = _extend(run, block, most)
        if taken == block.count:
            continue
        if taken:
            block.drop_first(taken)
        blocks.append(block)
        if block.header:
            block.parts = [block.part(block.count)]
            under_way[block.flow] = block
        else:
            under_way.pop(block.flow, None)
    return [_iovec(block) for block in blocks]


def _blocks(
    packets: Sequence[Rows | bytes | memoryview], headroom: int, most: int
) -> Iterator[_Block]:
    """Yield the packets in order, those in blocks that follow one another."""
    single: list[bytes | memoryview] = []
    for each in packets:
        if isinstance(each, Rows):
            yield from _of_singles(single, headroom, most)
            single = []
            yield from _of_rows(each, most)
        else:
            single.append(each)
    yield from _of_singles(single, headroom, most)


def _of_singles(
    packets: Sequence[bytes | memoryview], headroom: int, most: int
) -> Iterator[_Block]:
    for _, stretch in groupby(packets, len):
        alike = list(stretch)
        if len(alike) >= VECTOR_FROM:
            yield from _of_rows(Rows.joined(alike, headroom), most)
        else:
            for each in alike:
                packet = memoryview(each)[headroom:]
                yield _Block(packet, *_flow(packet))


def _of_rows(rows: Rows, most: int) -> Iterator[_Block]:
    for number in range(rows.count):
        packet = rows.row(number)
        block = _Block(packet, *_flow(packet))
        if block.header and rows.count - number >= VECTOR_FROM:
            yield from _split(rows.behind(number) if number else rows, block, most)
            return
        yield block


def _split(rows: Rows, block: _Block, most: int) -> Iterator[_Block]:
    """Yield blocks of packets of one length, the first packet's block being known."""
    follows, intact = _examine(rows, block)
    upper, header, count = block.upper, block.header, rows.count
    longest = min(most, (ip.MAX_PACKET - header) // block.size)
    start = 0
    while True:
        stop = start + 1
        block.rows, block.first = rows, start
        if block.header == header and block.upper == upper:  # else not what was examined
            block.checked = bool(intact[start])
            if stop < count and follows[stop]:
                stop = follows.find(0, stop, start + longest)
                stop = min(start + longest, count) if stop < 0 else stop
                block.count = stop - start
                block.flags = rows.row(stop - 1)[upper + 13] & (PSH | FIN)
                block.ended = bool(block.flags)
        yield block
        if stop == count:
            return
        start = stop
        packet = rows.row(start)
        block = _Block(packet, *_flow(packet))


def _examine(packets: Rows, first: _Block) -> tuple[bytes, bytes]:
    """Return, for packets of one length, which follow the one before and which are intact.

    One byte, 0 or 1, for each packet.  They are taken to have headers of the sizes that the
    first has; for others the answers mean nothing.  What holds for every row of a train is
    asked of all at once, and row by row only if it does not.
    """
    data, rows, stride = packets.data, packets.count, packets.stride
    at, end = packets.start + packets.headroom, packets.start + rows * stride
    upper, header = first.upper, first.header
    words = np.ndarray((rows, header // 4), np.uint32, data, at, (stride, 4))
    differences = (words[1:] ^ words[:-1]) & _row_mask(upper, header)
    sequence = np.ndarray((rows,), ">u4", data, at + upper + 4, (stride,)).astype(np.uint32)
    follows = np.zeros(rows, np.bool_)
    rest = follows[1:]
    np.equal(sequence[1:] - sequence[:-1], first.size, out=rest)
    if np.count_nonzero(differences):
        rest &= ~differences.any(axis=1)
    flags = bytes(data[at + upper + 13 : end : stride])
    if flags.count(ACK) != rows:
        rest &= np.frombuffer(flags, np.uint8)[:-1] & (PSH | FIN) == 0
    if upper == ip.IPV4_HEADER:
        fragmenting = bytes(data[at + 6 : end : stride])
        if fragmenting.count(ip.IPV4_DONT_FRAGMENT >> 8) != rows:
            numbers = np.ndarray((rows,), ">u2", data, at + 4, (stride,)).astype(np.uint16)
            atomic = np.frombuffer(fragmenting, np.uint8) & (ip.IPV4_DONT_FRAGMENT >> 8) != 0
            rest &= atomic[1:] | (numbers[1:] - numbers[:-1] == 1)
    intact = _intact_rows(packets, upper)
    whole = intact.tobytes()
    if 0 in whole:
        rest &= intact[1:] & intact[:-1]
    return follows.tobytes(), whole


def _intact_rows(rows: Rows, upper: int) -> npt.NDArray[np.bool_]:
    """Return which rows have right checksums (see `_checksums_hold`)."""
    data, count, stride, at = rows.data, rows.count, rows.stride, rows.start + rows.headroom
    size = stride - rows.headroom
    begin = 12 if upper == ip.IPV4_HEADER else 8  # the addresses of the pseudo-header
    sums = checksum.row_sums(
        data, offset=at + begin, rows=count, width=size - begin, stride=stride
    )
    sums += ip.TCP + size - upper
    intact: npt.NDArray[np.bool_] = sums % checksum.MODULUS == 0
    if upper == ip.IPV4_HEADER:
        sums = checksum.row_sums(data, offset=at, rows=count, width=upper, stride=stride)
        intact &= sums % checksum.MODULUS == 0
    return intact


def _extend(run: _Block, block: _Block, most: int) -> int:
    """Append to `run` what can be of `block`; return how many packets that was."""
    if not (_headers_match(run, block) and _is_next(run, block)):
        return 0
    if run.ended or block.size > run.size:
        return 0
    if not (run.is_intact() and block.is_intact()):
        return 0
    length = run.header + run.count * run.size
    room = min(most - run.count, (ip.MAX_PACKET - length) // block.size)
    taken = min(block.count, room)
    if block.size < run.size:  # a shorter segment ends the run
        taken = min(taken, 1)
    if not taken:
        return 0
    run.parts.append(block.part(taken))
    run.count += taken
    if taken == block.count:
        run.flags, run.ended = block.flags, block.ended
    if block.size < run.size:
        run.ended = True
    return taken


def _headers_match(run: _Block, block: _Block) -> bool:
    return run.header == block.header and run.key == block.key


def _is_next(run: _Block, block: _Block) -> bool:
    count = run.count
    if run.sequence + count * run.size & 0xFFFFFFFF != block.sequence:
        return False
    return run.number is None or run.number + count & 0xFFFF == block.number


def _flow(packet: memoryview) -> tuple[bytes | None, int]:
    """Return the flow of a TCP packet and the offset of its TCP header.

    The flow is empty for other protocols and None where it cannot be told.
    """
    size = len(packet)
    if size >= ip.IPV4_HEADER and packet[0] == 0x45:
        if packet[9] != ip.TCP:
            return _NO_FLOW, 0
        if size >= 40 and not (packet[6] << 8 | packet[7]) & ip.IPV4_FRAGMENT:
            return bytes(packet[12:24]), ip.IPV4_HEADER
    elif size >= ip.IPV6_HEADER and packet[0] >> 4 == 6:
        if packet[6] == ip.TCP and size >= 60:
            return bytes(packet[8:44]), ip.IPV6_HEADER
        if packet[6] in (ip.UDP, ip.ICMPV6):
            return _NO_FLOW, 0
    return None, 0


def _plain_headers(packet: memoryview, upper: int) -> int:
    """Return the size of all headers of a packet that may be merged, else 0."""
    size = len(packet)
    if upper == ip.IPV4_HEADER:
        if packet[2] << 8 | packet[3] != size or packet[6] & 0x80:  # the reserved flag
            return 0
    elif packet[4] << 8 | packet[5] != size - ip.IPV6_HEADER:
        return 0
    offset = packet[upper + 12]  # its low half holds reserved bits, and AccECN's AE
    header = upper + (offset >> 2)
    if offset & 0x0F or not upper + TCP_HEADER <= header < size:
        return 0
    return header if packet[upper + 13] & ~(PSH | FIN) == ACK else 0


def _number(packet: memoryview) -> int | None:
    """Return the IPv4 identification of a packet that may be fragmented."""
    if packet[0] >> 4 == 4 and not packet[6] & ip.IPV4_DONT_FRAGMENT >> 8:
        return packet[4] << 8 | packet[5]
    return None


def _checksums_hold(packet: memoryview, upper: int) -> bool:
    if upper == ip.IPV4_HEADER and checksum.word_sum(packet[:upper]):
        return False
    total = checksum.pseudo_header(packet, ip.TCP, len(packet) - upper)
    return (total + checksum.word_sum(packet[upper:])) % checksum.MODULUS == 0


def _mask_bytes(upper: int, header: int) -> bytearray:
    mask = bytearray(b"\xff" * header)
    if upper == ip.IPV4_HEADER:
        mask[2:6] = bytes(4)  # length, identification
        mask[10:12] = bytes(2)
    else:
        mask[4:6] = bytes(2)
    mask[upper + 4 : upper + 8] = bytes(4)  # sequence number
    mask[upper + 13] = ~(PSH | FIN) & 0xFF
    mask[upper + TCP_CHECKSUM : upper + TCP_CHECKSUM + 2] = bytes(2)
    return mask


@cache
def _mask(upper: int, header: int) -> int:
    """Return the bits of the headers that must be equal in a superpacket."""
    return int.from_bytes(_mask_bytes(upper, header), "big")


@cache
def _row_mask(upper: int, header: int) -> npt.NDArray[np.uint32]:
    """Return the same for rows of words, where the packets' length must be equal too."""
    mask = _mask_bytes(upper, header)
    at = 2 if upper == ip.IPV4_HEADER else 4
    mask[at : at + 2] = b"\xff\xff"
    return np.frombuffer(bytes(mask), np.uint32)


def _iovec(run: _Block) -> Iovec:
    if run.count == 1:
        return [virtio.PLAIN, run.packet]
    upper, header_size = run.upper, run.header
    header = bytearray(run.packet[:header_size])
    pieces = [_payload(part, header_size) for part in run.parts]
    size = header_size + sum(map(len, pieces))
    gso_type = virtio.GSO_TCPV6
    if upper == ip.IPV4_HEADER:
        gso_type = virtio.GSO_TCPV4
        _U16.pack_into(header, 2, size)
        _U16.pack_into(header, 10, 0)
        _U16.pack_into(header, 10, checksum.finish(checksum.word_sum(header[:upper])))
    else:
        _U16.pack_into(header, 4, size - ip.IPV6_HEADER)
    header[upper + 13] |= run.flags
    total = checksum.pseudo_header(header, ip.TCP, size - upper) % checksum.MODULUS
    _U16.pack_into(header, upper + TCP_CHECKSUM, total or 0xFFFF)  # as the kernel has it
    vnet = virtio.encode(gso_type, header_size, run.size, upper, TCP_CHECKSUM)
    return [vnet + header, *pieces]


def _payload(part: _Part, header: int) -> memoryview:
    if part.packets == 1 or part.rows is None:
        return part.packet[header:]
    return part.rows.payloads(part.first, part.packets, header)
