"""Joining segments into superpackets."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.packets import ACK, CWR, ECE, FIN, PSH, Packet, rfc1071, superpackets
from vpnd.wire import coalesce as module
from vpnd.wire import virtio
from vpnd.wire.coalesce import MAX_SEGMENTS, coalesce
from vpnd.wire.segment import segment, segment_room

SYN, RST, URG = 0x02, 0x04, 0x20
ROOM = memoryview(bytearray(segment_room(0)))
TIMESTAMPS = bytes((1, 1, 8, 10)) + bytes(8)
TCP4 = Packet(tcp_options=TIMESTAMPS, payload=bytes(range(200)) * 8)
TCP6 = replace(TCP4, ip_version=6, source=bytes(15) + b"\1", destination=bytes(15) + b"\2")
EITHER = pytest.mark.parametrize("packet", [TCP4, TCP6], ids=["ipv4", "ipv6"])
# two segments go the plain way, sixteen through the arrays; the altered one is the middle one
COUNTS = pytest.mark.parametrize("gso_size", [800, 100], ids=["two", "sixteen"])


def join(packets: Sequence[bytes]) -> list[bytes]:
    return [b"".join(iovec) for iovec in coalesce([memoryview(data) for data in packets])]


def split(frame: bytes) -> list[bytes]:
    return [bytes(view) for view in segment(memoryview(frame), ROOM, 0)]


def groups(packets: Sequence[bytes]) -> list[int]:
    """Return how many packets each superpacket took, all of them being there and in order."""
    frames = [split(frame) for frame in join(packets)]
    assert list(chain.from_iterable(frames)) == list(packets)
    return [len(frame) for frame in frames]


@settings(deadline=None, max_examples=60)
@given(superpackets(protocols=(6,), ecn=False))
def test_segments_become_the_superpacket_they_were(drawn: tuple[Packet, int]) -> None:
    """What the kernel gets is what the kernel at the other end gave."""
    packet, gso_size = replace(drawn[0], ip_options=b""), drawn[1]
    segments = packet.segments(gso_size)
    frames = join(segments)
    assert len(frames) == -(-len(segments) // MAX_SEGMENTS)
    if len(segments) == 1:
        assert frames == [virtio.PLAIN + segments[0]]
    elif len(frames) == 1:
        kind = virtio.GSO_TCPV4 if packet.ip_version == 4 else virtio.GSO_TCPV6
        header = virtio.encode(kind, packet.headers, gso_size, packet.upper, 16)
        assert frames == [header + packet.build(partial=True)]
    assert [data for frame in frames for data in split(frame)] == segments


@pytest.mark.parametrize(
    "fields",
    [
        {"tos": 1},  # Congestion Experienced and the like
        {"ttl": 63},
        {"acknowledgement": 5001},
        {"window": 500},
        {"tcp_options": TIMESTAMPS[:-1] + b"\1"},
        {"tcp_options": TIMESTAMPS + b"\1\1\1\1"},
        {"source_port": 1},
        {"sequence": 0},
        {"flags": 0},
        {"flags": ACK | SYN},
        {"flags": ACK | RST},
        {"flags": ACK | URG},
        {"flags": ACK | ECE},
        {"flags": ACK | CWR},
    ],
    ids=str,
)
@EITHER
@COUNTS
def test_a_segment_with_a_difference_is_passed_on_by_itself(
    packet: Packet, gso_size: int, fields: dict[str, int]
) -> None:
    """A superpacket has one header for all: nothing may be lost by that."""
    parts = packet.parts(gso_size)
    middle = len(parts) // 2
    parts[middle] = replace(parts[middle], **fields)  # type: ignore[arg-type]
    after = [len(parts) - middle - 1] if middle + 1 < len(parts) else []
    assert groups([part.build() for part in parts]) == [middle, 1, *after]


@EITHER
@COUNTS
@pytest.mark.parametrize("flag", [SYN, RST, URG, ECE, CWR])
def test_segments_with_other_flags_are_never_merged(
    packet: Packet, gso_size: int, flag: int
) -> None:
    """Also when all have them: ECN counts marked packets, and urgent data has its place."""
    segments = [replace(part, flags=ACK | flag).build() for part in packet.parts(gso_size)]
    assert groups(segments) == [1] * len(segments)


@EITHER
@COUNTS
def test_a_segment_of_another_length_than_it_claims_is_not_merged(
    packet: Packet, gso_size: int
) -> None:
    """Its superpacket would claim a better one."""
    segments = packet.segments(gso_size)
    middle = len(segments) // 2
    liar = bytearray(segments[middle])
    liar[3 if packet.ip_version == 4 else 5] ^= 1
    if packet.ip_version == 4:
        liar[10:12] = bytes(2)
        liar[10:12] = rfc1071(liar[:20]).to_bytes(2, "big")
    segments[middle] = bytes(liar)
    assert join(segments)[1] == virtio.PLAIN + bytes(liar)


@COUNTS
@pytest.mark.parametrize(
    "fields", [{"dont_fragment": False}, {"ip_options": b"\1\1\1\1"}], ids=str
)
def test_ipv4_has_differences_of_its_own(gso_size: int, fields: dict[str, bytes]) -> None:
    """Options may ask something of each packet; a mixed DF bit is no train of the kernel's."""
    parts = TCP4.parts(gso_size)
    middle = len(parts) // 2
    parts[middle] = replace(parts[middle], **fields)  # type: ignore[arg-type]
    after = [len(parts) - middle - 1] if middle + 1 < len(parts) else []
    assert groups([part.build() for part in parts]) == [middle, 1, *after]


