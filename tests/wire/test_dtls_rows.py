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
ROOM = Cells(memoryview(bytearray(1 << 18)))
AES = SUITES["PSK-AES256-GCM-SHA384"]
COUNT = st.integers(1, 140)
FIRST = st.one_of(
    st.integers(0, MAX_RECORDS - 300), st.integers(-140, 5).map(lambda near: (1 << 24) + near)
)


def payloads(count: int, size: int) -> list[memoryview]:
    return [memoryview(bytes([number & 0xFF]) * size) for number in range(count)]


def train(suite: Suite, first: int, count: int, size: int) -> bytearray:
    sealer = RecordSealer(suite, keys(suite), first_sequence=first)
    return bytearray(seal(sealer, [bytes(p) for p in payloads(count, size)]))


def open_train(suite: Suite, data: bytearray, size: int, cell: int = 0) -> tuple[int, list[bytes]]:
    """Return the first number and the payloads of as many records as were in order."""
    opener, count = RecordOpener(suite, keys(suite)), len(data) // size
    ciphertexts = Cells(memoryview(data)).views(size, count, skip=opener.prefix_size)
    stride = max(size - suite.overhead, 1)
    first, opened = opener.open_rows(ROWS, memoryview(data), size, ciphertexts, ROOM, cell)
    return first, [bytes(view) for view in ROOM.views(stride, opened, first=cell)]


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


def test_a_batch_larger_than_the_prepared_rows_is_sealed_in_parts() -> None:
    """A superpacket of tiny segments, or many."""
    count = MAX_ROWS + 5
    sealer = RecordSealer(AES, keys(AES), first_sequence=9)
    sealer.seal_rows(ROWS, payloads(count, 20), ROOM, 0)
    assert ROOM.buffer[: count * (20 + AES.overhead)] == train(AES, 9, count, 20)


@settings(deadline=None, max_examples=60)
@given(SUITE, st.sampled_from(GENERATIONS), COUNT, st.integers(1, 300), FIRST, st.integers(0, 9))
def test_an_orderly_train_is_opened_whole(
    suite: Suite, into: bool, count: int, size: int, first: int, cell: int
) -> None:
    """But for where the upper half of the numbers changes, which may end it."""
    with generation(into):
        data = train(suite, first, count, size)
        number, opened = open_train(suite, data, size + suite.overhead, cell)
    assert number == first
    before = -first % (1 << 24)
    assert len(opened) == (before if 0 < before < count else count)
    assert opened == [bytes(p) for p in payloads(count, size)][: len(opened)]


@settings(deadline=None, max_examples=100)
@given(SUITE, st.sampled_from(GENERATIONS), st.integers(2, 12), st.data())
def test_a_train_is_taken_up_to_what_is_wrong_with_it(
    suite: Suite, into: bool, count: int, data: st.DataObject
) -> None:
    """One bit anywhere, a gap, a repeat, another order: the good ones before it are good."""
    size = 50 + suite.overhead
    found = train(suite, 1000, count, 50)
    records = [bytes(record) for record in split_records(memoryview(found))]
    how = data.draw(st.sampled_from(("flip", "swap", "repeat", "gap")))
    at = data.draw(st.integers(0, count - 2))
    if how == "flip":
        place = data.draw(st.integers(0, len(found) - 1))
        found[place] ^= 1 << data.draw(st.integers(0, 7))
        at = place // size - 1
    elif how == "swap":
        records[at], records[at + 1] = records[at + 1], records[at]
        at = at if at == 0 else at - 1
    elif how == "repeat":
        records[at + 1] = records[at]
    else:
        records[at + 1 :] = split_records(memoryview(train(suite, 1002 + at, count, 50)))
        records = [bytes(record) for record in records[:count]]
    if how != "flip":
        found = bytearray(b"".join(records))
    with generation(into):
        _, opened = open_train(suite, found, size)
    expected = [bytes(p) for p in payloads(count, 50)][: at + 1]
    if how == "swap" and at == 0 and opened != expected:
        expected = [bytes(payloads(count, 50)[1])]  # the second came first
    assert opened == expected


@settings(deadline=None)
@given(SUITE, st.binary(min_size=1, max_size=400), st.integers(1, 8))
def test_arbitrary_bytes_are_no_train(suite: Suite, data: bytes, count: int) -> None:
    """Also where a record is shorter than its own header."""
    found = bytearray(data * count)
    opener = RecordOpener(suite, keys(suite))
    views = [memoryview(found)[at : at + len(data)] for at in range(0, len(found), len(data))]
    ciphertexts = [view[opener.prefix_size :] for view in views]
    _, opened = opener.open_rows(ROWS, memoryview(found), len(data), ciphertexts, ROOM, 0)
    assert opened == 0


@pytest.mark.parametrize("kind", [ALERT, APPLICATION_DATA])
def test_explicit_nonces_are_the_peers_choice_but_contents_are_data(kind: int) -> None:
    """RFC 5288 leaves the nonce to the sender, and other peers do not use the number."""
    aead, found = AESGCM(keys(AES).key), bytearray()
    for number in range(6):
        nonce, aad = bytes([7, number] * 4), (EPOCH | number).to_bytes(8, "big")
        aad += bytes([kind]) + DTLS12.to_bytes(2, "big") + (5).to_bytes(2, "big")
        sealed = nonce + aead.encrypt(keys(AES).iv + nonce, b"hello", aad)
        found += HEADER.pack(kind, DTLS12, EPOCH | number, len(sealed)) + sealed
    opened = [b"hello"] * 6 if kind == APPLICATION_DATA else []
    assert open_train(AES, found, 5 + AES.overhead) == (0, opened)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_empty_payloads_are_no_packets(suite: Suite) -> None:
    """There would be no type byte to look at."""
    assert open_train(suite, train(suite, 5, 6, 0), suite.overhead) == (0, [])


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
    """A peer chooses the sizes of its records, and where small ones lie behind large ones."""
    data = bytes(range(256)) * 40
    cells = Cells(memoryview(data))
    for stride in (*range(3, 40), 10, 3):
        for first, count in ((0, 3), (0, 5), (2, 4), (200, 9), (1020, 4), (1020, 9), (3000, 5)):
            if (first + count) * stride <= len(data):
                views = cells.views(stride, count, first=first, skip=2)
                starts = range(first * stride, (first + count) * stride, stride)
                assert [bytes(view) for view in views] == [
                    data[at + 2 : at + stride] for at in starts
                ]
    assert len(cells._cuts) <= 8
    assert max(map(len, cells._cuts.values())) <= 1024
