"""Our DTLS client against our server's half, over a network that loses things."""

import gc
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpnd.errors import LocalProtocolError
from vpnd.protocol import dtls_client
from vpnd.protocol.dtls_client import (
    MAX_DATAGRAMS,
    DtlsClientContext,
    DtlsClientHandshake,
    client_psk_supported,
)
from vpnd.protocol.dtls_handshake import (
    HANDSHAKE_TIMEOUT,
    DtlsContext,
    DtlsHandshake,
    HandshakeFailed,
)
from vpnd.wire.dtls_hello import is_client_hello, peek_client_hello
from vpnd.wire.dtls_record import RecordOpener, RecordSealer, split_records

PSK, APP_ID = bytes(range(32)), bytes(range(100, 132))
Start = Callable[..., DtlsClientHandshake]


@pytest.fixture
def context() -> DtlsClientContext:
    return DtlsClientContext()


@pytest.fixture
def server() -> DtlsHandshake:
    return DtlsHandshake(DtlsContext(), PSK, now=0.0)


@pytest.fixture
def client(context: DtlsClientContext) -> DtlsClientHandshake:
    client = DtlsClientHandshake(context, PSK, APP_ID)
    client.start(0.0)
    return client


def finish(client: DtlsClientHandshake, server: DtlsHandshake) -> None:
    """Run the handshake to its end."""
    for _ in range(2):
        for datagram in client.data_to_send():
            server.receive(datagram, now=0.0)
        for datagram in server.data_to_send():
            client.receive(datagram, 0.0)
    assert client.keys is not None


def test_this_library_lets_us_be_a_client() -> None:
    """Both generations have the calls."""
    assert client_psk_supported()


@pytest.mark.parametrize("size", [1, 16, 32])
def test_the_server_finds_the_session_by_our_app_id(context: DtlsClientContext, size: int) -> None:
    """In the extension, before OpenSSL sees anything."""
    client = DtlsClientHandshake(context, PSK, APP_ID[:size])
    client.start(0.0)
    (hello,) = client.data_to_send()
    assert is_client_hello(hello)
    assert peek_client_hello(hello).app_id == APP_ID[:size]


@pytest.mark.parametrize("size", [0, 33])
def test_an_app_id_that_no_server_takes_is_our_fault(
    context: DtlsClientContext, size: int
) -> None:
    """The answer to CONNECT was checked before."""
    with pytest.raises(LocalProtocolError):
        DtlsClientHandshake(context, PSK, bytes(size))


@pytest.mark.parametrize("chacha_first", [False, True])
def test_both_ends_derive_the_same_keys(*, chacha_first: bool) -> None:
    """And records pass both ways with them."""
    client = DtlsClientHandshake(DtlsClientContext(chacha_first=chacha_first), PSK, APP_ID)
    server = DtlsHandshake(DtlsContext(chacha_first=chacha_first), PSK, now=0.0)
    client.start(0.0)
    finish(client, server)
    assert client.keys == server.keys
    assert client.keys is not None
    assert ("CHACHA20" in client.keys.suite.name) == chacha_first
    sealer = RecordSealer(client.keys.suite, client.keys.client)
    opener = RecordOpener(client.keys.suite, client.keys.client)
    record = memoryview(bytearray(200))
    size = sealer.seal_batch([memoryview(b"\0packet")], record)
    out = memoryview(bytearray(200))
    kind, _, length = opener.open(record[:size], out)
    assert (kind, bytes(out[:length])) == (23, b"\0packet")


def test_handshakes_side_by_side_use_their_own_keys(context: DtlsClientContext) -> None:
    """A rotation has two under way."""
    ends = []
    for number in range(5):
        psk = bytes([number]) * 32
        client = DtlsClientHandshake(context, psk, bytes([number]))
        client.start(0.0)
        ends.append((client, DtlsHandshake(DtlsContext(), psk, now=0.0)))
    for client, server in reversed(ends):
        finish(client, server)
        assert client.keys == server.keys


def test_a_server_with_another_key_gets_no_keys_from_us(context: DtlsClientContext) -> None:
    """It is silent, so time decides."""
    client = DtlsClientHandshake(context, PSK, APP_ID)
    client.start(0.0)
    server = DtlsHandshake(DtlsContext(), bytes(32), now=0.0)
    for _ in range(3):
        for datagram in client.data_to_send():
            server.receive(datagram, now=0.0)
        for datagram in server.data_to_send():
            client.receive(datagram, 0.0)
    assert client.keys is None
    assert not client.expire(HANDSHAKE_TIMEOUT - 0.1)
    assert client.expire(HANDSHAKE_TIMEOUT)
    assert client.expire(HANDSHAKE_TIMEOUT + 1)
    client.receive(b"late", HANDSHAKE_TIMEOUT + 1)
    assert client.keys is None


