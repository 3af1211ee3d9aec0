"""The record layer against itself, against arbitrary bytes, and against OpenSSL."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from tests.protocol.psk_client import PskClient, handshake
from vpnd.errors import LocalProtocolError, Malformed
from vpnd.protocol.dtls_handshake import DtlsContext, DtlsHandshake
from vpnd.wire import dtls_record
from vpnd.wire.dtls_record import (
    APPLICATION_DATA,
    FIRST_SEQUENCE,
    HEADER,
    MAX_OVERHEAD,
    MAX_RECORDS,
    SUITES,
    DirectionKeys,
    RecordOpener,
    RecordSealer,
    Suite,
    split_records,
)

PSK = bytes(range(32))
SUITE = st.sampled_from(list(SUITES.values()))
PAYLOADS = st.lists(st.binary(max_size=200), min_size=1, max_size=8)
GENERATIONS = [False] + [True] * hasattr(dtls_record.AESGCM, "encrypt_into")


def keys(suite: Suite) -> DirectionKeys:
    return DirectionKeys(bytes(range(suite.key_size)), bytes(range(100, 100 + suite.iv_size)))


def seal(sealer: RecordSealer, payloads: list[bytes]) -> bytes:
    out = memoryview(bytearray(sum(map(len, payloads)) + MAX_OVERHEAD * len(payloads)))
    return bytes(out[: sealer.seal_batch([memoryview(p) for p in payloads], out)])


def open_one(opener: RecordOpener, record: bytes | memoryview) -> tuple[int, int, bytes]:
    out = memoryview(bytearray(max(len(record), 1)))
    kind, sequence, size = opener.open(memoryview(record), out)
    return kind, sequence, bytes(out[:size])


@contextmanager
def generation(into: bool) -> Iterator[None]:
    """Work as with a library that has, or has not, calls that write into our buffers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dtls_record, "_HAS_INTO", into)
        yield


@settings(deadline=None)
@given(SUITE, PAYLOADS, st.integers(0, MAX_RECORDS - 100))
def test_what_is_sealed_opens_in_order_under_both_library_generations(
    suite: Suite, payloads: list[bytes], first: int
) -> None:
    """Numbers count up, sizes are exact, and both ways of calling give the same bytes."""
    trains = []
    for into in GENERATIONS:
        with generation(into):
            trains.append(seal(RecordSealer(suite, keys(suite), first_sequence=first), payloads))
            opener = RecordOpener(suite, keys(suite))
            opened = [open_one(opener, r) for r in split_records(memoryview(trains[-1]))]
        expected = [(APPLICATION_DATA, first + i, p) for i, p in enumerate(payloads)]
        assert opened == expected
    assert len(set(trains)) == 1
    assert len(trains[0]) == sum(map(len, payloads)) + suite.overhead * len(payloads)


@settings(deadline=None)
@given(SUITE, st.sampled_from(GENERATIONS), st.binary(max_size=80), st.data())
def test_an_altered_record_is_malformed_and_nothing_else(
    suite: Suite, into: bool, payload: bytes, data: st.DataObject
) -> None:
    """Every byte of a record is either authenticated or checked."""
    record = bytearray(seal(RecordSealer(suite, keys(suite)), [payload]))
    how = data.draw(st.sampled_from(("flip", "cut", "extend")))
    if how == "flip":
        at = data.draw(st.integers(0, len(record) - 1))
        record[at] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del record[data.draw(st.integers(0, len(record) - 1)) :]
    else:
        record += data.draw(st.binary(min_size=1, max_size=40))
    with generation(into), pytest.raises(Malformed):
        open_one(RecordOpener(suite, keys(suite)), bytes(record))


@settings(deadline=None)
@given(SUITE, st.sampled_from(GENERATIONS), st.binary(max_size=120))
def test_arbitrary_bytes_are_malformed_and_nothing_else(
    suite: Suite, into: bool, data: bytes
) -> None:
    """What a stranger sends is refused by one exception."""
    with generation(into), pytest.raises(Malformed):
        open_one(RecordOpener(suite, keys(suite)), data)


