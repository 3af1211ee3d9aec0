"""CSTP: packets on the TLS channel after the CONNECT answer (protocol.md's numbers, seen live).

     0             4        6      7      8
    | "STF" 0x01  | length | type | 0x00 | payload ...

The length is big-endian and leaves the header out.  Peers write exactly one packet per TLS record
and stock clients insist on that, so a writer seals header and payload with one call; a reader
still reassembles, because nothing in TLS promises record borders.
"""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from vpnd.errors import LocalProtocolError, Malformed

MAGIC = b"STF\x01"
HEADER = Struct("!4s H B B")  # magic, payload length, type, always zero
HEADER_SIZE = HEADER.size
MAX_PAYLOAD = 16384 - HEADER_SIZE  # one TLS record (RFC 8446 section 5.1) holds one packet
MAX_REASON = 128  # characters of a disconnect reason that are worth a log line

USER_LOGOUT = 0xB0
RECONNECTING = 0x91


class PacketType(IntEnum):
    """Packet types, the same on CSTP and in the first byte of a DTLS record."""

    DATA = 0
    DPD_REQUEST = 3
    DPD_RESPONSE = 4
    DISCONNECT = 5
    KEEPALIVE = 7
    COMPRESSED = 8
    TERMINATE = 9


def encode(kind: int, payload: bytes | memoryview = b"") -> bytes:
    """Return one packet, header included, to be sealed into one TLS record.

    Raises LocalProtocolError for a payload over MAX_PAYLOAD.
    """
    _check_size(len(payload))
    return HEADER.pack(MAGIC, len(payload), kind, 0) + payload


def write_header(view: memoryview, kind: int, size: int) -> None:
    """Write the header of a packet with `size` bytes of payload into the first bytes of `view`.

    Raises LocalProtocolError for a size over MAX_PAYLOAD.
    """
    _check_size(size)
    HEADER.pack_into(view, 0, MAGIC, size, kind, 0)


def _check_size(size: int) -> None:
    if size > MAX_PAYLOAD:
        raise LocalProtocolError(f"CSTP payload of {size} bytes; at most {MAX_PAYLOAD} fit")


class CstpReader:
    """Cuts a byte stream into packets; holds at most one unfinished packet."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = bytearray()

    def receive(self, data: bytes) -> list[tuple[int, memoryview]]:
        """Return (type, payload) of each packet that `data` completes, in order.

        Types are not judged: unknown ones are returned.  The views look into immutable memory and
        stay valid.  Raises Malformed where a header must be and none is, and for a length over
        MAX_PAYLOAD; the stream is then lost.
        """
        if self._pending:
            self._pending += data
            if len(self._pending) < HEADER_SIZE or len(self._pending) < self._wanted():
                return []
            data = bytes(self._pending)
            self._pending.clear()
        packets: list[tuple[int, memoryview]] = []
        view, at, size = memoryview(data), 0, len(data)
        while at + HEADER_SIZE <= size:
            kind, end = _read_header(view, at)
            if end > size:
                break
            packets.append((kind, view[at + HEADER_SIZE : end]))
            at = end
        self._pending += view[at:]
        return packets

    def _wanted(self) -> int:
        with memoryview(self._pending) as view:
            return _read_header(view, 0)[1]


def _read_header(view: memoryview, at: int) -> tuple[int, int]:
    magic, size, kind, zero = HEADER.unpack_from(view, at)
    if magic != MAGIC or zero:
        raise Malformed("no CSTP header where one must be")
    if size > MAX_PAYLOAD:
        raise Malformed(f"CSTP payload of {size} bytes; at most {MAX_PAYLOAD} are accepted")
    return kind, at + HEADER_SIZE + size


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Why the peer leaves: the code (None when the payload was empty) and printable text."""

    code: int | None
    text: str

    @property
    def is_temporary(self) -> bool:
        """Say whether the peer means to come back with its cookie."""
        return self.code in {None, RECONNECTING}


def parse_disconnect(payload: bytes | memoryview) -> Disconnect:
    """Return what a DISCONNECT or TERMINATE payload says; never raises.

    The text is ASCII of at most MAX_REASON characters; whatever could disturb a log is a "?".
    """
    if not payload:
        return Disconnect(None, "")
    text = bytes(payload[1 : 1 + MAX_REASON]).rstrip(b"\0\r\n")
    return Disconnect(payload[0], "".join(chr(c) if 32 <= c < 127 else "?" for c in text))
