"""The group of a TLS connection, read along from what a server sends."""

from hypothesis import given
from hypothesis import strategies as st

from vpnd.wire.tls_hello import MAX_HEARD, GroupListener, key_exchange_group

RETRY = "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"


def hello(random: str, group: str) -> bytes:
    """Return a record with a ServerHello that has a key_share of one group and no key."""
    body = bytes.fromhex("0303" + random + "00 1301 00 0006 0033 0002" + group)
    message = b"\x02" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x03" + len(message).to_bytes(2, "big") + message


def test_a_retry_request_is_passed_over() -> None:
    """The group that counts stands in the ServerHello behind it, after a record of filling."""
    flight = hello(RETRY, "0017") + bytes.fromhex("140303000101") + hello("11" * 32, "11ec")
    for step in (1, 7, 1000):
        listener = GroupListener()
        for at in range(0, len(flight), step):
            listener.receive(flight[at : at + step])
        assert (listener.group, listener.is_done) == ("X25519MLKEM768", True)


def test_a_group_without_a_name_is_told_by_its_number() -> None:
    """New ones come."""
    assert key_exchange_group(hello("11" * 32, "1234")) == "0x1234"


def test_a_retry_request_names_no_group() -> None:
    """It looks like a ServerHello, but asks a client that guessed wrong to choose again."""
    hello = bytes.fromhex("1603030058 02000054 0303" + RETRY + "00 1301 00 0010")
    assert key_exchange_group(hello + bytes(40)) == ""


@given(st.binary(max_size=120))
def test_the_group_of_arbitrary_bytes_is_empty_or_a_name(data: bytes) -> None:
    """Our own bytes, but a new library may write them in another way: it must not end us."""
    for start in (b"", b"\x16\x03\x03\x00\x5a\x02\x00\x00\x56\x03\x03"):
        assert isinstance(key_exchange_group(start + data), str)


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_the_listener_keeps_little_and_never_raises(pieces: list[bytes]) -> None:
    """It hears a stranger before anything is checked."""
    listener = GroupListener()
    for piece in pieces:
        listener.receive(b"\x16\x03\x03" + piece)
    assert isinstance(listener.group, str)


def test_the_listener_stops_where_no_hello_comes() -> None:
    """Nobody has to keep what a server says in place of a handshake."""
    listener = GroupListener()
    for _ in range(MAX_HEARD // 1000 + 2):
        listener.receive(b"\x16\x03\x03\xff\xff" + bytes(1000))
    assert listener.is_done
    listener.receive(bytes(1000))
    assert len(listener._heard) == 0
