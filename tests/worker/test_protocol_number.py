"""The number in the first message: master and worker of different versions find out."""

import json
import socket
from dataclasses import dataclass

import pytest

from vpnd.errors import Malformed, RestartNeeded
from vpnd.worker import control
from vpnd.worker.__main__ import receive_start
from vpnd.worker.messages import Ping, RemoteEntry, StartClient

START = StartClient(
    remotes=[RemoteEntry("vpn.example", 443, "", [], "")],
    path="/",
    user="bob",
    certificate_pem="",
    key_pem="",
    allow_tls12=False,
    dtls=True,
    mtu=0,
    hostname="",
    rekey_s=0,
    reconnect_timeout_s=0,
    log_level="info",
    sessions=[],
)


def received(data: bytes) -> object:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        return receive_start(theirs)[0]


def changed(**fields: object) -> bytes:
    frame = json.loads(control.encode(START)[4:]) | fields
    data = json.dumps(frame).encode()
    return len(data).to_bytes(4) + data


def test_the_same_version_is_understood() -> None:
    """One message, with all that a worker needs."""
    assert received(control.encode(START)) == START


@pytest.mark.parametrize(
    "fields",
    [{"protocol": 1}, {"protocol": None}, {"protocol": 1, "type": "Begin"}, {"protocol": "x"}],
)
def test_another_version_asks_for_a_restart(fields: dict[str, object]) -> None:
    """Whatever else it says: its messages may have other names and fields."""
    with pytest.raises(RestartNeeded) as info:
        received(changed(**fields))
    assert info.value.exit_status == 75


@pytest.mark.parametrize("data", [control.encode(Ping()), b"\0\0\0\2[]", b"\0\0\0\1{"])
def test_what_is_no_start_is_refused(data: bytes) -> None:
    """A master that begins in another way is no master of ours."""
    with pytest.raises((Malformed, RestartNeeded)):
        received(data)


def test_the_number_follows_names_fields_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to think of counting it up, also for what is inside another message."""

    @dataclass
    class Inner:
        value: int

    @dataclass
    class Other:
        value: str

    numbers = set()
    for kind in (Inner, Other, int, str):
        message = dataclass(type("Ping", (), {"__annotations__": {"inner": list[kind]}}))  # type: ignore[valid-type]
        monkeypatch.setitem(control.TYPES, "Ping", message)
        numbers.add(control.protocol.__wrapped__())
    assert len(numbers) == 4
