"""DTLS 1.2 record layer with AEAD ciphers (RFC 6347 section 4.1).

AES-GCM (RFC 5288, RFC 5487); the explicit nonce is the record number:

    0      1         3       5              11       13        21
    | type | version | epoch | sequence (6) | length | nonce   | ciphertext, tag (16) |

ChaCha20-Poly1305 (RFC 7905); the nonce is the IV xor the record number:

    0      1         3       5              11       13
    | type | version | epoch | sequence (6) | length | ciphertext, tag (16) |

No socket, no clock: the caller owns both.  Records are written back to back, so that payloads
of one size make the layout UDP segmentation offload wants.  A train of them goes by `seal_rows`
and `open_rows`: what its records have in common, and their numbers, are written by a few array
assignments, and nothing but the AEAD is called for each.
Epoch and sequence travel here as one 64-bit number, which is also what the AEADs
authenticate.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import length_hint
from struct import Struct
from struct import error as StructError
from typing import cast

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.wire.rows import MAX_ROWS, Cells, RecordRows

CHANGE_CIPHER_SPEC = 20
ALERT = 21
HANDSHAKE = 22
APPLICATION_DATA = 23
DTLS12 = 0xFEFD

HEADER = Struct("!B H Q H")
TAG_SIZE = 16
EPOCH = 1 << 48  # the only epoch of application data: there is no renegotiation
MAX_RECORDS = 1 << 31  # far below the AEADs' limits; the keys are replaced long before
FIRST_SEQUENCE = 1024  # above anything the handshake library may have used in this epoch
_GCM_HEADER = Struct("!B H Q H Q")
_GCM_NONCE = Struct("!4s Q")
_AAD = Struct("!Q B H H")
_NUMBER_AT = 3  # offset of epoch and sequence number
_NO_NONCE = bytes(8)
_ALL = slice(None)
_STEPS = np.arange(MAX_ROWS, dtype=np.uint64) << np.uint64(16)  # number and length in one word
_HAS_INTO = hasattr(AESGCM, "encrypt_into")  # cryptography 47 and newer


def _takes_views() -> bool:
    """Return whether the AEADs take borrowed memory; those of cryptography 38 want bytes."""
    try:
        AESGCM(bytes(16)).encrypt(bytes(12), memoryview(b""), b"")
    except TypeError:
        return False
    return True


class _Copying:
    """An AEAD that wants bytes."""

    __slots__ = ("_aead",)

    def __init__(self, aead: AESGCM | ChaCha20Poly1305) -> None:
        self._aead = aead

    def encrypt(self, nonce: memoryview, data: memoryview, associated: memoryview) -> bytes:
        return self._aead.encrypt(bytes(nonce), bytes(data), bytes(associated))

    def decrypt(self, nonce: memoryview, data: memoryview, associated: memoryview) -> bytes:
        return self._aead.decrypt(bytes(nonce), bytes(data), bytes(associated))


_TAKES_VIEWS = _takes_views()


@dataclass(frozen=True, slots=True)
class Suite:
    """One TLS 1.2 AEAD cipher suite, as the record layer needs it."""

    name: str
    key_size: int
    iv_size: int
    """Bytes of fixed IV per direction: 4 for GCM, 12 for ChaCha20."""
    explicit_nonce: int
    """Bytes of nonce inside each record: 8 for GCM, 0 for ChaCha20."""
    prf_hash: str
    openssl_name: str

    @property
    def overhead(self) -> int:
        """Bytes a record is longer than its payload."""
        return HEADER.size + self.explicit_nonce + TAG_SIZE


SUITES = {
    suite.openssl_name: suite
    for suite in (
        Suite("AES-256-GCM", 32, 4, 8, "sha384", "PSK-AES256-GCM-SHA384"),
        Suite("CHACHA20-POLY1305", 32, 12, 0, "sha256", "PSK-CHACHA20-POLY1305"),
        Suite("AES-128-GCM", 16, 4, 8, "sha256", "PSK-AES128-GCM-SHA256"),
    )
}
MAX_OVERHEAD = max(suite.overhead for suite in SUITES.values())


@dataclass(frozen=True, slots=True)
class DirectionKeys:
    """Key and fixed IV of one direction."""

    key: bytes = field(repr=False)
    iv: bytes = field(repr=False)


class _Direction:
    """What sealing and opening share: the AEAD and how nonces are made."""

    __slots__ = ("_aead", "_iv", "_iv_low", "_prefix_size", "suite")

    def __init__(self, suite: Suite, keys: DirectionKeys) -> None:
        if len(keys.key) != suite.key_size or len(keys.iv) != suite.iv_size:
            raise LocalProtocolError(f"keys do not fit {suite.name}")
        self.suite = suite
        aead = (AESGCM if suite.explicit_nonce else ChaCha20Poly1305)(keys.key)
        self._aead = aead if _TAKES_VIEWS else cast("AESGCM", _Copying(aead))
        self._iv = keys.iv
        self._iv_low = int.from_bytes(keys.iv[4:], "big")
        self._prefix_size = HEADER.size + suite.explicit_nonce

    def _fill(
        self, rows: RecordRows, number: int, count: int, size: int
    ) -> npt.NDArray[np.uint64]:
        mask = 0 if self.suite.explicit_nonce else self._iv_low
        kind = APPLICATION_DATA
        return rows.fill(
            number, count, iv=self._iv[:4], mask=mask, kind=kind, version=DTLS12, size=size
        )

    def _nonce(self, number: int) -> bytes:
        if self.suite.explicit_nonce:
            return _GCM_NONCE.pack(self._iv, number)
        return self._iv[:4] + (self._iv_low ^ number).to_bytes(8, "big")


class RecordSealer(_Direction):
    """Our direction of one epoch: payloads in, records out."""

    __slots__ = ("_next", "_stop")

    def __init__(
        self, suite: Suite, keys: DirectionKeys, *, first_sequence: int = FIRST_SEQUENCE
    ) -> None:
        super().__init__(suite, keys)
        self._next = EPOCH | first_sequence
        self._stop = EPOCH | MAX_RECORDS

    @property
    def records_left(self) -> int:
        """How many records may still be sealed with these keys."""
        return self._stop - self._next

    def seal_batch(self, payloads: Sequence[memoryview], out: memoryview) -> int:
        """Write one application-data record per payload into `out`, back to back.

        Returns the bytes written.  Raises LocalProtocolError when the keys have sealed
        `MAX_RECORDS` records, before anything is written.
        """
        if len(payloads) > self.records_left:
            raise LocalProtocolError("these keys are used up")
        number, at, prefix = self._next, 0, self._prefix_size
        gcm = bool(self.suite.explicit_nonce)
        extra = prefix - HEADER.size + TAG_SIZE
        encrypt_into = self._aead.encrypt_into if _HAS_INTO else self._encrypt_into
        for payload in payloads:
            size = len(payload)
            end = at + prefix + size + TAG_SIZE
            if gcm:
                _GCM_HEADER.pack_into(
                    out, at, APPLICATION_DATA, DTLS12, number, size + extra, number
                )
            else:
                HEADER.pack_into(out, at, APPLICATION_DATA, DTLS12, number, size + extra)
            aad = _AAD.pack(number, APPLICATION_DATA, DTLS12, size)
            encrypt_into(self._nonce(number), payload, aad, out[at + prefix : end])
            number, at = number + 1, end
        self._next = number
        return at

    def seal_rows(
        self, rows: RecordRows, payloads: Sequence[memoryview], out: Cells, first: int
    ) -> None:
        """Write the records of payloads of one size into the cells of `out` from `first` on.

        Raises LocalProtocolError as `seal_batch` does.  The caller knows that they fit.
        """
        if len(payloads) > self.records_left:
            raise LocalProtocolError("these keys are used up")
        for at in range(0, len(payloads), MAX_ROWS):
            self._seal_some(rows, payloads[at : at + MAX_ROWS], out, first + at)

    def _seal_some(
        self, rows: RecordRows, payloads: Sequence[memoryview], out: Cells, first: int
    ) -> None:
        count, size, prefix = len(payloads), len(payloads[0]), self._prefix_size
        record = prefix + size + TAG_SIZE
        start, shape, strides = first * record, (count,), (record,)
        numbers = self._fill(rows, self._next, count, size)
        header = HEADER.pack(APPLICATION_DATA, DTLS12, 0, record - HEADER.size) + _NO_NONCE
        headers = np.ndarray((count, prefix), np.uint8, out.buffer, start, (record, 1))
        headers[:] = np.frombuffer(header, np.uint8)[:prefix]
        np.ndarray(shape, ">u8", out.buffer, start + _NUMBER_AT, strides)[:] = numbers
        if self.suite.explicit_nonce:
            np.ndarray(shape, ">u8", out.buffer, start + HEADER.size, strides)[:] = numbers
        self._next += count
        cells = out.views(record, count, first=first, skip=prefix)
        if _HAS_INTO:
            seal = self._aead.encrypt_into
            deque(map(seal, rows.nonces, payloads, rows.aads, cells), 0)
        else:
            sealed = map(self._aead.encrypt, rows.nonces, payloads, rows.aads)
            deque(map(memoryview.__setitem__, cells, repeat(_ALL), sealed), 0)

    def _encrypt_into(
        self, nonce: bytes, payload: memoryview, aad: bytes, out: memoryview
    ) -> None:
        out[:] = self._aead.encrypt(nonce, payload, aad)


class RecordOpener(_Direction):
    """The peer's direction of one epoch: records in, payloads out."""

    __slots__ = ()

    @property
    def prefix_size(self) -> int:
        """Bytes of a record before its ciphertext."""
        return self._prefix_size

    def open_rows(
        self,
        rows: RecordRows,
        data: memoryview,
        size: int,
        ciphertexts: Sequence[memoryview],
        out: Cells,
        first: int,
    ) -> tuple[int, int]:
        """Open records of `size` bytes each, back to back at the start of `data`.

        `ciphertexts` are views of them behind their prefixes, at most MAX_ROWS.  The payloads
        go into the cells of `out` from `first` on, which the caller knows to fit.  Returns the
        first sequence number and how many were opened: the others' numbers follow on.  It ends
        at the first record for which `read` has to tell: one with other contents than data, or
        none, with a number that does not follow on, or that is not authentic.
        """
        payload = size - self.suite.overhead
        if payload <= 0:
            return 0, 0
        kind, version, number, length = HEADER.unpack_from(data)
        if (kind, version, number >> 48, length) != (APPLICATION_DATA, DTLS12, 1, _behind(size)):
            return 0, 0
        count = _orderly(data, size, len(ciphertexts))
        self._fill(rows, number, count, payload)
        if self.suite.explicit_nonce:
            rows.take_nonces(data, HEADER.size, size, count)
        progress = iter(out.views(payload, count, first=first))
        try:
            if _HAS_INTO:
                decrypt = self._aead.decrypt_into
                deque(map(decrypt, rows.nonces, ciphertexts, rows.aads, progress), 0)
            else:
                opened = map(self._aead.decrypt, rows.nonces, ciphertexts, rows.aads)
                deque(map(memoryview.__setitem__, progress, repeat(_ALL), opened), 0)
        except InvalidTag:
            return number - EPOCH, count - 1 - length_hint(progress)
        return number - EPOCH, count

    def open(self, record: memoryview, out: memoryview) -> tuple[int, int, int]:
        """Write the payload to the start of `out`, and return its size instead of it (`read`)."""
        kind, sequence, payload = self.read(record)
        out[: len(payload)] = payload
        return kind, sequence, len(payload)

    def read(self, record: memoryview) -> tuple[int, int, bytes]:
        """Decrypt one whole record.

        Returns (content type, sequence number, payload).  The sequence number is
        authentic but may be a repeat: ask a `ReplayWindow`.  Raises Malformed for
        anything that is not an authentic record of epoch 1 that fills `record`.
        """
        try:
            kind, version, number, length = HEADER.unpack_from(record)
            prefix = self._prefix_size
            size = len(record) - prefix - TAG_SIZE
            if size < 0 or length != len(record) - HEADER.size or version != DTLS12:
                raise Malformed("record header")
            if number >> 48 != 1:
                raise Malformed("record of another epoch")
            aad = _AAD.pack(number, kind, version, size)
            if self.suite.explicit_nonce:
                nonce = self._iv + record[HEADER.size : prefix]
            else:
                nonce = self._nonce(number)
            payload = self._aead.decrypt(nonce, record[prefix:], aad)
        except (InvalidTag, StructError, ValueError) as exc:
            raise Malformed("record is not authentic") from exc
        return kind, number - EPOCH, payload


def _behind(size: int) -> int:
    """Return what the length field of a record of `size` bytes says."""
    return size - HEADER.size


def _orderly(data: memoryview, size: int, count: int) -> int:
    """Return how many records of `size` bytes have the first one's header and numbers in order.

    Looked at in two words: type, version, epoch and the number's upper half, which seldom
    changes; the number and the length.
    """
    upper = np.ndarray((count,), np.uint64, data, 0, (size,))
    lower = np.ndarray((count,), ">u8", data, HEADER.size - 8, (size,))
    differs = (lower != lower[0] + _STEPS[:count]) | (upper != upper[0])
    found = int(differs.argmax())
    return found or count  # the first never differs from itself


def split_records(datagram: memoryview) -> list[memoryview]:
    """Return the records a datagram consists of (RFC 6347 section 4.1.1 allows several).

    Raises Malformed if the lengths do not add up.
    """
    records = []
    at, end = 0, len(datagram)
    while at < end:
        if end - at < HEADER.size:
            raise Malformed("datagram ends inside a record header")
        stop = at + HEADER.size + int.from_bytes(datagram[at + 11 : at + 13], "big")
        if stop > end:
            raise Malformed("datagram ends inside a record")
        records.append(datagram[at:stop])
        at = stop
    return records
