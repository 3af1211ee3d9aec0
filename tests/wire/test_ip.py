"""IP header fields."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.packets import Packet, headers
from vpnd.errors import Malformed
from vpnd.wire import ip

V6 = {"ip_version": 6, "source": bytes(15) + b"\1", "destination": bytes(15) + b"\2"}


@given(headers())
def test_addresses_and_upper_layer_are_those_the_packet_was_built_of(packet: Packet) -> None:
    """Routing and the source check depend on them."""
    data = memoryview(packet.build())
    assert ip.version(data) == packet.ip_version
    assert ip.source(data) == packet.source
    assert ip.destination(data) == packet.destination
    assert ip.upper_layer(data) == (packet.protocol, packet.upper)


@pytest.mark.parametrize("packet", [Packet(payload=b"abc"), Packet(**V6, payload=b"abc")])
def test_a_packet_of_another_length_than_it_claims_is_refused(packet: Packet) -> None:
    """What follows a packet, or is missing from it, must not reach the kernel."""
    data = packet.build()
    for size in range(len(data)):
        with pytest.raises(Malformed):
            ip.destination(data[:size])
    with pytest.raises(Malformed):
        ip.source(data + b"\0")


@pytest.mark.parametrize("first", [0x00, 0x44, 0x50, 0x55, 0x95])
def test_other_versions_and_headers_shorter_than_a_header_are_refused(first: int) -> None:
    """A header length below 20 bytes would make us read the addresses as something else."""
    data = bytearray(Packet().build())
    data[0] = first
    with pytest.raises(Malformed):
        ip.version(data)


def test_a_header_longer_than_the_packet_is_refused() -> None:
    """The header length is the peer's word."""
    data = bytearray(Packet().build()[:40])
    data[0] = 0x4F
    with pytest.raises(Malformed):
        ip.version(data)


def test_a_fragment_of_ipv6_is_reported_as_one() -> None:
    """Behind a fragment header there may be the middle of anything."""
    data = bytearray(Packet(**V6).build())
    data[6] = ip.IPV6_FRAGMENT
    assert ip.upper_layer(data) == (ip.IPV6_FRAGMENT, 40)


def test_endless_extension_headers_are_refused() -> None:
    """A loop over what the peer sent has a bound."""
    chain = bytes((0, 0, 1, 4, 0, 0, 0, 0)) * (ip.MAX_EXTENSIONS + 1)
    data = bytearray(Packet(**V6, ip_options=chain).build())
    with pytest.raises(Malformed):
        ip.upper_layer(data)


@given(st.one_of(st.binary(max_size=100), st.binary(min_size=19, max_size=99).map(
    lambda tail: bytes((0x60, 0, 0, 0, 0, max(0, len(tail) - 34), 0)) + tail
)))  # fmt: skip
def test_arbitrary_bytes_raise_malformed_or_nothing(data: bytes) -> None:
    """The packets come from the network."""
    for read in (ip.version, ip.source, ip.destination):
        with suppress(Malformed):
            read(memoryview(data))
    with suppress(Malformed):
        assert ip.upper_layer(data)[1] <= len(data)