@given(SUITE, st.integers(0, 0xFFFF).filter(lambda epoch: epoch != 1), st.binary(max_size=60))
def test_other_epochs_are_refused(suite: Suite, epoch: int, payload: bytes) -> None:
    """Even authentic: there is no renegotiation, so there is no other epoch with our keys."""
    sealer = RecordSealer(suite, keys(suite))
    sealer._next = epoch << 48 | FIRST_SEQUENCE
    sealer._stop = sealer._next + 1
    record = seal(sealer, [payload])
    with pytest.raises(Malformed, match="epoch"):
        open_one(RecordOpener(suite, keys(suite)), record)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_used_up_keys_refuse_before_they_write(suite: Suite) -> None:
    """A batch either fits under the limit or leaves no trace: no number is used twice."""
    sealer = RecordSealer(suite, keys(suite), first_sequence=MAX_RECORDS - 2)
    assert sealer.records_left == 2
    out = memoryview(bytearray(1000))
    with pytest.raises(LocalProtocolError):
        sealer.seal_batch([memoryview(b"x")] * 3, out)
    assert not any(out)
    assert seal(sealer, [b"x", b"y"])
    assert sealer.records_left == 0
    with pytest.raises(LocalProtocolError):
        seal(sealer, [b"z"])


def test_numbers_go_on_across_batches() -> None:
    """A repeated number would repeat a nonce."""
    suite = next(iter(SUITES.values()))
    sealer, opener = RecordSealer(suite, keys(suite)), RecordOpener(suite, keys(suite))
    trains = [seal(sealer, [b"a", b"b"]), seal(sealer, []), seal(sealer, [b"c"])]
    records = [r for train in trains for r in split_records(memoryview(train))]
    assert [open_one(opener, r)[1] for r in records] == [1024, 1025, 1026]


def test_keys_of_another_suite_are_our_own_mistake() -> None:
    """A key of the wrong size must not surface as a peer's fault."""
    aes256, chacha, aes128 = SUITES.values()
    for suite, other in ((aes256, aes128), (aes128, aes256), (chacha, aes256)):
        with pytest.raises(LocalProtocolError):
            RecordSealer(suite, keys(other))


def test_secrets_do_not_show() -> None:
    """A key in a traceback is a key in a log."""
    assert "000102" not in repr(keys(SUITES["PSK-AES128-GCM-SHA256"]))
    assert repr(DirectionKeys(b"topsecret", b"iv")) == "DirectionKeys()"


@given(st.binary(max_size=100))
def test_splitting_arbitrary_bytes_raises_only_malformed(data: bytes) -> None:
    """And what it returns is the datagram, whole and in order."""
    try:
        records = split_records(memoryview(data))
    except Malformed:
        return
    assert b"".join(records) == data
    assert all(len(record) >= HEADER.size for record in records)


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_splitting_finds_every_record(bodies: list[bytes]) -> None:
    """A stock client's last handshake flight is three records in one datagram."""
    records = [HEADER.pack(22, 0xFEFD, number, len(b)) + b for number, b in enumerate(bodies)]
    assert [bytes(r) for r in split_records(memoryview(b"".join(records)))] == records


@pytest.mark.parametrize("cipher", SUITES)
def test_openssl_and_we_read_each_other(cipher: str) -> None:
    """The independent judge: keys from one handshake, records in both directions."""
    client = PskClient(PSK, cipher=cipher)
    server = DtlsHandshake(DtlsContext(), PSK, now=0.0)
    handshake(client, server)
    found = server.keys
    assert found is not None
    assert found.suite.openssl_name == cipher
    opener, sealer = (
        RecordOpener(found.suite, found.client),
        RecordSealer(found.suite, found.server),
    )
    for payload in (b"x", b"hello from openssl", os.urandom(1400)):
        kind, _, opened = open_one(opener, client.seal(payload))
        assert (kind, opened) == (APPLICATION_DATA, payload)
        assert client.open(seal(sealer, [payload])) == payload
    record = seal(sealer, [b"once"])
    assert client.open(record) == b"once"
    with pytest.raises(SSL.WantReadError):  # a repeated number: OpenSSL drops it
        client.open(record)