def test_a_lost_flight_is_sent_again_in_a_new_record(
    client: DtlsClientHandshake, server: DtlsHandshake
) -> None:
    """OpenSSL's own clock says when, which is why this test takes a second."""
    (lost,) = client.data_to_send()
    due = client.next_deadline()
    assert 0 < due <= 1.0
    assert not client.expire(due / 2)
    assert client.data_to_send() == []
    time.sleep(due + 0.05)
    assert not client.expire(due + 0.05)
    (hello,) = client.data_to_send()
    assert hello != lost
    assert peek_client_hello(hello) == peek_client_hello(lost)
    assert client.next_deadline() > due + 0.5
    server.receive(hello, now=0.0)
    for datagram in server.data_to_send():
        client.receive(datagram, 0.0)
    finish(client, server)
    assert client.keys == server.keys


def test_a_flight_cut_into_its_records_and_doubled_completes(
    client: DtlsClientHandshake, server: DtlsHandshake
) -> None:
    """Networks do both."""
    for _ in range(2):
        for datagram in client.data_to_send():
            server.receive(datagram, now=0.0)
        for datagram in server.data_to_send():
            for record in split_records(memoryview(datagram)):
                client.receive(bytes(record), 0.0)
                client.receive(bytes(record), 0.0)
    assert client.keys == server.keys
    assert client.keys is not None


def test_openssl_is_let_go_with_the_keys(
    client: DtlsClientHandshake, server: DtlsHandshake, context: DtlsClientContext
) -> None:
    """It must never write again, and it is 70 KiB."""
    connection = weakref.ref(client._connection)  # type: ignore[type-var]
    finish(client, server)
    gc.collect()
    assert connection() is None
    assert not context._sessions
    client.receive(b"anything", 1.0)
    assert client.data_to_send() == []
    assert not client.expire(100.0)


def test_a_handshake_that_is_closed_leaves_nothing_behind(context: DtlsClientContext) -> None:
    """A later one may get the same address from the allocator."""
    for _ in range(3):
        client = DtlsClientHandshake(context, PSK, APP_ID)
        client.start(0.0)
        client.close()
        client.close()
        assert client.expire(0.0)
    assert not context._sessions


def test_a_flood_of_datagrams_ends_the_handshake(client: DtlsClientHandshake) -> None:
    """Whoever knows our port can send them; the work is bounded."""
    for _ in range(MAX_DATAGRAMS):
        client.receive(b"\x16\xfe\xfd" + bytes(10), 0.0)
    with pytest.raises(HandshakeFailed, match="datagrams"):
        client.receive(b"one more", 0.0)
    assert client.keys is None


def test_packets_before_the_end_of_the_handshake_do_not_count(
    client: DtlsClientHandshake, server: DtlsHandshake
) -> None:
    """A server whose last flight was lost sends them already, a hundred a millisecond."""
    for _ in range(10 * MAX_DATAGRAMS):
        client.receive(bytes.fromhex("17 fefd 0001 000000000001 0010") + bytes(16), 0.0)
    finish(client, server)
    assert client.keys == server.keys


def test_a_server_that_refuses_is_heard(client: DtlsClientHandshake) -> None:
    """A fatal alert in clear: anybody can forge it, and all it costs is this attempt."""
    with pytest.raises(HandshakeFailed):
        client.receive(bytes.fromhex("15 fefd 0000 000000000000 0002 0228"), 0.0)
    assert client.keys is None
    assert client.expire(0.1)


def test_callbacks_that_raise_send_nothing(
    context: DtlsClientContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exceptions vanish inside cffi: no hello without an App-ID, no key that is not ours."""
    client = DtlsClientHandshake(context, PSK, APP_ID)
    context._sessions.clear()
    with suppress(HandshakeFailed):
        client.start(0.0)
    assert not any(map(is_client_hello, client.data_to_send()))
    other = DtlsClientHandshake(context, PSK, APP_ID)
    other.start(0.0)
    server = DtlsHandshake(DtlsContext(), PSK, now=0.0)
    for datagram in other.data_to_send():
        server.receive(datagram, now=0.0)

    def broken(_ssl: object) -> int:
        raise RuntimeError

    monkeypatch.setattr(dtls_client, "ssl_address", broken)
    with suppress(HandshakeFailed, RuntimeError):  # close() needs the address, too
        for datagram in server.data_to_send():
            other.receive(datagram, 0.0)
    assert other.keys is None


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=80), max_size=5), st.booleans())
def test_arbitrary_datagrams_raise_nothing_but_handshake_failed(
    data: list[bytes], with_header: bool
) -> None:
    """And a good handshake may still follow them."""
    client = DtlsClientHandshake(DtlsClientContext(), PSK, APP_ID)
    client.start(0.0)
    for datagram in data:
        header = b"\x16\xfe\xfd" + bytes(8) + len(datagram).to_bytes(2, "big")
        with suppress(HandshakeFailed):
            client.receive(header + datagram if with_header else datagram, 0.0)
    assert client.keys is None


def test_secrets_do_not_show(client: DtlsClientHandshake, server: DtlsHandshake) -> None:
    """A repr ends in logs."""
    finish(client, server)
    assert "key=" not in repr(client.keys)
