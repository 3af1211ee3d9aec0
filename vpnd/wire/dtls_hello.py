"""A look at a DTLS ClientHello, before any state exists, to find the session it belongs to.

The App-ID that the CONNECT answer gave travels in extension 48018 (our client) or, with stock
clients, in the session id.  The sender is unknown and its address may be forged, so nothing here
allocates by what it reads, and the work per datagram is bounded.  A hello that passes may still be
refused by OpenSSL; one that fails is dropped in silence.

     0    1       3      5        11     13   14     17        19       22       25
    | 22 | fe ff | 0 0  | seq 6  | len  | 1  | len 3 | msg seq | off 3  | len 3  | body (RFC 6347)
                                               body: fe fd | random 32 | session id <0..32>
                                                     | cookie <0..255> | suites <2..>
                                                     | compression <1..> | extensions <0..>
"""

from dataclasses import dataclass
from struct import Struct
from struct import error as StructError

from vpnd.errors import Malformed

HANDSHAKE = 22
CLIENT_HELLO = 1
DTLS10 = 0xFEFF  # the record version of a first ClientHello, for old servers' sake
DTLS12 = 0xFEFD
APP_ID_EXTENSION = 48018  # as ocserv reads it: a length byte, then the id
MAX_APP_ID = 32  # the session id's limit, RFC 5246 section 7.4.1.2
MAX_HELLO = 2048  # an unfragmented hello fits a 1500-byte link
MAX_EXTENSIONS = 64  # OpenSSL and GnuTLS send a dozen

RECORD = Struct("!B H H 6x H")  # type, version, epoch, length
MESSAGE = Struct("!B 3s 2x 3s 3s")  # type, length, fragment offset, fragment length
BODY = Struct("!H 32s")  # client version, random
U8 = Struct("!B")
U16 = Struct("!H")
EXTENSION = Struct("!H H")  # type, length
MESSAGE_AT = RECORD.size
BODY_AT = MESSAGE_AT + MESSAGE.size
MIN_HELLO = BODY_AT + BODY.size + 8  # empty session id and cookie, one suite, one compression


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What identifies a hello: the App-ID (1 to 32 bytes) and the client's random (32 bytes)."""

    app_id: bytes
    random: bytes


def is_client_hello(datagram: bytes | memoryview) -> bool:
    """Say cheaply whether `peek_client_hello` is worth calling."""
    return (
        MIN_HELLO <= len(datagram) <= MAX_HELLO
        and datagram[0] == HANDSHAKE
        and datagram[3] == 0 == datagram[4]
        and datagram[MESSAGE_AT] == CLIENT_HELLO
    )


def peek_client_hello(datagram: bytes | memoryview) -> ClientHello:
    """Return the App-ID and the random of a datagram that is one whole DTLS 1.2 ClientHello.

    Raises Malformed for anything else: other types, a fragment, more than one record, a zero
    random (GnuTLS 3.6.3 to 3.6.12), no App-ID, or one of more than MAX_APP_ID bytes.
    """
    if len(datagram) > MAX_HELLO:
        raise Malformed(f"DTLS hello of more than {MAX_HELLO} bytes")
    try:
        hello = bytes(datagram)
        _check_framing(hello)
        return _read_body(hello)
    except StructError as exc:
        raise Malformed("DTLS hello ends early") from exc


def _check_framing(hello: bytes) -> None:
    kind, version, epoch, size = RECORD.unpack_from(hello)
    if kind != HANDSHAKE or version not in {DTLS10, DTLS12} or epoch:
        raise Malformed("not a DTLS record of a first handshake")
    if size != len(hello) - MESSAGE_AT:
        raise Malformed("not one DTLS record in one datagram")
    kind, length, offset, fragment = MESSAGE.unpack_from(hello, MESSAGE_AT)
    if kind != CLIENT_HELLO:
        raise Malformed("not a ClientHello")
    # a fragment would need memory for a sender whose address nobody has proved
    if any(offset) or fragment != length or int.from_bytes(length) != len(hello) - BODY_AT:
        raise Malformed("a fragmented ClientHello")


def _read_body(hello: bytes) -> ClientHello:
    version, random = BODY.unpack_from(hello, BODY_AT)
    if version != DTLS12:
        raise Malformed("not DTLS 1.2")
    if not any(random):
        raise Malformed("a zero random")
    session_id, at = _read_vector(hello, BODY_AT + BODY.size, U8)
    _cookie, at = _read_vector(hello, at, U8)
    suites, at = _read_vector(hello, at, U16)
    compression, at = _read_vector(hello, at, U8)
    if not suites or len(suites) % 2 or not compression:
        raise Malformed("no cipher suite or no compression method")
    app_id = _app_id_extension(hello, at)
    if app_id is None:
        app_id = session_id
    if not 1 <= len(app_id) <= MAX_APP_ID or len(session_id) > MAX_APP_ID:
        raise Malformed("no App-ID of 1 to 32 bytes")
    return ClientHello(app_id, random)


def _read_vector(data: bytes, at: int, prefix: Struct) -> tuple[bytes, int]:
    """Return the bytes behind a length prefix, and where they end."""
    (size,) = prefix.unpack_from(data, at)
    start = at + prefix.size
    if start + size > len(data):
        raise Malformed("a length beyond the end of the DTLS hello")
    return data[start : start + size], start + size


def _app_id_extension(hello: bytes, at: int) -> bytes | None:
    """Return the body of extension 48018 in the extension block at `at`, if it is there."""
    if at == len(hello):  # a hello may end before the block, RFC 5246 section 7.4.1.2
        return None
    block, end = _read_vector(hello, at, U16)
    if end != len(hello):
        raise Malformed("bytes behind the extensions")
    found: bytes | None = None
    at = 0
    for _ in range(MAX_EXTENSIONS + 1):  # the last round only finds the end
        if at == len(block):
            return found
        kind, size = EXTENSION.unpack_from(block, at)
        at += EXTENSION.size + size
        if at > len(block):
            raise Malformed("an extension beyond its block")
        if kind == APP_ID_EXTENSION:
            if found is not None:
                raise Malformed("two App-ID extensions")
            found = _app_id_of(block[at - size : at])
    raise Malformed(f"more than {MAX_EXTENSIONS} extensions")


def _app_id_of(body: bytes) -> bytes:
    app_id, end = _read_vector(body, 0, U8)
    if end != len(body) or not app_id:
        raise Malformed("an App-ID extension that holds no id")
    return app_id
