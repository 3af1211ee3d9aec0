"""The whole packet path without its sockets: split -> seal -> open -> coalesce.

The independent reader is scapy: it computes lengths and checksums anew from the parsed
fields, so bytes that it would not have sent itself do not pass.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.packets import CWR, FIN, PSH, Packet, superpackets
from vpnd.wire import virtio
from vpnd.wire.coalesce import coalesce
from vpnd.wire.dtls_record import (
    APPLICATION_DATA,
    MAX_OVERHEAD,
    SUITES,
    DirectionKeys,
    RecordOpener,
    RecordSealer,
    Suite,
    split_records,
)
from vpnd.wire.segment import segment, segment_room

inet = pytest.importorskip("scapy.layers.inet")
inet6 = pytest.importorskip("scapy.layers.inet6")

HEADROOM = 1  # the packet type, as in the data plane
SLOTS = memoryview(bytearray(segment_room(HEADROOM)))
SEALED = memoryview(bytearray(segment_room(HEADROOM + MAX_OVERHEAD)))
OPENED = memoryview(bytearray(segment_room(HEADROOM)))
BACK = memoryview(bytearray(segment_room(0)))
READ_BY_SCAPY = 8  # packets of each train; scapy takes a millisecond each
OPTIONS = st.sampled_from(
    (
        b"",
        bytes((1, 1, 8, 10)) + b"timestmp",
        bytes((1, 1, 5, 10)) + b"sackrang",
        bytes((2, 4, 5, 180)),
    )
)
SUITE = st.sampled_from(list(SUITES.values()))


def through_the_tunnel(suite: Suite, views: list[memoryview]) -> list[memoryview]:
    """Seal a train as one end and open it as the other; return the packets."""
    keys = DirectionKeys(bytes(range(suite.key_size)), bytes(suite.iv_size))
    sealer, opener = RecordSealer(suite, keys), RecordOpener(suite, keys)
    size = sealer.seal_batch(views, SEALED)
    packets, used = [], 0
    for record in split_records(SEALED[:size]):
        kind, _, length = opener.open(record, OPENED[used:])
        assert kind == APPLICATION_DATA
        assert OPENED[used] == 0  # the headroom of `segment` is the type of a data packet
        packets.append(OPENED[used + HEADROOM : used + length])
        used += length
    return packets


def assert_scapy_would_have_sent(packet: bytes, original: Packet) -> None:
    """Let scapy read the packet, compute what can be computed, and compare."""
    parsed = inet.IP(packet) if packet[0] >> 4 == 4 else inet6.IPv6(packet)
    for layer, fields in ((inet.IP, ("len", "chksum")), (inet6.IPv6, ("plen",)),
                          (inet.TCP, ("chksum",)), (inet.UDP, ("len", "chksum"))):  # fmt: skip
        if layer in parsed:
            for field in fields:
                del parsed[layer].fields[field]
            parsed[layer].raw_packet_cache = None
    assert bytes(parsed) == packet
    if original.protocol == 6:
        tcp = parsed[inet.TCP]
        assert (tcp.sport, tcp.dport) == (original.source_port, original.destination_port)
        assert (tcp.ack, tcp.window) == (original.acknowledgement, original.window)


def plain_flags(index: int, count: int, flags: int) -> int:
    """Return what segment `index` of `count` may say: CWR first, FIN and PSH last."""
    return flags & ~(CWR if index else 0) & ~(FIN | PSH if index < count - 1 else 0)


@settings(deadline=None, max_examples=60)
@given(superpackets(), OPTIONS, SUITE)
def test_every_packet_arrives_as_an_independent_reader_would_have_sent_it(
    drawn: tuple[Packet, int], options: bytes, suite: Suite
) -> None:
    """Any MSS, length, flags and options, both IP versions, all suites: same bytes, right sums."""
    packet, gso_size = replace(drawn[0], ip_options=b""), drawn[1]
    if packet.protocol == 6:
        packet = replace(packet, tcp_options=options)
        packet = replace(packet, payload=packet.payload[: 65535 - packet.headers])
    frame = packet.frame(gso_size)
    packets = through_the_tunnel(suite, segment(memoryview(frame), SLOTS, HEADROOM))
    assert [bytes(p) for p in packets] == packet.segments(gso_size)
    stream = b""
    for index, view in enumerate(packets):
        data = bytes(view)
        if index < READ_BY_SCAPY or index == len(packets) - 1:
            assert_scapy_would_have_sent(data, packet)
        if packet.protocol == 6:
            assert data[packet.upper + 13] == plain_flags(index, len(packets), packet.flags)
        stream += data[packet.headers :]
    assert stream == packet.payload


@settings(deadline=None, max_examples=60)
@given(superpackets(), SUITE)
def test_joining_after_the_tunnel_gives_the_kernel_the_same_packets(
    drawn: tuple[Packet, int], suite: Suite
) -> None:
    """Whatever was merged or left alone, the kernel's own split of it is what arrived."""
    packet, gso_size = drawn
    packets = through_the_tunnel(
        suite, segment(memoryview(packet.frame(gso_size)), SLOTS, HEADROOM)
    )
    arrived = [bytes(p) for p in packets]
    frames = [b"".join(pieces) for pieces in coalesce(packets)]
    again = [bytes(v) for frame in frames for v in segment(memoryview(frame), BACK, 0)]
    assert again == arrived == packet.segments(gso_size)
    assert all(len(frame) <= virtio.HEADER.size + 65535 for frame in frames)


@settings(deadline=None, max_examples=40)
@given(superpackets(protocols=(6,), ecn=False), SUITE)
def test_a_plain_tcp_train_comes_out_as_the_superpacket_it_was(
    drawn: tuple[Packet, int], suite: Suite
) -> None:
    """The point of it all: one write to the TUN for one read of the other end's."""
    packet, gso_size = replace(drawn[0], ip_options=b"", dont_fragment=True), drawn[1]
    frame = packet.frame(gso_size)
    views = segment(memoryview(frame), SLOTS, HEADROOM)
    iovecs = coalesce(through_the_tunnel(suite, views))
    if 1 < len(views) <= 512:
        (pieces,) = iovecs
        assert b"".join(pieces)[virtio.HEADER.size :] == frame[virtio.HEADER.size :]
