"""A client of our own changes its keys: two tunnels of one session, and no packet lost."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable

import pytest

from tests.dataplane.wiring import INTERNET4, PLAIN, tcp
from tests.protocol.authority import TestSite
from tests.worker.gateway import Channel, Device, Gateway
from tests.worker.site import GRANTED, WAIT, Bench, Remote, running
from vpnd.dataplane import counters
from vpnd.protocol.liveness import Liveness
from vpnd.wire import cstp
from vpnd.wire.cstp import PacketType
from vpnd.wire.dtls_record import MAX_RECORDS, RecordSealer
from vpnd.worker.messages import (
    AskRekey,
    EndTunnel,
    OpenQuery,
    OpenReply,
    TunnelProved,
    TunnelTakesOver,
)
from vpnd.worker.overlap import MAX_OVERLAP
from vpnd.worker.tunnel import REKEY, REKEY_AGAIN, REKEY_BELOW, Tunnel

OURS = bytes((10, 8, 0, 7))  # the session's address, on whichever tunnel
NEXT_COOKIE = "N" * 43
LEAVES = cstp.encode(PacketType.DISCONNECT, bytes([cstp.RECONNECTING]))
LOGS_OUT = cstp.encode(PacketType.DISCONNECT, bytes([cstp.USER_LOGOUT]))
Scene = Callable[[Bench], Awaitable[None]]


def play(site: TestSite, scene: Scene) -> None:
    async def main() -> None:
        async with running(site) as bench:
            grant_one_session(bench)
            await scene(bench)

    asyncio.run(main())


def grant_one_session(bench: Bench) -> None:
    """Grant each CONNECT a tunnel of the same session, beside the last one where it asks."""
    number = GRANTED.tunnel - 1

    async def grant(query: OpenQuery) -> OpenReply:
        nonlocal number
        number += 1
        beside = number - 1 if query.rekey else 0
        cookie = NEXT_COOKIE if query.rekey else ""
        return dataclasses.replace(GRANTED, tunnel=number, beside=beside, cookie=cookie)

    bench.border.on_open = grant


async def own(bench: Bench) -> Remote:
    return await bench.tunnel(X_Pyvpn_Version="1")


async def rekey(bench: Bench) -> Remote:
    return await bench.tunnel(X_Pyvpn_Version="1", X_Pyvpn_Rekey="1")


async def sends(bench: Bench, remote: Remote, size: int = 50) -> None:
    """Send a packet from the client and see it arrive."""
    packet = tcp(OURS, INTERNET4, size).build()
    remote.send(cstp.encode(PacketType.DATA, packet))
    assert await bench.from_tun() == PLAIN + packet


async def hears(bench: Bench, remote: Remote, size: int = 60) -> None:
    """Send a packet to the client and see it arrive at this end."""
    packet = tcp(INTERNET4, OURS, size).build()
    bench.kernel.send(PLAIN + packet)
    assert await remote.packet() == (PacketType.DATA, packet)


async def numbers(bench: Bench) -> set[int]:
    return {tunnel.tunnel for tunnel in (await bench.border.status()).tunnels}


def told(bench: Bench) -> list[int]:
    return [m.tunnel for m in bench.border.seen if isinstance(m, TunnelTakesOver)]


def proved(bench: Bench) -> list[int]:
    return [m.tunnel for m in bench.border.seen if isinstance(m, TunnelProved)]


def test_the_new_tunnel_serves_from_the_clients_first_packet_on_it(site: TestSite) -> None:
    """Until then its keys are not proven; what the client sends is taken on both throughout."""

    async def scene(bench: Bench) -> None:
        old = await own(bench)
        await sends(bench, old)
        await hears(bench, old)
        assert b"X-Pyvpn-Cookie" not in bench.last_answer
        new = await rekey(bench)
        assert f"X-Pyvpn-Cookie: {NEXT_COOKIE}\r\n".encode() in bench.last_answer
        query = bench.border.seen[-1]
        assert isinstance(query, OpenQuery)
        assert (query.is_own, query.rekey) == (True, True)
        await hears(bench, old)
        await sends(bench, old)
        assert told(bench) == proved(bench) == []
        await sends(bench, new)
        await sends(bench, new)
        await hears(bench, new)
        await sends(bench, old)
        await hears(bench, new)
        assert told(bench) == proved(bench) == [8]
        old.send(LEAVES)
        ended = await bench.border.end()
        assert (ended.tunnel, ended.final) == (7, False)
        await hears(bench, new)
        assert await numbers(bench) == {8}

    play(site, scene)


def test_any_packet_shows_that_the_new_tunnel_works(site: TestSite) -> None:
    """A client that has nothing to send asks a question."""

    async def scene(bench: Bench) -> None:
        await own(bench)
        new = await rekey(bench)
        new.send(cstp.encode(PacketType.DPD_REQUEST))
        assert await new.packet() == (PacketType.DPD_RESPONSE, b"")
        await hears(bench, new)

    play(site, scene)


def test_a_sessions_figures_go_on(site: TestSite) -> None:
    """Who looks at the status sees one session, not the age of its keys."""

    async def scene(bench: Bench) -> None:
        old = await own(bench)
        await sends(bench, old)
        await hears(bench, old)
        stranger = tcp(bytes((10, 8, 0, 99)), INTERNET4, 50).build()
        old.send(cstp.encode(PacketType.DATA, stranger))
        new = await rekey(bench)
        await sends(bench, new)
        await sends(bench, old)
        status = {tunnel.tunnel: tunnel for tunnel in (await bench.border.status()).tunnels}
        assert (status[8].rx_packets, status[8].tx_packets) == (3, 1)
        assert status[8].rx_bytes > status[8].tx_bytes > 0
        assert status[8].drops == {counters.INNER_SOURCE: 1}
        assert status[7].rx_packets == 0
        old.send(LEAVES)
        await bench.border.end()
        reply = await bench.border.status()
        assert reply.tunnels[0].rx_packets == 3
        assert reply.drops == {counters.INNER_SOURCE: 1}

    play(site, scene)


@pytest.mark.parametrize("used", [True, False])
def test_the_overlap_is_bounded(site: TestSite, used: bool) -> None:
    """The old tunnel ends in quiet, unless the new one was never used: then that one does."""

    async def scene(bench: Bench) -> None:
        old = await own(bench)
        new = await rekey(bench)
        if used:
            await sends(bench, new)
        stays, goes = (new, old) if used else (old, new)
        bench.worker.now = lambda: time.monotonic() + MAX_OVERLAP  # type: ignore[method-assign]
        assert await goes.record() == b""  # not even a goodbye
        ended = await bench.border.end()
        assert (ended.tunnel, ended.final) == (7 if used else 8, False)
        await hears(bench, stays)
        await sends(bench, stays)
        assert told(bench) == ([8] if used else [])

    play(site, scene)


def test_a_session_that_loses_its_old_tunnel_goes_on_by_the_new(site: TestSite) -> None:
    """Whether the client has used it or not: it is what there is."""

    async def scene(bench: Bench) -> None:
        old = await own(bench)
        new = await rekey(bench)
        old.writer.transport.abort()
        ended = await bench.border.end()
        assert (ended.tunnel, told(bench)) == (7, [8])
        await hears(bench, new)
        assert proved(bench) == []  # it may know nothing of it, nor of its next cookie
        await sends(bench, new)
        await numbers(bench)
        assert (told(bench), proved(bench)) == ([8], [8])

    play(site, scene)


def test_a_new_tunnel_that_breaks_before_its_use_costs_nothing(site: TestSite) -> None:
    """The client tries again, and packets go on by the old one meanwhile."""

    async def scene(bench: Bench) -> None:
        old = await own(bench)
        new = await rekey(bench)
        new.writer.transport.abort()
        ended = await bench.border.end()
        assert (ended.tunnel, ended.final) == (8, False)
        await hears(bench, old)
        await sends(bench, old)

    play(site, scene)


@pytest.mark.parametrize("on_new", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_a_goodbye_on_either_ends_both(site: TestSite, on_new: bool, used: bool) -> None:
    """A session is over when its user says so."""

    async def scene(bench: Bench) -> None:
        old = await own(bench)
        new = await rekey(bench)
        if used:
            await sends(bench, new)
        (new if on_new else old).send(LOGS_OUT)
        ended = [await bench.border.end() for _ in range(2)]
        assert {(e.tunnel, e.final) for e in ended} == {(7, True), (8, True)}
        assert await old.is_closed()
        assert await new.is_closed()
        assert await numbers(bench) == set()

    play(site, scene)


def test_the_masters_end_of_one_ends_both(site: TestSite) -> None:
    """A revoked client does not stay by its other tunnel."""

    async def scene(bench: Bench) -> None:
        old = await own(bench)
        new = await rekey(bench)
        bench.border.channel.send(EndTunnel(7, "revoked", bye=True))
        assert (await old.packet())[0] == PacketType.DISCONNECT
        assert await new.is_closed()
        assert await numbers(bench) == set()

    play(site, scene)


@pytest.mark.parametrize("used", [True, False])
def test_a_session_has_two_tunnels_at_most(site: TestSite, used: bool) -> None:
    """A client that rotates without end holds no more than that."""

    async def scene(bench: Bench) -> None:
        old = await own(bench)
        second = await rekey(bench)
        if used:
            await sends(bench, second)
        else:  # the master knows nothing of it yet and names the one that serves
            beside = dataclasses.replace(GRANTED, tunnel=9, beside=7)

            async def again(_query: OpenQuery) -> OpenReply:
                return beside

            bench.border.on_open = again
        third = await rekey(bench)
        stays, goes = (second, old) if used else (old, second)
        assert await goes.is_closed()
        await hears(bench, stays)
        await sends(bench, third)
        await hears(bench, third)
        assert len(await numbers(bench)) == 2

    play(site, scene)


def test_a_tunnel_that_ended_while_the_master_was_asked_is_replaced_at_once(
    site: TestSite,
) -> None:
    """There is nothing to overlap with."""

    async def scene(bench: Bench) -> None:
        async def grant(_query: OpenQuery) -> OpenReply:
            return dataclasses.replace(GRANTED, tunnel=9, beside=5, cookie=NEXT_COOKIE)

        bench.border.on_open = grant
        new = await rekey(bench)
        await hears(bench, new)
        assert (told(bench), proved(bench)) == ([9], [])
        await sends(bench, new)
        await numbers(bench)
        assert proved(bench) == [9]

    play(site, scene)


def test_only_our_own_clients_hear_of_it(site: TestSite) -> None:
    """For all others the answer is what it always was, and so is the asking."""

    async def scene(bench: Bench) -> None:
        stock = await bench.tunnel(X_Pyvpn_Rekey="1")
        query = bench.border.seen[-1]
        assert isinstance(query, OpenQuery)
        assert not query.is_own
        assert not query.rekey
        assert b"pyvpn" not in bench.last_answer.lower()
        bench.border.channel.send(AskRekey(GRANTED.tunnel))
        await hears(bench, stock)
        ours = await own(bench)
        assert b"X-Pyvpn-Version: 1\r\n" in bench.last_answer
        bench.border.channel.send(AskRekey(GRANTED.tunnel + 1))
        assert await asyncio.wait_for(ours.packet(), WAIT) == (PacketType.DPD_REQUEST, REKEY)

    play(site, scene)


# over DTLS


def beside(gateway: Gateway, old: Tunnel) -> Tunnel:
    """Open another tunnel of the session, which has the same addresses."""
    new = gateway.tunnel(old.number + 100)
    gateway.peers.remove(new.peer)
    new.peer.address4 = old.peer.address4
    gateway.overlaps.begin(old, new, gateway.now)
    return new


def data(tunnel: Tunnel, size: int = 20) -> bytes:
    return tcp(tunnel.peer.address4, INTERNET4, size).build()


def connected(gateway: Gateway) -> tuple[Tunnel, Device]:
    tunnel = gateway.tunnel(2)
    device = gateway.device(tunnel)
    device.handshake()
    device.send(device.seal(b"\0" + data(tunnel)))
    gateway.settle()
    gateway.from_tun()
    return tunnel, device


def test_over_udp_the_first_record_under_the_new_keys_moves_the_session(gateway: Gateway) -> None:
    """A finished handshake does not: the client may never have got our last flight."""
    old, before = connected(gateway)
    new = beside(gateway, old)
    after = gateway.device(new)
    after.handshake()
    back = tcp(INTERNET4, old.peer.address4, 100).build()
    gateway.to_tun(PLAIN + back)
    assert before.payloads() == [b"\0" + back]
    assert not new.serving
    after.send(after.seal(bytes([PacketType.DPD_REQUEST])))
    gateway.settle()
    assert new.serving
    assert not old.serving
    assert gateway.told == [
        TunnelTakesOver(new.number, new.session),
        TunnelProved(new.number, new.session),
    ]
    gateway.to_tun(PLAIN + back)
    assert after.payloads() == [bytes([PacketType.DPD_RESPONSE]), b"\0" + back]
    assert before.payloads() == []
    for device in (before, after):  # in flight when the client moved, and after
        device.send(device.seal(b"\0" + data(old)))
    gateway.settle()
    assert gateway.from_tun() == [PLAIN + data(old)] * 2


def test_a_forged_record_moves_nothing(gateway: Gateway) -> None:
    """Or anybody could cut a session off from its packets."""
    old, before = connected(gateway)
    new = beside(gateway, old)
    after = gateway.device(new)
    after.handshake()
    record = bytearray(after.seal(b"\0" + data(old)))
    record[-1] ^= 1
    after.send(bytes(record))
    gateway.settle()
    assert not new.serving
    back = tcp(INTERNET4, old.peer.address4, 100).build()
    gateway.to_tun(PLAIN + back)
    assert before.payloads() == [b"\0" + back]


@pytest.mark.parametrize("is_own", [True, False])
def test_keys_that_are_nearly_used_up_are_changed_in_time(gateway: Gateway, is_own: bool) -> None:
    """The client counts what it seals, not what we do; a download would end on TLS."""
    tunnel, device = connected(gateway)
    tunnel.is_own = is_own
    channel = tunnel.channel
    assert isinstance(channel, Channel)
    tunnel.watch_keys(gateway.now)
    assert channel.sent == []
    assert tunnel.peer.dtls is not None
    keys = device.openssl.keys()
    tunnel.peer.dtls.sealer = RecordSealer(
        keys.suite, keys.server, first_sequence=MAX_RECORDS - REKEY_BELOW + 1
    )
    for now in (0.0, 1.0, REKEY_AGAIN, REKEY_AGAIN + 1):
        tunnel.watch_keys(gateway.now + now)
    question = cstp.encode(PacketType.DPD_REQUEST, REKEY)
    assert channel.sent == ([question] * 2 if is_own else [])


def test_new_keys_do_not_make_an_idle_session_busy() -> None:
    """Or a client that rotates every hour would never meet an idle timeout of two."""
    old, new = Liveness(0.0, 0, idle_timeout_s=7200), Liveness(3600.0, 0, idle_timeout_s=7200)
    new.go_on_from(old)
    assert new.expire(7199.0, dtls_active=False) == []
    assert new.expire(7200.0, dtls_active=False) != []
