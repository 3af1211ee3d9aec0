"""The DTLS handshake against OpenSSL's own client, with everything a network does to flights."""

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.psk_client import PskClient, again, handshake
from vpnd.protocol import dtls_handshake
from vpnd.protocol.dtls_handshake import (
    HANDSHAKE_TIMEOUT,
    MAX_ANSWERS,
    MAX_RESENDS,
    RESEND_INTERVAL,
    DtlsContext,
    DtlsHandshake,
    HandshakeFailed,
    prf,
    psk_supported,
)
from vpnd.wire.dtls_record import SUITES, split_records

PSK = bytes(range(32))


@pytest.fixture
def context() -> DtlsContext:
    return DtlsContext()


@pytest.fixture
def server(context: DtlsContext) -> DtlsHandshake:
    return DtlsHandshake(context, PSK, now=0.0)


def test_this_library_lets_us_use_a_pre_shared_key() -> None:
    """Without the callback there would be no UDP at all: both generations have it."""
    assert psk_supported()


@pytest.mark.parametrize("cipher", SUITES)
def test_both_ends_derive_the_same_keys(server: DtlsHandshake, cipher: str) -> None:
    """The client's view comes from OpenSSL's session, not from ours."""
    client = PskClient(PSK, cipher=cipher)
    handshake(client, server)
    assert server.keys == client.keys()
    assert server.keys is not None
    assert server.keys.client != server.keys.server


def test_aes_256_is_preferred_and_chacha_where_the_processor_has_no_aes() -> None:
    """The server's order counts, whatever the client lists first."""
    offered = "PSK-AES128-GCM-SHA256:PSK-CHACHA20-POLY1305:PSK-AES256-GCM-SHA384"
    for chacha_first, name in ((False, "AES-256-GCM"), (True, "CHACHA20-POLY1305")):
        server = DtlsHandshake(DtlsContext(chacha_first=chacha_first), PSK, now=0.0)
        handshake(PskClient(PSK, cipher=offered), server)
        assert server.keys is not None
        assert server.keys.suite.name == name


def test_keys_do_not_show(server: DtlsHandshake) -> None:
    """A repr ends in logs."""
    handshake(PskClient(PSK), server)
    assert "DirectionKeys" not in repr(server.keys)


def test_handshakes_side_by_side_use_their_own_keys(context: DtlsContext) -> None:
    """One callback serves all sessions of the process."""
    ends = [(PskClient(bytes([n]) * 32), DtlsHandshake(context, bytes([n]) * 32, now=0.0))
            for n in range(1, 6)]  # fmt: skip
    for client, server in ends:
        server.receive(client.hello(), now=0.0)
    for client, server in reversed(ends):
        (flight,) = server.data_to_send()
        server.receive(client.step(flight), now=0.0)
        assert server.keys == client.keys()


def test_a_wrong_psk_gets_no_answer_and_no_keys(server: DtlsHandshake) -> None:
    """Nothing that an attacker could measure: the handshake just never ends."""
    client = PskClient(bytes(32))
    server.receive(client.hello(), now=0.0)
    (flight,) = server.data_to_send()
    finished = client.step(flight)
    server.receive(finished, now=0.1)
    assert server.data_to_send() == []
    assert server.keys is None
    assert not server.expire(now=HANDSHAKE_TIMEOUT - 0.1)
    assert server.expire(now=HANDSHAKE_TIMEOUT)


def test_a_lost_first_flight_is_sent_again_when_the_client_repeats_its_hello(
    server: DtlsHandshake,
) -> None:
    """Clients repeat after a second, OpenSSL's own clock runs as long: it may miss them."""
    client = PskClient(PSK)
    hello = client.hello()
    server.receive(hello, now=0.0)
    (lost,) = server.data_to_send()
    server.receive(again(hello, 1), now=1.0)
    (flight,) = server.data_to_send()
    assert flight == lost
    server.receive(client.step(flight), now=1.1)
    assert server.keys == client.keys()


def test_a_client_that_needed_every_answer_still_gets_the_last_flight(
    server: DtlsHandshake,
) -> None:
    """The limit is for those who prove nothing; a Finished that verifies is a proof."""
    client = PskClient(PSK)
    hello = client.hello()
    server.receive(hello, now=0.0)
    for number in range(1, MAX_ANSWERS):
        server.receive(again(hello, number), now=float(number))
    *_, flight = server.data_to_send()
    server.receive(client.step(flight), now=5.0)
    (last,) = server.data_to_send()
    client.step(last)
    assert client.is_done
    assert server.keys == client.keys()


def test_a_hello_is_answered_three_times_at_most(server: DtlsHandshake) -> None:
    """The sender's address is not proved: what it gets is bounded, however often it asks."""
    hello = PskClient(PSK).hello()
    for number in range(20):
        server.receive(again(hello, number), now=number / 10)
    flights = server.data_to_send()
    assert len(flights) == MAX_ANSWERS == 3
    assert sum(map(len, flights)) < 3 * len(hello)


def test_a_flight_cut_into_its_records_completes(server: DtlsHandshake) -> None:
    """Some stacks put each record into a datagram of its own."""
    client = PskClient(PSK)
    server.receive(client.hello(), now=0.0)
    (flight,) = server.data_to_send()
    for record in split_records(memoryview(client.step(flight))):
        assert server.keys is None
        server.receive(bytes(record), now=0.1)
    assert server.keys == client.keys()


