"""Trains of records against the same records one by one."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.test_dtls_record import GENERATIONS, SUITE, generation, keys, seal
from vpnd.errors import LocalProtocolError
from vpnd.wire.dtls_record import (
    ALERT,
    APPLICATION_DATA,
    DTLS12,
    EPOCH,
    HEADER,
    MAX_RECORDS,
    SUITES,
    RecordOpener,
    RecordSealer,
    Suite,
    split_records,
)
from vpnd.wire.rows import MAX_ROWS, Cells, RecordRows

ROWS = RecordRows()  # of all tests: what one train leaves there must not show in the next
ROOM = Cells(memoryview(bytearray(1 << 17)))
AES = SUITES["PSK-AES256-GCM-SHA384"]
COUNT = st.integers(1, 2 * MAX_ROWS + 3)
FIRST = st.one_of(
    st.integers(0, MAX_RECORDS - 300), st.integers(-140, 5).map(lambda near: (1 << 24) + near)
)


def payloads(count: int, size: int) -> list[memoryview]:
    return [memoryview(bytes([number & 0xFF]) * size) for number in range(count)]


def train(suite: Suite, first: int, count: int, size: int) -> bytearray:
    sealer = RecordSealer(suite, keys(suite), first_sequence=first)
    return bytearray(seal(sealer, [bytes(p) for p in payloads(count, size)]))


def open_train(suite: Suite, data: bytearray, count: int) -> tuple[int, list[bytes]] | None:
    opener, size = RecordOpener(suite, keys(suite)), len(data) // count
    ciphertexts = Cells(memoryview(data)).views(size, count, skip=opener.prefix_size)
    return opener.open_rows(ROWS, memoryview(data), size, ciphertexts)


@settings(deadline=None, max_examples=60)
@given(SUITE, st.sampled_from(GENERATIONS), COUNT, st.integers(0, 300), FIRST, st.integers(0, 9))
def test_a_train_is_what_its_records_are_one_by_one(
    suite: Suite, into: bool, count: int, size: int, first: int, cell: int
) -> None:
    """Same bytes, at the place asked for, and the numbers go on behind them."""
    sealer = RecordSealer(suite, keys(suite), first_sequence=first)
    record = size + suite.overhead
    with generation(into):
        sealer.seal_rows(ROWS, payloads(count, size), ROOM, cell)
    assert ROOM.buffer[cell * record : (cell + count) * record] == train(suite, first, count, size)
    assert sealer.records_left == MAX_RECORDS - first - count


@settings(deadline=None, max_examples=60)
@given(SUITE, st.integers(1, MAX_ROWS), st.integers(1, 300), FIRST)
def test_an_orderly_train_is_opened_whole(suite: Suite, count: int, size: int, first: int) -> None:
    """Where the numbers' upper half changes it may be left to the plain way."""
    opened = open_train(suite, train(suite, first, count, size), count)
    wraps = first >> 24 != first + count - 1 >> 24
    if not wraps or opened is not None:
        assert opened == (first, [bytes(p) for p in payloads(count, size)])


@settings(deadline=None, max_examples=100)
@given(SUITE, st.integers(2, 12), st.data())
def test_a_train_with_anything_wrong_is_left_to_the_plain_way(
    suite: Suite, count: int, data: st.DataObject
) -> None:
    """One bit anywhere, a gap, a repeat, another order: no record of it is taken here."""
    found = train(suite, 1000, count, 50)
    records = [bytes(record) for record in split_records(memoryview(found))]
    how = data.draw(st.sampled_from(("flip", "swap", "repeat", "gap")))
    at = data.draw(st.integers(0, count - 2))
    if how == "flip":
        place = data.draw(st.integers(0, len(found) - 1))
        found[place] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "swap":
        records[at], records[at + 1] = records[at + 1], records[at]
    elif how == "repeat":
        records[at + 1] = records[at]
    else:
        records[at + 1 :] = split_records(memoryview(train(suite, 1002 + at, count, 50)))
        records = [bytes(record) for record in records[:count]]
    if how != "flip":
        found = bytearray(b"".join(records))
    assert open_train(suite, found, count) is None


@settings(deadline=None)
@given(SUITE, st.binary(min_size=1, max_size=400), st.integers(1, 8))
def test_arbitrary_bytes_are_no_train(suite: Suite, data: bytes, count: int) -> None:
    """Also where a record is shorter than its own header."""
    found = bytearray(data * count)
    opener = RecordOpener(suite, keys(suite))
    views = [memoryview(found)[at : at + len(data)] for at in range(0, len(found), len(data))]
    ciphertexts = [view[opener.prefix_size :] for view in views]
    assert opener.open_rows(ROWS, memoryview(found), len(data), ciphertexts) is None


@pytest.mark.parametrize("kind", [ALERT, APPLICATION_DATA])
def test_explicit_nonces_are_the_peers_choice_but_contents_are_data(kind: int) -> None:
    """RFC 5288 leaves the nonce to the sender, and other peers do not use the number."""
    aead, found = AESGCM(keys(AES).key), bytearray()
    for number in range(6):
        nonce, aad = bytes([7, number] * 4), (EPOCH | number).to_bytes(8, "big")
        aad += bytes([kind]) + DTLS12.to_bytes(2, "big") + (5).to_bytes(2, "big")
        sealed = nonce + aead.encrypt(keys(AES).iv + nonce, b"hello", aad)
        found += HEADER.pack(kind, DTLS12, EPOCH | number, len(sealed)) + sealed
    opened = (0, [b"hello"] * 6) if kind == APPLICATION_DATA else None
    assert open_train(AES, found, 6) == opened


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_empty_payloads_are_no_packets(suite: Suite) -> None:
    """There would be no type byte to look at."""
    assert open_train(suite, train(suite, 5, 6, 0), 6) is None


def test_used_up_keys_refuse_a_train_before_they_write() -> None:
    """No number is used twice."""
    sealer = RecordSealer(AES, keys(AES), first_sequence=MAX_RECORDS - 5)
    room = Cells(memoryview(bytearray(1000)))
    with pytest.raises(LocalProtocolError):
        sealer.seal_rows(ROWS, payloads(6, 10), room, 0)
    assert not any(room.buffer)
    sealer.seal_rows(ROWS, payloads(5, 10), room, 0)
    assert sealer.records_left == 0


def test_the_cuts_of_a_buffer_are_right_and_bounded() -> None:
    """A peer chooses the sizes of its records."""
    cells = Cells(memoryview(bytes(range(256))))
    for stride in (*range(10, 40), 10):
        for count in (3, 5, 4):
            views = cells.views(stride, count, skip=2)
            expected = [
                bytes(range(at + 2, at + stride)) for at in range(0, count * stride, stride)
            ]
            assert [bytes(view) for view in views[:count]] == expected
    assert len(cells._cuts) <= 8
