"""Splitting and joining against each other, and read by scapy."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.packets import Packet, superpackets
from vpnd.wire.coalesce import coalesce
from vpnd.wire.segment import segment, segment_room

inet = pytest.importorskip("scapy.layers.inet")
inet6 = pytest.importorskip("scapy.layers.inet6")

HEADROOM = 21
ROOM = memoryview(bytearray(segment_room(HEADROOM)))
BACK = memoryview(bytearray(segment_room(0)))
OPTIONS = st.sampled_from(
    (b"", bytes((1, 1, 8, 10)) + b"timestmp", bytes((1, 1, 5, 10)) + b"sackrang")
)


def read(data: bytes) -> inet.IP | inet6.IPv6:
    """Return the packet as scapy reads it, checksums and lengths still to be filled in."""
    packet = inet.IP(data) if data[0] >> 4 == 4 else inet6.IPv6(data)
    for layer in (inet.IP, inet6.IPv6, inet.TCP, inet.UDP):
        for field in ("chksum", "len", "plen"):
            if layer in packet and field in packet[layer].fields:
                del packet[layer].fields[field]
                packet[layer].raw_packet_cache = None
    return packet


@settings(deadline=None, max_examples=25)
@given(superpackets(), OPTIONS)
def test_scapy_would_have_sent_the_same_segments(
    drawn: tuple[Packet, int], options: bytes
) -> None:
    """An independent reader agrees on every length and checksum, and on the stream."""
    packet, gso_size = drawn
    packet = replace(packet, ip_options=b"")
    if packet.protocol == 6:
        packet = replace(packet, tcp_options=options)
    size = min(gso_size * 12, 65535 - packet.headers)
    packet = replace(packet, payload=packet.payload[:size])
    views = segment(memoryview(packet.frame(gso_size)), ROOM, HEADROOM)
    stream = b""
    for view in views:
        data = bytes(view[HEADROOM:])
        parsed = read(data)
        assert bytes(parsed) == data
        upper = parsed[inet.TCP if packet.protocol == 6 else inet.UDP]
        if packet.protocol == 6:
            assert (upper.seq - packet.sequence) % 2**32 == len(stream)
        stream += bytes(upper.payload)
    assert stream == packet.payload


@settings(deadline=None, max_examples=60)
@given(superpackets(protocols=(6,), ecn=False))
def test_joining_undoes_splitting_and_splitting_undoes_joining(drawn: tuple[Packet, int]) -> None:
    """The views of one buffer go straight into the other, as they do in the data plane."""
    packet, gso_size = replace(drawn[0], ip_options=b""), drawn[1]
    frame = packet.frame(gso_size)
    views = segment(memoryview(frame), ROOM, HEADROOM)
    iovecs = coalesce([view[HEADROOM:] for view in views])
    if 1 < len(views) <= 512:
        (iovec,) = iovecs
        assert b"".join(iovec)[10:] == frame[10:]
    again = [
        bytes(view) for iovec in iovecs for view in segment(memoryview(b"".join(iovec)), BACK, 0)
    ]
    assert again == [bytes(view[HEADROOM:]) for view in views]
