"""The look at a ClientHello: finds the App-ID, refuses the rest, nothing but Malformed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from vpnd.errors import Malformed
from vpnd.wire.dtls_hello import (
    MAX_EXTENSIONS,
    MAX_HELLO,
    ClientHello,
    is_client_hello,
    peek_client_hello,
)

SSL_FFI, SSL_LIB = vars(SSL)["_ffi"], vars(SSL)["_lib"]  # the cffi library below
APP_ID = bytes(range(32))
OTHER_ID = bytes(range(100, 116))
RANDOM = bytes(range(200, 232))
SUITES = bytes.fromhex("00a9ccabc0a5008d00a8c0a4008c00ae")  # as stock openconnect 9.01 sends

CAPTURED = bytes.fromhex(  # the first datagram of a stock openconnect 9.01 (GnuTLS 3.7.9)
    "16feff0000000000000000009b0100008f000000000000008ffefdd16cef6d6d2a8de059f0759d3d"
    "13d995d14938f39583452bab3347b933435d67203257de7ee0760fdebd8e70e611cdd48b2a4468e4"
    "a268cf448a7c8621fdea9c1c00001000a9ccabc0a5008d00a8c0a4008c00ae01000035000d002200"
    "20040108090804040308070501080a0805050308080601080b080606030201020300230000ff0100"
    "0100001c00024000"
)


def vector(data: bytes, size: int = 1) -> bytes:
    return len(data).to_bytes(size) + data


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2) + vector(body, 2)


def body(
    session_id: bytes = APP_ID,
    extensions: bytes | None = None,
    *,
    version: bytes = b"\xfe\xfd",
    random: bytes = RANDOM,
    cookie: bytes = b"",
    suites: bytes = SUITES,
    compression: bytes = b"\x00",
) -> bytes:
    fields = vector(session_id) + vector(cookie) + vector(suites, 2) + vector(compression)
    return version + random + fields + (b"" if extensions is None else vector(extensions, 2))


def datagram(
    hello: bytes,
    *,
    kind: int = 22,
    version: bytes = b"\xfe\xff",
    epoch: int = 0,
    message: int = 1,
    offset: int = 0,
    fragment: int | None = None,
) -> bytes:
    size = len(hello).to_bytes(3)
    part = size if fragment is None else fragment.to_bytes(3)
    content = bytes([message]) + size + b"\x00\x00" + offset.to_bytes(3) + part + hello
    return bytes([kind]) + version + epoch.to_bytes(2) + bytes(6) + vector(content, 2)


OURS = extension(48018, vector(OTHER_ID))
HELLO = datagram(body(extensions=extension(13, b"\x00\x02\x04\x01") + extension(35, b"")))


@pytest.mark.parametrize(
    ("hello", "app_id"),
    [
        (HELLO, APP_ID),
        (datagram(body()), APP_ID),
        (datagram(body(b"\x07")), b"\x07"),
        (datagram(body(extensions=b"")), APP_ID),
        (datagram(body(cookie=bytes(32)), version=b"\xfe\xfd"), APP_ID),
        (datagram(body(b"", OURS)), OTHER_ID),
        (datagram(body(APP_ID, extension(35, b"") + OURS)), OTHER_ID),
    ],
)
def test_the_app_id_is_found_first_in_the_extension_then_in_the_session_id(
    hello: bytes, app_id: bytes
) -> None:
    """Stock clients have one way, ours the other."""
    assert is_client_hello(hello)
    assert peek_client_hello(hello) == ClientHello(app_id, RANDOM)
    assert peek_client_hello(memoryview(hello)) == ClientHello(app_id, RANDOM)


@pytest.mark.parametrize(
    "hello",
    [
        datagram(body(b"")),
        datagram(body(b"", extension(48018, b""))),
        datagram(body(APP_ID, extension(48018, b"\x00"))),
        datagram(body(APP_ID, extension(48018, vector(OTHER_ID) + b"\x00"))),
        datagram(body(APP_ID, extension(48018, vector(bytes(33))))),
        datagram(body(APP_ID, OURS + OURS)),
        datagram(body(bytes(33))),
        datagram(body(bytes(33), OURS)),
        datagram(body(random=bytes(32))),
        datagram(body(version=b"\xfe\xff")),
        datagram(body(version=b"\x01\x00")),
        datagram(body(suites=b"")),
        datagram(body(suites=b"\x00")),
        datagram(body(compression=b"")),
        datagram(body(extensions=b"\x00")),
        datagram(body(extensions=extension(13, b"")) + b"\x00"),
        datagram(body(), kind=23),
        datagram(body(), version=b"\x03\x03"),
        datagram(body(), version=b"\x01\x00"),
        datagram(body(), epoch=1),
        datagram(body(), message=2),
        datagram(body(), offset=1),
        datagram(body(), fragment=10),
        datagram(body()) + datagram(body()),
        datagram(body()) + b"\x00",
        datagram(body())[:11] + b"\x00\x20" + datagram(body())[13:],
        datagram(body(extensions=extension(1, b"") * (MAX_EXTENSIONS + 1))),
        datagram(body(extensions=extension(1, bytes(MAX_HELLO)))),
        b"",
    ],
)
def test_anything_but_one_whole_hello_with_an_app_id_is_refused(hello: bytes) -> None:
    """Whatever passes costs an OpenSSL object."""
    with pytest.raises(Malformed):
        peek_client_hello(hello)


def test_as_many_extensions_as_the_bound_says_are_read() -> None:
    """The bound itself is allowed, and the last one still counts."""
    many = extension(1, b"") * (MAX_EXTENSIONS - 1) + OURS
    assert peek_client_hello(datagram(body(extensions=many))).app_id == OTHER_ID


def test_every_truncation_is_refused() -> None:
    """A length that points beyond the end must not be believed."""
    for size in range(len(HELLO)):
        with pytest.raises(Malformed):
            peek_client_hello(HELLO[:size])


@given(st.binary(max_size=200) | st.binary(max_size=100).map(datagram))
def test_arbitrary_bytes_raise_only_malformed(data: bytes) -> None:
    """Anyone can send a datagram."""
    is_client_hello(data)
    try:
        peek_client_hello(data)
    except Malformed:
        return
    assert is_client_hello(data)


@given(
    st.lists(st.tuples(st.integers(0, len(HELLO) - 1), st.integers(0, 255)), max_size=4),
    st.sampled_from([HELLO, datagram(body(b"", OURS))]),
)
def test_a_damaged_hello_raises_only_malformed_or_gives_a_sane_id(
    damage: list[tuple[int, int]], hello: bytes
) -> None:
    """Near the right bytes is where a parser goes wrong."""
    damaged = bytearray(hello)
    for at, value in damage:
        damaged[at % len(damaged)] = value
    try:
        found = peek_client_hello(bytes(damaged))
    except Malformed:
        return
    assert is_client_hello(bytes(damaged))
    assert 1 <= len(found.app_id) <= 32
    assert len(found.random) == 32


def test_a_stock_client_is_understood() -> None:
    """What GnuTLS writes: the App-ID as the session id, right at offset 60."""
    assert is_client_hello(CAPTURED)
    assert peek_client_hello(CAPTURED) == ClientHello(CAPTURED[60:92], CAPTURED[27:59])
    assert CAPTURED[60:64] == bytes.fromhex("3257de7e")


def openssl_hello(app_id: bytes) -> bytes:
    """Return the first datagram of an OpenSSL client that carries `app_id` in the extension."""
    context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
    content = SSL_FFI.new("unsigned char[]", vector(app_id))

    def add(_ssl: object, _kind: int, out: list[object], size: list[int], *_rest: object) -> int:
        out[0], size[0] = content, 1 + len(app_id)
        return 1

    callbacks = (
        SSL_FFI.callback(
            "int(SSL*, unsigned int, const unsigned char**, size_t*, int*, void*)", add
        ),
        SSL_FFI.NULL,
        SSL_FFI.NULL,
        SSL_FFI.callback(
            "int(SSL*, unsigned int, const unsigned char*, size_t, int*, void*)", lambda *_: 1
        ),
        SSL_FFI.NULL,
    )
    assert SSL_LIB.SSL_CTX_add_client_custom_ext(context._context, 48018, *callbacks) == 1
    client = SSL.Connection(context, None)
    client.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    return client.bio_read(MAX_HELLO)


def test_openssl_and_we_agree_on_a_hello() -> None:
    """An independent writer, with all the extensions that it likes to send."""
    hello = openssl_hello(APP_ID)
    assert is_client_hello(hello)
    assert peek_client_hello(hello) == ClientHello(APP_ID, hello[27:59])
