"""CSTP framing: any cut of the stream gives the same packets, nothing but Malformed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.wire.cstp import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    MAX_REASON,
    CstpReader,
    Disconnect,
    PacketType,
    encode,
    parse_disconnect,
    write_header,
)

PACKETS = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=100)), max_size=6)
NEARLY = st.lists(
    st.sampled_from([b"STF\x01", b"\x00\x01", b"\x00\x00", b"\x00", b"\x3f\xf8", b"\x3f\xf9"])
    | st.binary(max_size=4),
    max_size=12,
).map(b"".join)


def read(chunks: list[bytes]) -> list[tuple[int, bytes]]:
    reader = CstpReader()
    return [(kind, bytes(view)) for chunk in chunks for kind, view in reader.receive(chunk)]


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def test_a_packet_has_the_bytes_that_were_seen_on_the_wire() -> None:
    """Captured from stock openconnect: its goodbye."""
    expected = bytes.fromhex("53544601 0012 05 00 b0") + b"Aborted by caller"
    assert encode(PacketType.DISCONNECT, b"\xb0Aborted by caller") == expected


@given(PACKETS)
def test_packets_survive_any_cut(packets: list[tuple[int, bytes]]) -> None:
    """Also unknown types, which the state machine judges."""
    stream = b"".join(encode(kind, payload) for kind, payload in packets)
    assert read([stream]) == read(bytewise(stream)) == packets


@given(NEARLY | st.binary(max_size=64))
def test_arbitrary_bytes_raise_only_malformed_and_alike_in_any_cut(data: bytes) -> None:
    """A stream is lost at the same place however it arrives."""
    results: list[list[tuple[int, bytes]] | None] = []
    for chunks in ([data], bytewise(data)):
        try:
            results.append(read(chunks))
        except Malformed:
            results.append(None)
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "header", ["53544602 0000 00 00", "00000000 0000 00 00", "53544601 0000 00 01"]
)
def test_a_wrong_header_is_refused(header: str) -> None:
    """There is no way to find the next packet."""
    with pytest.raises(Malformed):
        CstpReader().receive(bytes.fromhex(header))


def test_payloads_end_where_a_tls_record_does() -> None:
    """One packet is one record, both ways."""
    largest = bytes(MAX_PAYLOAD)
    assert read([encode(0, largest)]) == [(0, largest)]
    with pytest.raises(LocalProtocolError):
        encode(0, largest + b"a")
    with pytest.raises(LocalProtocolError):
        write_header(memoryview(bytearray(HEADER_SIZE)), 0, MAX_PAYLOAD + 1)
    with pytest.raises(Malformed):
        CstpReader().receive(b"STF\x01" + (MAX_PAYLOAD + 1).to_bytes(2) + b"\x00\x00")


def test_an_unfinished_packet_is_all_that_is_kept() -> None:
    """A peer cannot make the reader hold more than it reads."""
    reader = CstpReader()
    packet = encode(0, bytes(MAX_PAYLOAD))
    for _ in range(3):
        assert len(reader.receive(packet * 2 + packet[:-1])) == 2
        assert len(reader._pending) == len(packet) - 1
        assert len(reader.receive(packet[-1:])) == 1
        assert not reader._pending


def test_views_stay_valid() -> None:
    """They look into memory that nobody writes."""
    reader = CstpReader()
    assert reader.receive(encode(0, b"first")[:-1]) == []
    ((_, first),) = reader.receive(b"t")
    reader.receive(encode(0, b"other"))
    assert bytes(first) == b"first"
    assert first.readonly


def test_a_header_can_be_written_in_place() -> None:
    """The data path has the payload in its buffer already."""
    buffer = bytearray(HEADER_SIZE) + b"packet"
    write_header(memoryview(buffer), PacketType.DATA, 6)
    assert buffer == encode(PacketType.DATA, b"packet")


@given(st.binary(max_size=400))
def test_any_goodbye_can_be_logged(payload: bytes) -> None:
    """A peer's text must not reach a terminal raw."""
    goodbye = parse_disconnect(payload)
    assert goodbye.text.isascii()
    assert goodbye.text.isprintable()
    assert len(goodbye.text) <= MAX_REASON


@pytest.mark.parametrize(
    ("payload", "goodbye", "temporary"),
    [
        (b"", Disconnect(None, ""), True),
        (b"\xb0Aborted by caller", Disconnect(0xB0, "Aborted by caller"), False),
        (b"\xb0bye\0", Disconnect(0xB0, "bye"), False),
        (b"\x91", Disconnect(0x91, ""), True),
        (b"\x70\x1b[31m", Disconnect(0x70, "?[31m"), False),
    ],
)
def test_a_goodbye_says_whether_it_is_for_ever(
    payload: bytes, goodbye: Disconnect, *, temporary: bool
) -> None:
    """A logout ends the cookie, a broken link does not."""
    assert parse_disconnect(payload) == goodbye
    assert goodbye.is_temporary == temporary
