"""The interface as a caller meets it: methods, values, errors, description."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asyncvarlink import VarlinkClientProtocol, VarlinkInterfaceProxy, connect_unix_varlink

from tests.ipc.caller import RawCaller, served
from tests.ipc.memory_backend import PROFILE, SESSION, STATUS, MemoryBackend
from vpnd.errors import StoreError
from vpnd.ipc.api import (
    AlreadyExists,
    Ambiguous,
    Client,
    Daemon,
    InvalidValue,
    NotFound,
    Status,
    User,
)

LATER = 1_800_000_000


def ask(
    path: Path,
    backend: MemoryBackend,
    question: Callable[[VarlinkInterfaceProxy], Awaitable[Any]],
) -> Any:
    async def main() -> Any:
        async with served(path, backend):
            transport, protocol = await connect_unix_varlink(VarlinkClientProtocol, path)
            try:
                return await question(protocol.make_proxy(Daemon))
            finally:
                transport.close()
                await transport.closed_future

    return asyncio.run(main())


def raw(path: Path, backend: MemoryBackend, method: str, **parameters: Any) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        async with served(path, backend):
            caller = RawCaller(path)
            try:
                return await caller.call(method, **parameters)
            finally:
                caller.close()

    return asyncio.run(main())


def test_status_arrives_as_it_was_given(path: Path) -> None:
    """Both sides share the dataclasses, so nothing is lost between them."""
    assert ask(path, MemoryBackend(), lambda daemon: daemon.GetStatus()) == {"status": STATUS}


def test_a_thousand_sessions_fit(path: Path) -> None:
    """An answer has no bound; a full server must be able to show itself."""
    sessions = [replace(SESSION, id=f"s-{number}") for number in range(1000)]
    backend = MemoryBackend(replace(STATUS, sessions=sessions, sessions_count=1000))
    answer = ask(path, backend, lambda daemon: daemon.GetStatus())
    assert answer["status"].sessions == sessions


def test_users_and_clients_live_their_life(path: Path) -> None:
    """Add, list in order, set a password, revoke by name and by user and name."""

    async def life(daemon: VarlinkInterfaceProxy) -> None:
        await daemon.AddUser(name="bob", groups=["staff"], password=None)
        await daemon.AddUser(name="alice", groups=[], password="open sesame")
        await daemon.SetPassword(name="bob", password="grüße")
        users = (await daemon.ListUsers())["users"]
        assert users == [
            User("alice", [], has_password=True),
            User("bob", ["staff"], has_password=True),
        ]
        for user in ("bob", "alice"):
            await daemon.AddClient(
                user=user, name="phone", serial="0a1f", not_after=LATER, foreign=True
            )
        with pytest.raises(Ambiguous) as ambiguous:
            await daemon.RevokeClient(name="phone", user=None)
        assert "alice, bob" in str(ambiguous.value)
        assert await daemon.RevokeClient(name="phone", user="bob") == {"ended_sessions": 1}
        clients: list[Client] = (await daemon.ListClients())["clients"]
        assert [(c.user, c.revoked_at is not None) for c in clients] == [
            ("alice", False),
            ("bob", True),
        ]
        assert await daemon.GetProfile() == {"profile": PROFILE}

    backend = MemoryBackend()
    ask(path, backend, life)
    assert backend.passwords == {"alice": "open sesame", "bob": "grüße"}


def test_refusals_are_typed_and_say_what_to_do(path: Path) -> None:
    """A program looks at the name, a person at the sentence."""

    async def trouble(daemon: VarlinkInterfaceProxy) -> None:
        with pytest.raises(NotFound, match="no user 'nobody'"):
            await daemon.SetPassword(name="nobody", password="x")
        await daemon.AddUser(name="alice", groups=[], password=None)
        with pytest.raises(AlreadyExists, match="'alice' exists already"):
            await daemon.AddUser(name="alice", groups=[], password=None)

    ask(path, MemoryBackend(), trouble)


GOOD: dict[str, dict[str, Any]] = {
    "AddUser": {"name": "alice", "groups": [], "password": "x"},
    "SetPassword": {"name": "alice", "password": "x"},
    "AddClient": {
        "user": "alice",
        "name": "laptop",
        "serial": "0a",
        "not_after": LATER,
        "foreign": False,
    },
    "RevokeClient": {"name": "laptop", "user": "alice"},
}
BAD_NAMES = ["", "../x", "a/b", "Alice", ".x", "a b", "a\n", "a\0", "x" * 65, "ä", "-x", "\ud800"]
BAD_VALUES = [
    *[("AddUser", "name", name) for name in BAD_NAMES],
    *[("SetPassword", "name", name) for name in BAD_NAMES],
    *[("AddClient", "name", name) for name in BAD_NAMES],
    *[("AddClient", "user", name) for name in BAD_NAMES],
    *[("RevokeClient", "name", name) for name in BAD_NAMES],
    *[("RevokeClient", "user", name) for name in BAD_NAMES],
    *[("AddUser", "groups", groups) for groups in (["A"], ["a", "a"], ["g"] * 33)],
    *[("SetPassword", "password", bad) for bad in ("", "a\nb", "a\0b", "x" * 257, "\ud800")],
    *[("AddClient", "serial", bad) for bad in ("", "0", "0x1", "A0", "g", "a" * 41, "-1")],
    *[("AddClient", "not_after", bad) for bad in (0, -1, 10**18, True)],
]


@pytest.mark.parametrize(("method", "parameter", "value"), BAD_VALUES)
def test_bad_values_stop_at_the_border(
    path: Path, method: str, parameter: str, value: object
) -> None:
    """Names become file names and certificate subjects; the backend never sees a bad one."""
    backend = MemoryBackend()
    answer = raw(path, backend, method, **(GOOD[method] | {parameter: value}))
    assert answer["error"] == "org.pyvpn.Daemon.InvalidValue"
    assert answer["parameters"]["parameter"] == parameter
    assert not backend.users
    assert not backend.clients


def test_a_refused_password_is_not_quoted(path: Path) -> None:
    """An error text ends in a terminal's history or a log."""
    answer = raw(path, MemoryBackend(), "SetPassword", name="alice", password="hush\tnow")
    assert "hush" not in str(answer)


