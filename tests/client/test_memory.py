"""The session over a restart: what comes back, and to whom."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vpnd.client.memory import SessionMemory
from vpnd.config.profile_options import (
    ClientConfig,
    ClientOptions,
    ClientTlsOptions,
    RemoteOptions,
)
from vpnd.host.systemd import Kept
from vpnd.worker.messages import HeldSession

CONFIG = ClientConfig(
    client=ClientOptions(user="bob"),
    remotes=(RemoteOptions("vpn.example", 443, ""), RemoteOptions("b.example", 443, "")),
)
HELD = {
    (host, 443): HeldSession(host, 443, host, 443, f"cookie of {host}", "10.8.0.2", "", ["a"])
    for host in ("b.example", "vpn.example")
}


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Descriptors that were sent to a service manager which only looks at them."""
    sent: list[int] = []

    def send(*lines: str, fds: list[int] | None = None) -> None:
        sent.extend(os.dup(fd) for fd in fds or [])
        assert "cookie" not in "".join(lines)

    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr("vpnd.host.systemd._notify", send)
    yield sent
    for fd in sent:
        os.close(fd)


def recalled(config: ClientConfig, fd: int) -> dict[tuple[str, int], HeldSession]:
    return SessionMemory(config, Kept([("session", os.dup(fd))])).recall()


def test_what_was_kept_comes_back_in_its_order(stored: list[int]) -> None:
    """The one used last is at the end, and is tried first."""
    SessionMemory(CONFIG, Kept()).keep(HELD)
    assert list(recalled(CONFIG, stored[0]).items()) == list(HELD.items())


def test_a_cookie_is_one_users_one_groups_and_one_servers(stored: list[int]) -> None:
    """The profile may have been changed in between."""
    SessionMemory(CONFIG, Kept()).keep(HELD)
    for changed in (
        ClientOptions(user="carol"),
        ClientOptions(user="bob", group="guests"),
        ClientOptions(user="bob", path="/guests"),  # which names a group, too
    ):
        assert recalled(replace(CONFIG, client=changed), stored[0]) == {}
    assert recalled(replace(CONFIG, tls=ClientTlsOptions(key="another")), stored[0]) == {}
    renewed = replace(CONFIG, tls=ClientTlsOptions(certificate="the next one"))
    assert recalled(renewed, stored[0]) == HELD
    other = replace(CONFIG, remotes=CONFIG.remotes[1:])
    assert list(recalled(other, stored[0])) == [("b.example", 443)]


def test_what_is_kept_cannot_be_changed(stored: list[int]) -> None:
    """systemd and we hold the same memory."""
    SessionMemory(CONFIG, Kept()).keep(HELD)
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(stored[0], b"x", 0)


@pytest.mark.parametrize("change", [b"", b"short", b"\0" * 40, b"\0\0\0\2{}"])
def test_another_versions_session_is_none(stored: list[int], change: bytes) -> None:
    """Then a login is needed; nothing else breaks."""
    memory = SessionMemory(CONFIG, Kept())
    fd = os.memfd_create("test")
    os.write(fd, memory._who + change)
    assert recalled(CONFIG, fd) == {}
    os.close(fd)
    assert SessionMemory(CONFIG, Kept()).recall() == {}
    assert stored == []
