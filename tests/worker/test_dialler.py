"""Dialling: several addresses of a name, and what is said when none of them works."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.protocol.authority import TestSite
from vpnd.pki.pins import server_pins
from vpnd.protocol.tls_client import ServerNotTrusted
from vpnd.worker.client_stream import ConnectionFailed
from vpnd.worker.dialler import Dialler, explain, in_turns
from vpnd.worker.messages import RemoteEntry, StartClient

NAME = "vpn.example.org"
RIGHT, SILENT, SHUT, CLOSED = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"
NO_PIN = "pin-sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


def resolver(monkeypatch: pytest.MonkeyPatch, addresses: Sequence[str]) -> None:
    """Have this host's resolver answer so, or fail."""

    def getaddrinfo(*_: object, **__: object) -> list[object]:
        if not addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(0, 0, 0, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


async def dial(
    site: TestSite,
    monkeypatch: pytest.MonkeyPatch,
    *addresses: str,
    pins: Sequence[str] = (),
    worked: Sequence[str] = (),
) -> str:
    """Dial a name with these addresses; return the one that won."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(site.certificate, site.key)

    callers: list[asyncio.StreamWriter] = []

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        callers.append(writer)

    async def shut(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    right = await asyncio.start_server(talk, RIGHT, 0, ssl=context)
    port = right.sockets[0].getsockname()[1]
    silent = await asyncio.start_server(talk, SILENT, port)
    shutting = await asyncio.start_server(shut, SHUT, port)
    own = server_pins(site.certificate, Path("/nonexistent"))
    remote = RemoteEntry(NAME, port, NAME, list(pins or own), "")
    settings = StartClient(
        remotes=[remote], path="/", user="", certificate_pem="", key_pem="", allow_tls12=False,
        dtls=False, mtu=0, hostname="", rekey_s=0, reconnect_timeout_s=0, log_level="info",
        sessions=[],
    )  # fmt: skip
    dialler = Dialler(settings, chacha_first=False)
    if worked:
        dialler.remember(NAME, worked)
    resolver(monkeypatch, addresses)
    try:
        connection = await dialler.dial(remote, NAME, port)
        connection.close()
        assert dialler.worked(NAME)[0] == connection.address[0]
    finally:
        for server in (right, silent, shutting):
            server.close()
        for caller in callers:
            caller.transport.abort()
        for _ in range(3):  # turns until a transport under TLS has let go of its socket
            await asyncio.sleep(0)
    return connection.address[0]


def test_an_address_that_says_nothing_does_not_hold_up_the_others(
    site: TestSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first right server wins, not the first that accepts a connection."""
    assert asyncio.run(dial(site, monkeypatch, CLOSED, SILENT, RIGHT)) == RIGHT


def test_what_failed_is_told_in_one_sentence(
    site: TestSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each address with its reason, and one reason alone where all have the same."""
    with pytest.raises(ConnectionFailed) as caught:
        asyncio.run(dial(site, monkeypatch, CLOSED, SHUT))
    said = explain(caught.value, NAME)
    assert said.startswith(f"no address of {NAME} works: {CLOSED} (Connection refused), {SHUT} (")
    assert "[" not in said
    with pytest.raises(ConnectionRefusedError) as refused:
        asyncio.run(dial(site, monkeypatch, CLOSED, "127.0.0.6"))
    assert explain(refused.value, NAME) == "Connection refused"


def test_a_wrong_server_is_named_before_all_other_trouble(
    site: TestSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks for the reason must not miss that one."""
    with pytest.raises(ServerNotTrusted, match="none of those pinned"):
        asyncio.run(dial(site, monkeypatch, CLOSED, RIGHT, pins=[NO_PIN]))


def test_a_name_that_is_not_resolved_any_more_keeps_its_addresses(
    site: TestSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that worked; without any, the failure is told."""
    caplog.set_level("INFO")
    assert asyncio.run(dial(site, monkeypatch, worked=[SHUT, RIGHT])) == RIGHT
    assert "addresses that worked before" in caplog.text
    with pytest.raises(socket.gaierror) as caught:
        asyncio.run(dial(site, monkeypatch))
    assert explain(caught.value, NAME).startswith(f"the name {NAME} is not resolved: Temporary")


def test_families_are_tried_in_turns() -> None:
    """RFC 8305: one family that is broken holds up the other for one try only."""
    found = ["2001:db8::1", "2001:db8::2", "2001:db8::2", "192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert in_turns(found) == [
        "2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "192.0.2.3",
    ]  # fmt: skip
    assert len(in_turns(f"192.0.2.{n}" for n in range(100))) <= 16