@pytest.mark.parametrize(
    ("change", "blamed"),
    [
        ({"colour": "red"}, "colour"),
        ({"name": None}, "name"),
        ({"name": 7}, "name"),
        ({"groups": "staff"}, "groups"),
        ({"groups": [1]}, "groups"),
        ({"password": ["x"]}, "password"),
    ],
)
def test_unknown_and_mistyped_parameters_are_named(
    path: Path, change: dict[str, Any], blamed: str
) -> None:
    """A typo must not be taken for an omission."""
    answer = raw(path, MemoryBackend(), "AddUser", **(GOOD["AddUser"] | change))
    assert answer == {
        "error": "org.varlink.service.InvalidParameter",
        "parameters": {"parameter": blamed},
    }


def test_a_missing_parameter_is_named(path: Path) -> None:
    """There is no default for a name."""
    answer = raw(path, MemoryBackend(), "SetPassword", name="alice")
    assert answer["parameters"] == {"parameter": "password"}


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("org.pyvpn.Daemon.Nonsense", "org.varlink.service.MethodNotFound"),
        ("org.pyvpn.Daemon.Render", "org.varlink.service.MethodNotFound"),
        ("org.example.Other.GetStatus", "org.varlink.service.InterfaceNotFound"),
    ],
)
def test_unknown_methods_are_refused_by_name(path: Path, method: str, error: str) -> None:
    """Only what is declared can be reached."""
    assert raw(path, MemoryBackend(), method)["error"] == error


def test_the_service_describes_itself(path: Path) -> None:
    """`varlinkctl introspect` shows all there is, from the declarations themselves."""
    answer = raw(
        path,
        MemoryBackend(),
        "org.varlink.service.GetInterfaceDescription",
        interface="org.pyvpn.Daemon",
    )
    text = answer["parameters"]["description"]
    assert text == Daemon.render_interface_description()
    for word in ("method GetStatus() -> (status: Status)", "error NotFound", "type SessionStatus"):
        assert word in text


class FailingBackend(MemoryBackend):
    async def get_status(self) -> Status:
        raise StoreError("/var/lib/pyvpn/vpnd.db: disk full: make room")

    async def list_users(self) -> list[User]:
        raise ZeroDivisionError("a bug")


def test_expected_trouble_arrives_as_its_sentence(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator at vpnctl reads what the daemon knows, and the log stays quiet."""
    answer = raw(path, FailingBackend(), "GetStatus")
    assert answer == {
        "error": "org.pyvpn.Daemon.Failed",
        "parameters": {"reason": "/var/lib/pyvpn/vpnd.db: disk full: make room"},
    }
    assert not caplog.records


def test_a_bug_is_logged_and_not_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The caller learns where to look, the log where it happened."""
    answer = raw(path, FailingBackend(), "ListUsers")
    assert answer["error"] == "org.pyvpn.Daemon.Failed"
    assert "bug" not in str(answer)
    assert "ZeroDivisionError" in caplog.text


def test_changes_are_logged_with_who_asked(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who added this user?  The log tells; it never has the password."""
    caplog.set_level(logging.INFO, "pyvpn")
    raw(path, MemoryBackend(), "AddUser", name="alice", groups=[], password="sesame-9")
    assert f"asked by vpnctl: method=AddUser name=alice uid={os.geteuid()} pid=" in caplog.text
    assert "sesame-9" not in caplog.text


def test_a_secret_is_in_no_error_repr() -> None:
    """What is raised may be logged."""
    error = InvalidValue(parameter="password", reason="it is empty")
    assert str(error) == "password: it is empty"
