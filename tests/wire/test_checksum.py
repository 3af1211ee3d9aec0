"""The internet checksum, alone and over rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.packets import Packet, headers, rfc1071
from vpnd.wire import checksum


def test_example_of_rfc_1071() -> None:
    """Section 3 sums these bytes to ddf2."""
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert checksum.word_sum(data) == 0xDDF2
    assert checksum.finish(checksum.word_sum(data)) == 0x220D


@given(st.binary(max_size=200))
def test_equals_the_checksum_as_the_rfc_writes_it(data: bytes) -> None:
    """Arithmetic modulo 65535 is the same thing, where any bit is set."""
    data += b"\1"
    assert checksum.finish(checksum.word_sum(data)) == rfc1071(data)


@given(
    rows=st.integers(1, 9), width=st.integers(0, 40), gap=st.integers(0, 9),
    offset=st.integers(0, 9), data=st.data(),
)  # fmt: skip
def test_rows_have_the_sums_of_their_bytes(
    rows: int, width: int, gap: int, offset: int, data: st.DataObject
) -> None:
    """Widths and offsets may be odd: an MSS is any number."""
    stride = width + gap
    size = offset + rows * stride + 1
    buffer = data.draw(st.binary(min_size=size, max_size=size))
    sums = checksum.row_sums(buffer, offset=offset, rows=rows, width=width, stride=stride)
    for row, value in enumerate(sums % checksum.MODULUS):
        start = offset + row * stride
        assert value == checksum.word_sum(buffer[start : start + width])


def test_the_largest_row_does_not_overflow() -> None:
    """A superpacket of one segment is one row of 64 KiB, and may be all ones."""
    width = 65535
    (value,) = checksum.row_sums(b"\xff" * width, offset=0, rows=1, width=width, stride=width)
    assert value % checksum.MODULUS == checksum.word_sum(b"\xff" * width)
    assert value.dtype == np.int64


@given(headers())
def test_pseudo_header_is_that_of_the_packet(packet: Packet) -> None:
    """A complete packet sums to zero with it."""
    data = packet.build()
    length = len(data) - packet.upper
    total = checksum.pseudo_header(data, packet.protocol, length)
    assert (total + checksum.word_sum(data[packet.upper :])) % checksum.MODULUS == 0
