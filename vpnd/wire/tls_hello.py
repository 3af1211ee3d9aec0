"""The key-exchange group of a TLS connection, read from its ServerHello.

The library of Debian 13 does not tell the group.  It stands in the key_share extension of the
ServerHello (RFC 8446 sections 4.1.3 and 4.2.8), which both ends see in clear:

     0    1       3     5    6      9      11         43       44
    | 22 | 03 03 | len | 2  | len 3 | 03 03 | random 32 | id len | id | suite 2 | 0 | extensions
"""

from struct import Struct
from struct import error as StructError

GROUPS = {  # IANA TLS supported groups
    0x0017: "secp256r1",
    0x0018: "secp384r1",
    0x0019: "secp521r1",
    0x001D: "X25519",
    0x001E: "X448",
    0x11EB: "SecP256r1MLKEM768",
    0x11EC: "X25519MLKEM768",
    0x11ED: "SecP384r1MLKEM1024",
    0x0201: "MLKEM768",
}
MAX_HEARD = 32 * 1024  # bytes that a ServerHello may lie behind; it begins the first flight
_U16 = Struct("!H")
_RECORD_HEADER = 5
_HANDSHAKE = 22
_SERVER_HELLO = 2
_KEY_SHARE = 51
# RFC 8446 section 4.1.3: a ServerHello with this random is a HelloRetryRequest
_RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


def key_exchange_group(flight: bytes) -> str:
    """Return the group named in the key_share of the ServerHello that starts `flight`.

    Empty for TLS 1.2, for a HelloRetryRequest, and for whatever cannot be read; never raises.
    """
    try:
        kind, hello = flight[0], flight[_RECORD_HEADER:]
        if kind != _HANDSHAKE or hello[0] != _SERVER_HELLO or hello[6:38] == _RETRY_RANDOM:
            return ""
        at = 39 + hello[38] + 3  # session id, cipher suite, compression
        end = at + 2 + _U16.unpack_from(hello, at)[0]
        at += 2
        while at < end:
            extension, size = _U16.unpack_from(hello, at)[0], _U16.unpack_from(hello, at + 2)[0]
            if extension == _KEY_SHARE:
                number = _U16.unpack_from(hello, at + 4)[0]
                return GROUPS.get(number, f"0x{number:04x}")
            at += 4 + size
    except (IndexError, StructError):
        return ""
    return ""


class GroupListener:
    """Reads along what a server sends until its ServerHello was whole, then holds nothing."""

    __slots__ = ("_heard", "group", "is_done")

    def __init__(self) -> None:
        self._heard = bytearray()
        self.group = ""
        self.is_done = False

    def receive(self, data: bytes | memoryview) -> None:
        """Take bytes of the server in their order; afterwards `group` may be known."""
        self._heard += data
        while not self.is_done and len(self._heard) >= _RECORD_HEADER:
            end = _RECORD_HEADER + int.from_bytes(self._heard[3:5], "big")
            if len(self._heard) < end:
                break
            self._read(bytes(self._heard[:end]))
            del self._heard[:end]
        if self.is_done or len(self._heard) > MAX_HEARD:
            self.is_done = True
            self._heard.clear()

    def _read(self, record: bytes) -> None:
        """Go on past a HelloRetryRequest and what surrounds it; stop at a ServerHello."""
        is_hello = record[0] == _HANDSHAKE and record[5:6] == bytes([_SERVER_HELLO])
        if is_hello and record[11:43] == _RETRY_RANDOM:
            return
        self.group = key_exchange_group(record)
        self.is_done = is_hello or record[0] not in {_HANDSHAKE, 20}