@EITHER
@COUNTS
@pytest.mark.parametrize("at", [0, 25, -1], ids=["first", "payload-or-header", "last"])
def test_a_wrong_tcp_checksum_is_left_for_the_receiver_to_see(
    packet: Packet, gso_size: int, at: int
) -> None:
    """A superpacket gets a new checksum, which would make broken data good."""
    segments = packet.segments(gso_size)
    middle = len(segments) // 2
    broken = bytearray(segments[middle])
    broken[packet.headers + at if at >= 0 else -1] ^= 0x40
    segments[middle] = bytes(broken)
    after = [len(segments) - middle - 1] if middle + 1 < len(segments) else []
    assert groups(segments) == [middle, 1, *after]


@COUNTS
def test_a_wrong_ip_checksum_is_left_for_the_receiver_to_see(gso_size: int) -> None:
    """The header of a superpacket gets a new one as well."""
    segments = TCP4.segments(gso_size)
    broken = bytearray(segments[0])
    broken[10] ^= 1
    segments[0] = bytes(broken)
    assert groups(segments) == [1, len(segments) - 1]


@EITHER
@COUNTS
@pytest.mark.parametrize("flag", [PSH, FIN])
def test_push_and_fin_end_a_superpacket(packet: Packet, gso_size: int, flag: int) -> None:
    """Data pushed is to be delivered now, and nothing comes behind a FIN."""
    parts = packet.parts(gso_size)
    middle = len(parts) // 2
    parts[middle - 1] = replace(parts[middle - 1], flags=ACK | flag)
    assert groups([part.build() for part in parts]) == [middle, len(parts) - middle]


@EITHER
def test_a_shorter_segment_ends_a_superpacket_and_a_longer_one_begins_another(
    packet: Packet,
) -> None:
    """The kernel cuts a superpacket into equal pieces."""
    sequence, packets = packet.sequence, []
    for size in (100,) * 6 + (60,) * 6 + (100, 100, 101, 100, 99, 98):
        packets.append(replace(packet, payload=bytes(size), sequence=sequence).build())
        sequence += size
    assert groups(packets) == [7, 5, 2, 2, 2]


@EITHER
def test_acknowledgements_are_never_merged_nor_overtaken(packet: Packet) -> None:
    """Each duplicate counts for the sender's fast retransmit."""
    ack = replace(packet, payload=b"").build()
    segments = packet.segments(100)
    assert groups([ack] * 9) == [1] * 9
    assert groups([*segments[:8], ack, *segments[8:]]) == [8, 1, 8]


