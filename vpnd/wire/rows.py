"""Buffers whose cuts are made once: what the packets of a train share.

A memoryview costs more to make than a packet's share of a system call.  A bulk transfer cuts
the same buffer at the same places again and again, so the cuts are kept.
"""

from collections.abc import Sequence
from struct import Struct

import numpy as np
import numpy.typing as npt

MAX_ROWS = 512  # records that one call prepares: what a wake-up of the data plane brings
MAX_CELLS = 1024  # of each size; small ones far behind in a buffer are cut when they are needed
MAX_CUTS = 8  # sizes remembered for each buffer; peers choose sizes, so it is bounded
NONCE, AAD = 12, 13  # bytes of either, in TLS 1.2 (RFC 5246 section 6.2.3.3)
_AAD_TAIL = Struct("!B H H")
_NUMBER = 4  # offset of the number in a nonce


class Cells:
    """A buffer seen as cells of one size, of whatever size is asked for."""

    __slots__ = ("_cuts", "buffer")

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer
        self._cuts: dict[tuple[int, int], list[memoryview]] = {}

    def views(self, stride: int, count: int, *, first: int = 0, skip: int = 0) -> list[memoryview]:
        """Return `count` cells of `stride` bytes from a cell on, without their first `skip` bytes.

        The caller knows that so many fit.
        """
        buffer, stop = self.buffer, first + count
        if stop > MAX_CELLS:
            cells = range(first * stride, stop * stride, stride)
            return [buffer[at + skip : at + stride] for at in cells]
        key = (stride, skip)
        cuts = self._cuts.get(key)
        if cuts is None:
            if len(self._cuts) >= MAX_CUTS:
                self._cuts.clear()
            cuts = self._cuts[key] = []
        if len(cuts) < stop:
            cells = range(len(cuts) * stride, stop * stride, stride)
            cuts += [buffer[at + skip : at + stride] for at in cells]
        return cuts[first:stop]


class Rows:
    """Packets of one length, back to back, each behind some bytes that are not its own."""

    __slots__ = ("count", "data", "headroom", "start", "stride")

    def __init__(
        self, data: bytes | memoryview, start: int, stride: int, count: int, headroom: int
    ) -> None:
        self.data = data
        self.start = start
        self.stride = stride
        self.count = count
        self.headroom = headroom

    @classmethod
    def joined(cls, packets: Sequence[bytes | memoryview], headroom: int) -> "Rows":
        """Return rows of packets that lie here and there."""
        return cls(b"".join(packets), 0, len(packets[0]), len(packets), headroom)

    def behind(self, count: int) -> "Rows":
        """Return the rows without the first ones."""
        start = self.start + count * self.stride
        return Rows(self.data, start, self.stride, self.count - count, self.headroom)

    def row(self, index: int) -> memoryview:
        """Return one packet."""
        at = self.start + index * self.stride
        return memoryview(self.data)[at + self.headroom : at + self.stride]

    def payloads(self, first: int, count: int, header: int) -> memoryview:
        """Return the payloads of some rows behind headers of a size, as one piece."""
        skip = self.headroom + header
        shape, strides = (count, self.stride - skip), (self.stride, 1)
        start = self.start + first * self.stride + skip
        return np.ndarray(shape, np.uint8, self.data, start, strides).reshape(-1).data


class RecordRows:
    """Nonces and additional data of up to MAX_ROWS DTLS records that follow one another."""

    __slots__ = ("_aads", "_explicit", "_ivs", "_numbers", "_tails", "_written", "aads", "nonces")

    def __init__(self) -> None:
        nonces, aads = bytearray(MAX_ROWS * NONCE), bytearray(MAX_ROWS * AAD)
        self.nonces = Cells(memoryview(nonces)).views(NONCE, MAX_ROWS)
        self.aads = Cells(memoryview(aads)).views(AAD, MAX_ROWS)
        self._ivs = np.ndarray((MAX_ROWS, 4), np.uint8, nonces, 0, (NONCE, 1))
        self._written = np.ndarray((MAX_ROWS,), ">u8", nonces, _NUMBER, (NONCE,))
        self._explicit = np.ndarray((MAX_ROWS,), np.uint64, nonces, _NUMBER, (NONCE,))
        self._aads = np.ndarray((MAX_ROWS,), ">u8", aads, 0, (AAD,))
        self._tails = np.ndarray((MAX_ROWS, 5), np.uint8, aads, 8, (AAD, 1))
        self._numbers = np.arange(MAX_ROWS, dtype=np.uint64)

    def fill(
        self, number: int, count: int, *, iv: bytes, mask: int, kind: int, version: int, size: int
    ) -> npt.NDArray[np.uint64]:
        """Prepare `count` records from `number` on, with `size` bytes of payload each.

        `iv` is the first 4 bytes of the nonces; the rest is the number xor `mask`.  Returns
        the numbers.
        """
        numbers: npt.NDArray[np.uint64] = self._numbers[:count] + np.uint64(number)
        self._ivs[:count] = np.frombuffer(iv, np.uint8)
        self._written[:count] = numbers ^ np.uint64(mask) if mask else numbers
        self._aads[:count] = numbers
        self._tails[:count] = np.frombuffer(_AAD_TAIL.pack(kind, version, size), np.uint8)
        return numbers

    def take_nonces(self, records: memoryview, at: int, stride: int, count: int) -> None:
        """Take the explicit nonces that lie in the records instead of the numbers."""
        self._explicit[:count] = np.ndarray((count,), np.uint64, records, at, (stride,))