def test_a_repeated_finished_gets_the_last_flight_verbatim_within_limits(
    server: DtlsHandshake,
) -> None:
    """It cannot be made anew: its record number must not be used twice with other bytes."""
    client = PskClient(PSK)
    last = handshake(client, server)
    now, sent = 100.0, 0
    for _ in range(200):
        server.receive(b"whatever the client repeats", now=now)
        for datagram in server.data_to_send():
            assert datagram == last
            sent += 1
        now += RESEND_INTERVAL / 10
    assert sent == MAX_RESENDS == 10
    server.repeat_last_flight(now=now + 100)
    assert server.data_to_send() == []


def test_the_last_flight_is_repeated_once_per_interval(server: DtlsHandshake) -> None:
    """A burst of repetitions, which one flight of three records already is, gets one answer."""
    handshake(PskClient(PSK), server, now=0.0)
    for now, expected in ((10.0, 1), (10.0, 0), (10.19, 0), (10.21, 1)):
        server.repeat_last_flight(now=now)
        assert len(server.data_to_send()) == expected


def test_the_lost_last_flight_lets_the_client_finish_later(server: DtlsHandshake) -> None:
    """The client takes the repeated bytes as if they were the first."""
    client = PskClient(PSK)
    server.receive(client.hello(), now=0.0)
    (flight,) = server.data_to_send()
    finished = client.step(flight)
    server.receive(finished, now=0.0)
    server.data_to_send()  # lost
    assert not client.is_done
    server.receive(finished, now=1.0)
    (last,) = server.data_to_send()
    client.step(last)
    assert client.is_done


def test_openssl_is_let_go_with_the_keys(server: DtlsHandshake, context: DtlsContext) -> None:
    """It must never write again, and it is 70 KiB."""
    connection = weakref.ref(server._connection)  # type: ignore[type-var]
    assert context._keys
    handshake(PskClient(PSK), server)
    gc.collect()
    assert connection() is None
    assert not context._keys


def test_a_handshake_that_is_closed_leaves_no_key_behind(context: DtlsContext) -> None:
    """A later handshake may get the same address from the allocator."""
    for _ in range(3):
        server = DtlsHandshake(context, PSK, now=0.0)
        server.receive(PskClient(PSK).hello(), now=0.0)
        server.close()
        server.close()
    assert not context._keys


def test_an_offer_we_have_no_record_layer_for_fails(server: DtlsHandshake) -> None:
    """A CBC suite must not be agreed on: nobody could read its records."""
    client = PskClient(PSK, cipher="PSK-AES128-CBC-SHA256")
    with pytest.raises(HandshakeFailed):
        server.receive(client.hello(), now=0.0)
    assert server.keys is None


@given(st.lists(st.binary(max_size=200), max_size=4), st.booleans())
def test_arbitrary_datagrams_raise_nothing_but_handshake_failed(
    datagrams: list[bytes], after_hello: bool
) -> None:
    """OpenSSL's errors do not get past this module."""
    server = DtlsHandshake(_SHARED, PSK, now=0.0)
    if after_hello:
        server.receive(PskClient(PSK).hello(), now=0.0)
    try:
        for datagram in datagrams:
            server.receive(datagram, now=0.0)
    except HandshakeFailed:
        pass
    assert server.keys is None
    server.close()


def test_garbage_before_and_between_does_not_disturb(server: DtlsHandshake) -> None:
    """Anybody can send from anywhere: what is not a record is dropped by OpenSSL."""
    client = PskClient(PSK)
    for junk in (b"", b"\x00", b"\x17\xfe\xfd" + bytes(40), bytes(64)):
        server.receive(junk, now=0.0)
    server.receive(client.hello(), now=0.0)
    server.receive(b"\x16\xfe\xfd\x00\x01" + bytes(60), now=0.0)
    (flight,) = server.data_to_send()
    server.receive(client.step(flight), now=0.1)
    assert server.keys == client.keys()


def test_a_callback_that_raises_refuses_the_handshake(
    context: DtlsContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exceptions vanish inside cffi: the answer must then be no key, not a zero key."""
    server = DtlsHandshake(context, PSK, now=0.0)
    client = PskClient(PSK)

    def broken(_ssl: object) -> int:
        raise RuntimeError

    server.receive(client.hello(), now=0.0)
    (flight,) = server.data_to_send()
    monkeypatch.setattr(dtls_handshake, "ssl_address", broken)
    with pytest.raises(RuntimeError):  # close() fails too, as it needs the address
        server.receive(client.step(flight), now=0.1)
    assert server.keys is None
    monkeypatch.undo()
    server.close()


def test_the_prf_gives_the_published_values() -> None:
    """The P_SHA256 vector that Nikos Mavrogiannopoulos posted to the TLS working group."""
    secret = bytes.fromhex("9bbe436ba940f017b17652849a71db35")
    seed = b"test label" + bytes.fromhex("a0ba9f936cda311827a6f796ffd5198c")
    assert prf("sha256", secret, seed, 100).hex() == (
        "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a"
        "6b301791e90d35c9c9a46b4e14baf9af0fa022f7077def17abfd3797c0564bab"
        "4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e5a5110fff701"
        "87347b66"
    )


_SHARED = DtlsContext()