@pytest.mark.parametrize(("at", "value"), [(6, 0xC0), (32, 0x81), (6, 0x20), (7, 0x01)])
def test_fragments_and_reserved_bits_are_never_merged(at: int, value: int) -> None:
    """Also when all have them: nobody knows what a reserved bit says of the others."""
    packets = []
    for part in TCP4.parts(100):
        data = bytearray(part.build())
        data[at] = value
        data[10:12] = data[36:38] = bytes(2)
        data[10:12] = rfc1071(data[:20]).to_bytes(2, "big")
        data[36:38] = rfc1071(part.pseudo(len(data) - 20) + data[20:]).to_bytes(2, "big")
        packets.append(bytes(data))
    assert [frame[virtio.SIZE :] for frame in join(packets)] == packets


@COUNTS
def test_identifications_must_count_up_where_fragments_may_be_made(gso_size: int) -> None:
    """They tell fragments of different packets apart."""
    parts = replace(TCP4, dont_fragment=False, number=65530).parts(gso_size)
    assert groups([part.build() for part in parts]) == [len(parts)]
    same = [replace(part, number=7).build() for part in parts]
    assert groups(same) == [1] * len(parts)


@COUNTS
def test_identifications_of_atomic_datagrams_mean_nothing(gso_size: int) -> None:
    """The kernel counts them up, other stacks send zero or anything (RFC 6864)."""
    parts = TCP4.parts(gso_size)
    packets = [replace(part, number=index * 77).build() for index, part in enumerate(parts)]
    assert len(join(packets)) == 1


def test_flows_are_joined_also_when_they_take_turns() -> None:
    """A stock client sends single packets of several streams."""
    flows = [replace(TCP4, source_port=port).segments(100) for port in (1, 2, 3)]
    taking_turns = list(chain.from_iterable(zip(*flows, strict=True)))
    assert [split(frame) for frame in join(taking_turns)] == flows


def test_a_fragment_is_not_overtaken() -> None:
    """It may be of any flow: its ports are in another packet."""
    segments = TCP4.segments(100)
    fragment = bytearray(TCP4.build())
    fragment[6] = 0x20
    packets = [*segments[:8], bytes(fragment), *segments[8:]]
    frames = join(packets)
    assert [split(frame) for frame in frames] == [segments[:8], [bytes(fragment)], segments[8:]]


def test_other_protocols_do_not_end_a_superpacket() -> None:
    """A ping beside a download costs the download nothing."""
    segments = TCP4.segments(100)
    other = Packet(protocol=17, payload=b"ping").build()
    frames = join([*segments[:5], other, *segments[5:]])
    assert [split(frame) for frame in frames] == [segments, [other]]


@EITHER
def test_superpackets_stay_within_what_the_kernel_takes(packet: Packet) -> None:
    """65,535 bytes by the length field, 1,024 buffers by IOV_MAX."""
    for size, most in ((1348, 48), (20, MAX_SEGMENTS)):
        sequence, packets = 0xFFFF0000, []
        for _ in range(1100):
            part = replace(packet, payload=bytes(size), sequence=sequence & 0xFFFFFFFF)
            packets.append(part.build())
            sequence += size
        iovecs = coalesce([memoryview(data) for data in packets])
        assert {len(split(b"".join(iovec))) for iovec in iovecs[:-1]} == {most}
        assert max(map(len, iovecs)) <= 1024
        assert max(sum(map(len, iovec)) for iovec in iovecs) <= 65535 + virtio.SIZE
        assert [data for iovec in iovecs for data in split(b"".join(iovec))] == packets


