"""DTLS 1.2 record layer with AEAD ciphers (RFC 6347 section 4.1).

AES-GCM (RFC 5288, RFC 5487); the explicit nonce is the record number:

    0      1         3       5              11       13        21
    | type | version | epoch | sequence (6) | length | nonce   | ciphertext, tag (16) |

ChaCha20-Poly1305 (RFC 7905); the nonce is the IV xor the record number:

    0      1         3       5              11       13
    | type | version | epoch | sequence (6) | length | ciphertext, tag (16) |

No socket, no clock: the caller owns both.  `seal_batch` writes records back to
back, so that payloads of one size make the layout UDP segmentation offload wants.
Epoch and sequence travel here as one 64-bit number, which is also what the AEADs
authenticate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from struct import Struct
from struct import error as StructError

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from vpnd.errors import LocalProtocolError, Malformed

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
_HAS_INTO = hasattr(AESGCM, "encrypt_into")  # cryptography 47 and newer


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
        self._aead = (AESGCM if suite.explicit_nonce else ChaCha20Poly1305)(keys.key)
        self._iv = keys.iv
        self._iv_low = int.from_bytes(keys.iv[4:], "big")
        self._prefix_size = HEADER.size + suite.explicit_nonce

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

    def _encrypt_into(
        self, nonce: bytes, payload: memoryview, aad: bytes, out: memoryview
    ) -> None:
        out[:] = self._aead.encrypt(nonce, payload, aad)


class RecordOpener(_Direction):
    """The peer's direction of one epoch: records in, payloads out."""

    __slots__ = ()

    def open(self, record: memoryview, out: memoryview) -> tuple[int, int, int]:
        """Decrypt one whole record into the start of `out`.

        Returns (content type, sequence number, payload size).  The sequence number is
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
            if _HAS_INTO:
                self._aead.decrypt_into(nonce, record[prefix:], aad, out[:size])
            else:
                out[:size] = self._aead.decrypt(nonce, record[prefix:], aad)
        except (InvalidTag, StructError, ValueError) as exc:
            raise Malformed("record is not authentic") from exc
        return kind, number - EPOCH, size


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
