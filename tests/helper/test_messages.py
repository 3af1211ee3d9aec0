"""Requests: what travels, and what is refused before anybody looks at it."""

import dataclasses
import hashlib
import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helper.messages import (
    LENGTH,
    MAX_FRAME,
    PROTOCOL,
    REQUESTS,
    RESUME,
    BadFrame,
    FrameReader,
    Hello,
    OpenSockets,
    OpenTun,
    Refused,
    SetFirewall,
    SetLink,
    Undo,
    decode,
    encode,
    frame,
)

SOUND = [
    Hello("pyvpn0"),
    OpenTun(queues=4, tx_queue_len=500),
    OpenSockets((("0.0.0.0", 443), ("::", 443)), udp_per_address=4, buffer_bytes=1 << 20),
    SetLink(1400, ("10.8.0.1/24", "fd00::1/64"), ("10.9.0.0/16", "0.0.0.0/0"), forwarding=True),
    SetLink(
        1400,
        ("10.8.0.2/32",),
        ("0.0.0.0/0",),
        forwarding=False,
        exclude=("192.168.1.0/24",),
        keep_outside=True,
        block_ipv6=True,
    ),
    SetFirewall(("10.8.0.0/24",), masquerade=True, clamp_mss=False, client_to_client=False),
    Undo(),
]
KEPT: dict[str, Any] = {"keep_outside": True}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("request_", SOUND, ids=lambda r: type(r).__name__)
def test_what_is_encoded_is_decoded(request_: Any) -> None:
    """Both ends share this module, so that they cannot disagree."""
    (payload,) = FrameReader().receive(encode(request_))
    assert decode(payload) == request_


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_in_one_way(payload: bytes) -> None:
    """Whatever comes, nothing unforeseen happens in a root process."""
    with pytest.raises(BadFrame):
        decode(payload)


@given(st.sampled_from(SOUND), st.data())
def test_arbitrary_values_are_refused_in_two_ways(request_: Any, data: st.DataObject) -> None:
    """A wrong type ends the connection, a bad value gets an explanation."""
    fields = asdict(request_) or {"left_over": 1}
    key = data.draw(st.sampled_from(sorted(fields)))
    value = data.draw(VALUES)
    name = type(request_).__name__
    try:
        decode(json.dumps({"request": name, **fields, key: value}).encode())
    except (BadFrame, Refused):
        return
    assert isinstance(request_, REQUESTS[name])  # then the value was as good as ours


def test_deep_nesting_is_no_json() -> None:
    """Python's parser gives up by a RecursionError of its own."""
    with pytest.raises(BadFrame, match="no JSON"):
        decode(b"[" * 1_000_000)


@pytest.mark.parametrize(
    "fields",
    [
        {"request": "OpenTun", "queues": True, "tx_queue_len": 500},
        {"request": "OpenTun", "queues": 1.0, "tx_queue_len": 500},
        {"request": "OpenTun", "queues": 1},
        {"request": "OpenTun", "queues": 1, "tx_queue_len": 500, "more": 1},
        {"request": "OpenSockets", "listen": [["::", 1, 2]], "udp_per_address": 1,
         "buffer_bytes": 4096},
        {"request": ["Hello"], "interface": "pyvpn0", "protocol": 1},
        {"request": "SetResolver"},
        ["Hello"],
    ],
)  # fmt: skip
def test_wrong_types_and_fields_are_no_request(fields: object) -> None:
    """Nothing is guessed: a caller that is a version off must find out at once."""
    with pytest.raises(BadFrame):
        decode(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "name",
    ["eth0", "pyvpn", "pyvpn1000", "pyvpn00", "pyvpn0\n", "../pyvpn0", "pyvpn-1", "pyvpn٣", ""],
)
def test_interface_names_are_ours_alone(name: str) -> None:
    """The name becomes a path, a table and a link; eth0 must never be one of them."""
    with pytest.raises(Refused, match="no interface name"):
        Hello(name)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mtu": 575, "addresses": ()}, "mtu 575 is outside 576 to 65535"),
        ({"mtu": 1279}, "mtu 1279 is outside 1280"),
        ({"mtu": 70000}, "outside"),
        ({"addresses": ("10.8.0.1/0",)}, "prefix length"),
        ({"addresses": ("10.8.0.300/24",)}, "10.8.0.300/24"),
        ({"addresses": ("fe80::1/64",)}, "link-local"),
        ({"addresses": ("fd00::1%eth0/64",)}, "link-local"),
        ({"addresses": ("224.0.0.1/24",)}, "multicast"),
        ({"addresses": ("10.8.0.1/24",) * 17}, "number of addresses 17"),
        ({"routes": ("10.9.0.1/16",)}, "host bits"),
        ({"routes": ("10.9.0.0/16",) * 4097}, "number of routes 4097"),
        ({"exclude": ("10.9.0.0/16",)}, "for keep_outside only"),
        ({"block_ipv6": True}, "for keep_outside only"),
        (KEPT | {"exclude": ("10.9.0.0/16",) * 4097}, "number of routes 4097"),
        (KEPT | {"exclude": ("10.9.0.1/16",)}, "host bits"),
        (KEPT | {"exclude": ("fe80::/10",)}, "link-local"),
        (KEPT | {"exclude": ("fd00::/64",)}, "fd00::/64 cannot be both inside and excluded"),
        (KEPT | {"exclude": ("::/0",), "routes": ("::/0",)}, "::/0 cannot be both inside"),
    ],
)
def test_link_values_are_bounded(changes: dict[str, Any], reason: str) -> None:
    """What the kernel would take, and what would hurt, are not the same."""
    sound = {"mtu": 1400, "addresses": ("fd00::1/64",), "routes": (), "forwarding": False}
    with pytest.raises(Refused, match=reason):
        SetLink(**{**sound, **changes})


