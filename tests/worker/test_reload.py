"""A worker that is told to work otherwise: for who comes then, not for who is there."""

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.protocol.authority import TestSite
from tests.worker.site import WAIT, Bench, running
from vpnd.wire import cstp
from vpnd.wire.cstp import PacketType
from vpnd.worker.messages import Reload, Reloaded

pytestmark = pytest.mark.usefixtures("_own_logging")


@pytest.fixture
def _own_logging() -> Iterator[None]:
    """A worker sets up the logging of its process; the tests after this one are no worker's."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.disable(logging.NOTSET)
    root.handlers[:] = handlers
    root.setLevel(level)


def play(site: TestSite, scene: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        async with running(site) as bench:
            await scene(bench)

    asyncio.run(main())


async def reload(bench: Bench, **changes: object) -> Reloaded:
    settings = dataclasses.replace(bench.start, **changes)  # type: ignore[arg-type]
    reply = await asyncio.wait_for(bench.border.channel.ask(Reload(settings)), WAIT)
    assert isinstance(reply, Reloaded)
    return reply


def other_site(tmp_path: Path) -> TestSite:
    return TestSite(tmp_path)


def test_a_new_certificate_is_shown_to_who_comes_now(site: TestSite, tmp_path: Path) -> None:
    """Tunnels that are open go on with the TLS connection that they have."""
    other = other_site(tmp_path)

    async def scene(bench: Bench) -> None:
        before = await bench.tunnel()
        files = {"certificate": other.certificate, "key": other.key, "client_ca": other.client_ca}
        assert await reload(bench, **{k: str(v) for k, v in files.items()}) == Reloaded()
        after = await bench.remote(files=other.client())
        shown = after.tls.connection.get_peer_certificate()
        assert shown is not None
        assert shown.to_cryptography().public_bytes(Encoding.PEM) in other.certificate.read_bytes()
        before.send(cstp.encode(PacketType.DPD_REQUEST, b"still there"))
        assert await before.packet() == (PacketType.DPD_RESPONSE, b"still there")

    play(site, scene)


def test_a_key_that_cannot_be_used_changes_nothing(site: TestSite, tmp_path: Path) -> None:
    """The master has looked, but the file may change between the two looks."""
    other = other_site(tmp_path)

    async def scene(bench: Bench) -> None:
        reply = await reload(bench, key=str(other.key), dtls=False, login_timeout_s=1)
        assert "does not belong to" in reply.refusal
        assert bench.worker.settings == bench.start
        await bench.tunnel()

    play(site, scene)


def test_limits_hold_for_who_comes_now(site: TestSite) -> None:
    """Who is over a new limit already may stay."""

    async def scene(bench: Bench) -> None:
        first, second = await bench.tunnel(), await bench.tunnel()
        assert await reload(bench, connections=2) == Reloaded()
        with pytest.raises((ConnectionError, OSError)):
            await bench.remote()
        for client in (first, second):
            client.send(cstp.encode(PacketType.DPD_REQUEST))
            assert (await client.packet())[0] == PacketType.DPD_RESPONSE
        assert await reload(bench, connections=3) == Reloaded()
        await bench.tunnel()

    play(site, scene)


def test_udp_can_be_switched_off_for_who_comes_now(site: TestSite) -> None:
    """Without an App-ID a client does not try."""

    async def scene(bench: Bench) -> None:
        for on in (True, False, True):
            await reload(bench, dtls=on)
            await bench.tunnel(X_DTLS_CipherSuite="PSK-NEGOTIATE")
            assert (b"X-DTLS-App-ID" in bench.last_answer) == on

    play(site, scene)


def test_the_log_level_is_the_workers_too(site: TestSite) -> None:
    """Most lines are its own."""

    async def scene(bench: Bench) -> None:
        await reload(bench, log_level="none")
        assert not logging.getLogger("pyvpn").isEnabledFor(logging.CRITICAL)
        await reload(bench, log_level="debug")
        assert logging.getLogger("pyvpn").isEnabledFor(logging.DEBUG)

    play(site, scene)
