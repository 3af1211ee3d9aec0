"""The internet checksum (RFC 1071), for one packet and for a train of them.

A ones' complement sum of 16-bit words is their sum modulo 65535, and that is how it is kept
here: partial sums are plain integers in 0..65534 that may be added, subtracted and reduced
at leisure.  65536 is 1 in that arithmetic, so wider words may be summed as they are, and
summing in the machine's own byte order gives the byte-swapped sum: 256 times the wanted one.

The only thing lost is the difference between the two zeros.  A sum of zero with any bit set
is 0xFFFF, and every packet has bits set, so `finish` takes it for that.
"""

import sys

import numpy as np
import numpy.typing as npt

from vpnd.wire import ip

MODULUS = 0xFFFF
# The bytes of a sum, to big-endian.  An array: a single number of 64 bits would not widen a row
# of 32 in NumPy before 2.
_SWAP = np.array([256 if sys.byteorder == "little" else 1], np.int64)


def word_sum(data: bytes | bytearray | memoryview) -> int:
    """Return the sum of the big-endian words of `data`, an odd byte padded with zero."""
    total = int.from_bytes(data, "big")
    if len(data) & 1:
        total <<= 8
    return total % MODULUS


def finish(total: int) -> int:
    """Return the checksum that makes a sum complete: its ones' complement, 0..0xFFFE."""
    return -total % MODULUS


def pseudo_header(packet: bytes | bytearray | memoryview, protocol: int, length: int) -> int:
    """Return the sum of the pseudo-header of `length` bytes of an upper layer.

    RFC 9293 section 3.1 and RFC 8200 section 8.1; `packet` has passed `ip.version`.
    """
    addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8 : ip.IPV6_HEADER]
    return word_sum(addresses) + protocol + length


def row_sums(
    data: bytes | bytearray | memoryview, *, offset: int, rows: int, width: int, stride: int
) -> npt.NDArray[np.int64]:
    """Return the `word_sum` of `rows` stretches of `width` bytes that begin `stride` apart.

    The sums are not reduced, but small: below 2**40.  `width` is at most 65,535, so that a
    row of native words fits 32 bits.
    """
    words = np.ndarray((rows, width // 2), np.uint16, data, offset, (stride, 2))
    sums: npt.NDArray[np.int64] = np.add.reduce(words, axis=1, dtype=np.uint32) * _SWAP
    if width & 1:
        sums += 256 * np.ndarray((rows,), np.uint8, data, offset + width - 1, (stride,)).astype(
            np.int64
        )
    return sums