def test_small_mtu_is_for_ipv4_alone() -> None:
    """RFC 8200 section 5: IPv6 needs 1280."""
    SetLink(576, ("10.8.0.1/24",), (), forwarding=False)
    SetLink(576, ("10.8.0.1/24",), (), False, exclude=("fd00::/8",), keep_outside=True)


@pytest.mark.parametrize(
    ("listen", "udp", "size", "reason"),
    [
        ((), 1, 4096, "sockets 0"),
        ((("::", 443),) * 16, 64, 4096, "sockets 1040 is outside 1 to 250"),
        ((("::", 0),), 1, 4096, "port 0"),
        ((("vpn.example", 443),), 1, 4096, "vpn.example"),
        ((("fe80::1%eth0", 443),), 1, 4096, "link-local"),
        ((("::", 443),), 1, 1 << 30, "buffer_bytes"),
    ],
)
def test_listeners_are_bounded(listen: Any, udp: int, size: int, reason: str) -> None:
    """More than 253 descriptors do not fit one message; a buffer is memory of the kernel."""
    with pytest.raises(Refused, match=reason):
        OpenSockets(listen, udp, size)


def test_the_internet_is_no_inner_network() -> None:
    """The rule against false sources would drop everything there is."""
    with pytest.raises(Refused, match="whole Internet"):
        SetFirewall(("0.0.0.0/0",), masquerade=True, clamp_mss=True, client_to_client=True)


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(1, 20))
def test_byte_at_a_time_equals_all_at_once(payloads: list[bytes], step: int) -> None:
    """A stream has no boundaries."""
    stream = b"".join(LENGTH.pack(len(p)) + p for p in payloads)
    reader = FrameReader()
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    assert [p for piece in pieces for p in reader.receive(piece)] == payloads
    assert list(FrameReader().receive(stream)) == payloads


@given(st.sampled_from(SOUND), st.integers(0), st.sampled_from(SOUND))
def test_a_frame_that_was_begun_ends_where_another_process_resumes(
    begun: Any, cut: int, request_: Any
) -> None:
    """Whoever was killed while it wrote does not write the rest."""
    reader, data = FrameReader(), encode(begun)
    assert list(reader.receive(data[: cut % len(data)])) == []
    (payload,) = reader.receive(RESUME + encode(request_))
    assert decode(payload) == request_


def test_another_version_is_told_so_whatever_it_says() -> None:
    """After an upgrade old and new meet; fields that only one knows must not be all they see."""
    hello = {"request": "Hello", "interface": "pyvpn0", "protocol": PROTOCOL + 1, "colour": "red"}
    with pytest.raises(Refused, match=rf"^helper speaks protocol {PROTOCOL}: restart helper and"):
        decode(json.dumps(hello).encode())


def test_a_change_of_the_messages_changes_their_number() -> None:
    """Two that differ must not take each other for equals: count PROTOCOL up, and note it here."""
    fields = {
        name: [(field.name, str(field.type)) for field in dataclasses.fields(kind)]
        for name, kind in REQUESTS.items()
    }
    digest = hashlib.sha256(repr(fields).encode()).hexdigest()[:16]
    assert (PROTOCOL, digest) == (1, "9d838c257603f3fe")


def test_a_frame_has_a_bound() -> None:
    """The length is believed only as far as we are ready to hold it."""
    with pytest.raises(BadFrame, match="bytes"):
        list(FrameReader().receive(LENGTH.pack(MAX_FRAME + 1)))


def test_an_answer_is_a_frame() -> None:
    """Answers travel like requests."""
    assert list(FrameReader().receive(frame({"ok": {}}))) == [b'{"ok": {}}']
