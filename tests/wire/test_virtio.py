"""virtio_net_hdr."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.errors import Malformed
from vpnd.wire import virtio


def test_layout_is_that_of_the_kernel_header() -> None:
    """Ten bytes, native order: see linux/virtio_net.h."""
    data = virtio.encode(virtio.GSO_TCPV4, 52, 1348, 20, 16)
    fields = [int.from_bytes(data[at : at + 2], sys.byteorder) for at in (2, 4, 6, 8)]
    assert (data[:2], fields, len(data)) == (b"\1\1", [52, 1348, 20, 16], virtio.SIZE)


def test_decode_reads_what_encode_wrote() -> None:
    """hdr_len is not believed, and so not returned."""
    data = virtio.encode(virtio.GSO_TCPV6 | virtio.GSO_ECN, 72, 1328, 40, 16)
    assert virtio.decode(data) == (True, virtio.GSO_TCPV6, 1328, 40, 16)
    assert virtio.decode(virtio.PLAIN) == (False, virtio.GSO_NONE, 0, 0, 0)


@pytest.mark.parametrize(
    ("flags", "kind"), [(4, 0), (8, 0), (0, 2), (1, 3), (1, 0x21), (1, 0x80), (0x81, 1)]
)
def test_values_that_were_not_negotiated_are_refused(flags: int, kind: int) -> None:
    """UFO, tunnels, RSC, ECN without TCP, and what is yet to be invented."""
    with pytest.raises(Malformed):
        virtio.decode(virtio.HEADER.pack(flags, kind, 0, 0, 0, 0))


@given(st.binary(max_size=12))
def test_arbitrary_bytes_raise_malformed_or_nothing(data: bytes) -> None:
    """Every decoder fails in one way."""
    try:
        _, kind, *_ = virtio.decode(data)
    except Malformed:
        return
    assert kind in (virtio.GSO_NONE, virtio.GSO_TCPV4, virtio.GSO_TCPV6, virtio.GSO_UDP_L4)
