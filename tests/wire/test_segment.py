"""Splitting superpackets."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.packets import ACK, CWR, FIN, PSH, Packet, headers, superpackets
from vpnd.errors import Malformed
from vpnd.wire import virtio
from vpnd.wire.segment import MIN_GSO_SIZE, Splitter, segment, segment_room

HEADROOM = 21
ROOM = memoryview(bytearray(segment_room(HEADROOM)))
SPLITTER = Splitter(ROOM)  # of all tests: what it keeps of one train must not show in the next
V6 = {"ip_version": 6, "source": bytes(15) + b"\1", "destination": bytes(15) + b"\2"}
TIMESTAMPS = bytes((1, 1, 8, 10)) + bytes(8)


def split(frame: bytes, headroom: int = HEADROOM) -> list[bytes]:
    ROOM[:4096] = b"\xaa" * 4096  # what an earlier train left there
    SPLITTER.used = 0
    views = SPLITTER.split(memoryview(frame), headroom)
    assert all(bytes(view[:headroom]) == bytes(headroom) for view in views)
    return [bytes(view[headroom:]) for view in views]


@settings(deadline=None, max_examples=60)
@given(superpackets())
def test_segments_are_those_of_a_plain_split(drawn: tuple[Packet, int]) -> None:
    """Both IP versions, TCP and UDP, options, extensions, any size, flags and wrapping."""
    packet, gso_size = drawn
    assert split(packet.frame(gso_size)) == packet.segments(gso_size)


@settings(deadline=None, max_examples=30)
@given(st.lists(superpackets(), min_size=2, max_size=4))
def test_frames_are_split_one_behind_the_other(drawn: list[tuple[Packet, int]]) -> None:
    """All those of a wake-up, whatever their sizes; none touches what lies there already."""
    splitter = Splitter(memoryview(bytearray(1 << 20)))
    found = []
    for whole, gso_size in drawn:
        packet = replace(whole, payload=whole.payload[: gso_size * 20])
        found.append(
            (splitter.split(memoryview(packet.frame(gso_size)), HEADROOM), packet, gso_size)
        )
        single = replace(packet, payload=packet.payload[:gso_size])
        frame = memoryview(virtio.PLAIN + single.build())
        found.append((splitter.split(frame, HEADROOM), single, gso_size))
    for views, packet, gso_size in found:
        assert [bytes(view[HEADROOM:]) for view in views] == packet.segments(gso_size)
        assert all(bytes(view[:HEADROOM]) == bytes(HEADROOM) for view in views)


@settings(deadline=None, max_examples=60)
@given(superpackets(), st.integers(0, 40))
def test_segments_lie_back_to_back_and_only_the_last_is_shorter(
    drawn: tuple[Packet, int], headroom: int
) -> None:
    """One sendmsg with UDP_SEGMENT sends the buffer as it is."""
    packet, gso_size = drawn
    views = segment(memoryview(packet.frame(gso_size)), ROOM, headroom)
    sizes = [len(view) for view in views]
    assert set(sizes[:-1]) <= {headroom + packet.headers + gso_size}
    assert sizes[-1] <= headroom + packet.headers + gso_size
    assert b"".join(views) == bytes(ROOM[: sum(sizes)])


@given(headers(), st.binary(max_size=99))
def test_a_single_packet_gets_its_checksum_completed(packet: Packet, payload: bytes) -> None:
    """NEEDS_CSUM without GSO: everything the host sends that fits one packet."""
    packet = replace(packet, payload=payload)
    check = 16 if packet.protocol == 6 else 6
    header = virtio.HEADER.pack(virtio.NEEDS_CSUM, 0, 0, 0, packet.upper, check)
    assert split(header + packet.build(partial=True)) == [packet.build()]


@given(headers(), st.sampled_from((0, virtio.DATA_VALID)))
def test_a_complete_packet_is_copied(packet: Packet, flags: int) -> None:
    """Forwarded packets come with their own checksum, which is none of our business."""
    data = packet.build()
    assert split(virtio.HEADER.pack(flags, 0, 0, 0, 0, 0) + data) == [data]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_udp_checksum_of_zero_is_sent_as_its_other_zero(count: int) -> None:
    """Zero would say that there is none (RFC 768), which IPv6 forbids."""
    base = Packet(**V6, protocol=17, payload=bytes(64))
    wanted = int.from_bytes(base.build()[46:48], "big")  # the payload word to make it zero
    packet = replace(base, payload=(wanted.to_bytes(2, "big") + bytes(62)) * count)
    segments = split(packet.frame(64))
    assert [data[46:48] for data in segments] == [b"\xff\xff"] * count


@pytest.mark.parametrize("payload", [1000, 930])
def test_flags_of_a_full_or_shorter_last_segment_are_its_own(payload: int) -> None:
    """Both ways of making it; a checksum that was patched is right."""
    for flags in (ACK, ACK | PSH, ACK | FIN, ACK | CWR, ACK | CWR | PSH | FIN):
        packet = Packet(flags=flags, payload=bytes(range(250)) * 4)
        packet = replace(packet, payload=packet.payload[:payload])
        assert split(packet.frame(100)) == packet.segments(100)


@pytest.mark.parametrize("sequence", [0, 50, 100, 2**32 - 1, 2**32 - 150, 2**32 - 65536])
def test_sequence_numbers_wrap(sequence: int) -> None:
    """Their sum in the checksum wraps too."""
    packet = Packet(sequence=sequence, payload=bytes(range(250)) * 4)
    assert split(packet.frame(100)) == packet.segments(100)


def test_flags_are_set_on_the_segment_they_belong_to() -> None:
    """FIN or PSH too early would end the stream; a repeated CWR would hide congestion."""
    packet = Packet(flags=ACK | CWR | PSH | FIN, payload=bytes(1000))
    flags = [data[33] for data in split(packet.frame(100))]
    assert flags == [ACK | CWR] + [ACK] * 8 + [ACK | PSH | FIN]


def test_identifications_count_up_only_where_fragments_may_be_made() -> None:
    """RFC 6864: an atomic datagram's number means nothing, any other's must be unique."""
    packet = Packet(number=65534, payload=bytes(600))
    numbers = [data[4:6].hex() for data in split(packet.frame(100))]
    assert numbers == ["fffe"] * 6
    packet = replace(packet, dont_fragment=False)
    numbers = [data[4:6].hex() for data in split(packet.frame(100))]
    assert numbers == ["fffe", "ffff", "0000", "0001", "0002", "0003"]


def test_hdr_len_is_not_believed() -> None:
    """Several kernels fill it in wrongly."""
    packet = Packet(tcp_options=TIMESTAMPS, payload=bytes(900))
    frame = bytearray(packet.frame(100))
    for wrong in (b"\0\0", b"\xff\xff"):
        frame[2:4] = wrong
        assert split(frame) == packet.segments(100)


def test_segment_room_is_enough_for_the_worst_that_is_accepted() -> None:
    """The buffers of a worker are made once."""
    packet = Packet(ip_options=bytes(40), tcp_options=bytes(40), payload=bytes(65535 - 120))
    assert len(split(packet.frame(MIN_GSO_SIZE))) == -(-(65535 - 120) // MIN_GSO_SIZE)
    packet = Packet(**V6, tcp_options=TIMESTAMPS, payload=bytes(65535 - 32))
    room = memoryview(bytearray(segment_room(37, gso_size=1200)))
    assert len(segment(memoryview(packet.frame(1200)), room, 37)) == 55


def test_too_little_room_is_refused_without_writing_past_it() -> None:
    """Numpy writes through strides: the bound is checked before."""
    packet = Packet(payload=bytes(1000))
    need = sum(map(len, packet.segments(100))) + 10 * HEADROOM
    buffer = bytearray(need + 100)
    with pytest.raises(Malformed):
        segment(memoryview(packet.frame(100)), memoryview(buffer)[: need - 1], HEADROOM)
    segment(memoryview(packet.frame(100)), memoryview(buffer)[:need], HEADROOM)
    assert buffer[need:] == bytes(100)
    with pytest.raises(Malformed):
        segment(memoryview(virtio.PLAIN + packet.build()), memoryview(bytearray(1000)), 0)


TCP = Packet(payload=bytes(300))
UDP = replace(TCP, protocol=17)


@pytest.mark.parametrize(
    ("packet", "header"),
    [
        (TCP, (0, virtio.GSO_TCPV4, 0, 100, 20, 16)),  # nothing to complete
        (TCP, (1, virtio.GSO_TCPV6, 0, 100, 20, 16)),
        (TCP, (1, virtio.GSO_UDP_L4, 0, 100, 20, 6)),
        (UDP, (1, virtio.GSO_TCPV4, 0, 100, 20, 16)),
        (TCP, (1, virtio.GSO_TCPV4, 0, 100, 24, 16)),
        (TCP, (1, virtio.GSO_TCPV4, 0, 100, 20, 6)),
        (TCP, (1, virtio.GSO_TCPV4, 0, 7, 20, 16)),
        (TCP, (1, virtio.GSO_TCPV4, 0, 0, 20, 16)),
        (replace(TCP, payload=b""), (1, virtio.GSO_TCPV4, 0, 100, 20, 16)),
        (replace(TCP, **V6), (1, virtio.GSO_TCPV4, 0, 100, 40, 16)),
        (TCP, (1, virtio.GSO_NONE, 0, 0, 20, 320)),
        (TCP, (1, virtio.GSO_NONE, 0, 0, 0, 10)),
        (TCP, (1, virtio.GSO_NONE, 0, 0, 65535, 65535)),
    ],
)
def test_a_header_that_contradicts_the_packet_is_refused(
    packet: Packet, header: tuple[int, ...]
) -> None:
    """Dropping one frame is better than sending forty wrong ones."""
    with pytest.raises(Malformed):
        split(virtio.HEADER.pack(*header) + packet.build(partial=True))


def test_a_fragment_is_never_split() -> None:
    """It has no headers to repeat."""
    frame = bytearray(TCP.frame(100))
    frame[10 + 6] |= 0x20
    with pytest.raises(Malformed):
        split(frame)


@settings(deadline=None, max_examples=60)
@given(
    superpackets(),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=4),
    st.integers(0, 200),
)
def test_altered_frames_raise_malformed_or_nothing(
    drawn: tuple[Packet, int], changes: list[tuple[int, int]], cut: int
) -> None:
    """Valid frames with some bytes changed reach deeper than arbitrary bytes do."""
    packet, gso_size = drawn
    frame = bytearray(packet.frame(gso_size))
    for at, value in changes:
        if at < len(frame):
            frame[at] = value
    try:
        split(frame[: len(frame) - cut])
    except Malformed:
        return


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_malformed_or_nothing(data: bytes) -> None:
    """Every decoder fails in one way."""
    try:
        split(data)
    except Malformed:
        return