@EITHER
def test_a_pseudo_header_of_sum_zero_is_written_as_the_kernel_writes_it(packet: Packet) -> None:
    """A sum of which any bit is set is never the other zero."""
    rest = replace(packet, destination=bytes(2) + packet.destination[2:])
    word = rfc1071(rest.pseudo(packet.headers - packet.upper + len(packet.payload)))
    packet = replace(rest, destination=word.to_bytes(2, "big") + rest.destination[2:])
    (frame,) = join(packet.segments(100))
    assert frame[virtio.SIZE + packet.upper + 16 :][:2] == b"\xff\xff"
    assert frame[virtio.SIZE :] == packet.build(partial=True)


@st.composite
def batches(draw: st.DrawFn) -> list[bytes]:
    """Draw packets of a few flows, taking turns, with something wrong here and there."""
    queues = []
    for port in range(draw(st.integers(1, 3))):
        packet = draw(st.sampled_from((TCP4, TCP6)))
        number = draw(st.integers(0, 65535))
        packet = replace(packet, source_port=port, number=number, flags=ACK | draw(
            st.sampled_from((0, PSH))), dont_fragment=draw(st.booleans()))  # fmt: skip
        queues.append(packet.parts(draw(st.sampled_from((90, 100, 160, 530)))))
    result = []
    while any(queues):
        queue = draw(st.sampled_from([queue for queue in queues if queue]))
        for part in [queue.pop(0) for _ in range(min(len(queue), draw(st.integers(1, 9))))]:
            change = draw(st.sampled_from((
                {}, {}, {}, {}, {}, {}, {"flags": ACK | PSH}, {"flags": ACK | ECE}, {"ttl": 1},
                {"payload": b""}, {"sequence": 7}, {"payload": part.payload[:-1]},
                {"protocol": 17},
            )))  # fmt: skip
            data = bytearray(replace(part, **change).build())
            if draw(st.integers(0, 15)) == 15:
                data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
            result.append(bytes(data))
    return result


def by_flow(packets: Sequence[bytes]) -> dict[bytes, list[bytes]]:
    flows = defaultdict(list)
    for data in packets:
        flows[data[12:24] if data[0] >> 4 == 4 else data[8:44]].append(data)
    return flows


def without_number(packet: bytes | bytearray) -> bytes:
    """Blank an atomic datagram's identification, which means nothing, and the sum over it."""
    if packet[:1] != b"\x45" or not packet[6] & 0x40:
        return bytes(packet)
    return bytes(packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:])


def restored(frame: bytes) -> list[bytes]:
    if frame.startswith(virtio.PLAIN):
        return [frame[virtio.SIZE :]]
    return split(frame)


@settings(deadline=None, max_examples=50)
@given(batches())
def test_every_flow_gets_its_packets_whole_and_in_order(packets: list[bytes]) -> None:
    """Whatever is merged: cut again, it is what came in."""
    out = [data for frame in join(packets) for data in restored(frame)]
    assert by_flow(out) == by_flow(packets)


@settings(deadline=None, max_examples=50)
@given(batches())
def test_arrays_decide_as_the_plain_way_does(packets: list[bytes]) -> None:
    """Two ways to the same result: one is the proof of the other."""
    joined, vector_from = join(packets), module.VECTOR_FROM
    module.VECTOR_FROM = len(packets) + 1
    try:
        assert join(packets) == joined
    finally:
        module.VECTOR_FROM = vector_from


@given(st.lists(st.binary(max_size=90), max_size=8))
def test_arbitrary_bytes_are_passed_on(packets: list[bytes]) -> None:
    """Nothing a peer sends stops the loop."""
    assert join(packets) == [virtio.PLAIN + data for data in packets]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_altered_headers_come_out_as_they_went_in(data: st.DataObject) -> None:
    """The same from nearer: valid segments with some bytes changed in all or one of them."""
    packet = data.draw(st.sampled_from((TCP4, TCP6)))
    packets = [bytearray(part) for part in packet.segments(100)]
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 255)))):
        for part in data.draw(st.sampled_from((packets, packets[:1], packets[5:6]))):
            part[at] = value
    out = [part for frame in join([bytes(part) for part in packets]) for part in restored(frame)]
    assert sorted(map(without_number, out)) == sorted(map(without_number, packets))
