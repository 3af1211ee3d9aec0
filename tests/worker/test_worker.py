"""A worker as its clients and its master see it: TLS, tunnels, limits, and how they end."""

import asyncio
import dataclasses
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from tests.dataplane.wiring import INTERNET4, PLAIN, tcp
from tests.protocol.authority import BEFORE, TestSite
from tests.protocol.psk_client import PskClient
from tests.worker.site import COOKIE, GRANTED, LABEL, WAIT, Bench, connect_request, running
from vpnd.wire import cstp
from vpnd.wire.cstp import PacketType
from vpnd.worker.messages import (
    EndTunnel,
    FormInput,
    LoginQuery,
    LoginReply,
    Logout,
    OpenQuery,
    OpenReply,
    Stop,
)
from vpnd.worker.streams import HANDSHAKE_TIMEOUT, MAX_BACKLOG, ClientConnection

LOGIN = b"POST / HTTP/1.1\r\nHost: vpn\r\nContent-Length: 0\r\n\r\n"
Scene = Callable[[Bench], Awaitable[None]]


def play(site: TestSite, scene: Scene, **limits: int) -> None:
    """Run a scene with a worker; nothing of it may be left over afterwards."""

    async def main() -> None:
        async with running(site, **limits) as bench:
            await scene(bench)

    asyncio.run(main())


def from_client(number: int = 7, size: int = 50) -> bytes:
    return tcp(bytes((10, 8, 0, number)), INTERNET4, size).build()


def test_a_login_and_a_tunnel_on_one_connection(site: TestSite) -> None:
    """What the master hears is what the client said, and what the client hears the master said."""

    async def scene(bench: Bench) -> None:
        async def ask(query: LoginQuery) -> LoginReply:
            if not query.values:
                inputs = [FormInput("username", "text", "Name:")]
                return LoginReply("form", "Who?", None, inputs, "logincookie")
            assert query.login_cookie == "logincookie"
            return LoginReply("accepted", cookie=COOKIE)

        bench.border.on_login = ask
        remote = await bench.remote(files=site.client())
        answer = await remote.request(LOGIN)
        assert b"webvpncontext=logincookie" in answer
        body = b"username=alice"
        answer = await remote.request(
            b"POST /auth HTTP/1.1\r\nHost: vpn\r\nCookie: webvpncontext=logincookie\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        assert f"webvpn={COOKIE};".encode() in answer
        answer = await remote.request(connect_request())
        assert b"X-CSTP-Address: 10.8.0.7\r\n" in answer
        assert b"X-CSTP-Address-IP6: fd00::7/64\r\n" in answer
        _, login, first, second = bench.border.seen
        assert isinstance(login, LoginQuery)
        assert login.certificate is not None
        assert (login.certificate.user, login.certificate.client) == ("alice", "laptop")
        assert isinstance(first, LoginQuery)
        assert first.values == {"username": "alice"}
        assert isinstance(second, OpenQuery)
        assert (second.cookie, second.wants_ipv4, second.wants_ipv6) == (COOKIE, True, True)

    play(site, scene)


def test_a_logout_reaches_the_master_and_ends_the_connection(site: TestSite) -> None:
    """The master forgets the session; the client is told that its cookie is gone."""

    async def scene(bench: Bench) -> None:
        remote = await bench.remote()
        body = b'<config-auth client="vpn" type="logout"/>'
        answer = await remote.request(
            b"POST / HTTP/1.1\r\nHost: vpn\r\nCookie: webvpn=%s\r\nContent-Length: %d\r\n\r\n%s"
            % (COOKIE.encode(), len(body), body)
        )
        assert b"Set-Cookie: webvpn=; Max-Age=0" in answer
        assert await remote.is_closed()
        await bench.border.status()  # what was sent before has arrived
        assert [m.cookie for m in bench.border.seen if isinstance(m, Logout)] == [COOKIE]

    play(site, scene)


def test_packets_cross_the_tls_channel_one_to_a_record(site: TestSite) -> None:
    """Stock clients drop two packets in one record, and take any cut on the way in."""

    async def scene(bench: Bench) -> None:
        remote = await bench.tunnel()
        packets = [from_client(size=n) for n in (10, 20)]
        stream = b"".join(cstp.encode(0, packet) for packet in packets)
        remote.send(stream[:5], stream[5:40], stream[40:])
        assert [await bench.from_tun() for _ in packets] == [PLAIN + p for p in packets]
        back = tcp(INTERNET4, bytes((10, 8, 0, 7)), 4000)
        bench.kernel.send(back.frame(1000))
        assert [await remote.packet() for _ in range(4)] == [(0, s) for s in back.segments(1000)]
        remote.send(cstp.encode(PacketType.DPD_REQUEST, b"payload"))
        assert await remote.packet() == (PacketType.DPD_RESPONSE, b"payload")
        remote.send(cstp.encode(PacketType.KEEPALIVE), cstp.encode(6, b"?"))
        remote.send(cstp.encode(PacketType.DPD_REQUEST))
        assert await remote.packet() == (PacketType.DPD_RESPONSE, b"")
        (tunnel,) = (await bench.border.status()).tunnels
        assert (tunnel.rx_packets, tunnel.tx_packets, tunnel.channel) == (2, 4, "TLS")
        assert tunnel.group

    play(site, scene)


def test_the_udp_channel_is_keyed_by_the_tls_connection(site: TestSite) -> None:
    """The PSK is exported from the connection that carried this CONNECT."""

    async def scene(bench: Bench) -> None:
        remote = await bench.tunnel(X_DTLS_CipherSuite="PSK-NEGOTIATE")
        fields = dict(
            line.split(": ", 1) for line in bench.last_answer.decode().split("\r\n")[1:] if line
        )
        assert fields["X-DTLS-Port"] == str(bench.address[1])
        psk = remote.tls.connection.export_keying_material(LABEL, 32)
        client = PskClient(psk, app_id=bytes.fromhex(fields["X-DTLS-App-ID"]))
        loop = asyncio.get_running_loop()
        received: asyncio.Queue[bytes] = asyncio.Queue()

        class Udp(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002
                received.put_nowait(data)

        transport, _ = await loop.create_datagram_endpoint(Udp, remote_addr=bench.address)
        transport.sendto(client.hello())
        while not client.is_done:
            flight = client.step(await asyncio.wait_for(received.get(), WAIT))
            if flight:
                transport.sendto(flight)
        transport.sendto(client.seal(b"\0" + from_client()))
        assert await bench.from_tun() == PLAIN + from_client()
        back = tcp(INTERNET4, bytes((10, 8, 0, 7)), 30).build()
        bench.kernel.send(PLAIN + back)
        assert client.open(await asyncio.wait_for(received.get(), WAIT)) == b"\0" + back
        (tunnel,) = (await bench.border.status()).tunnels
        assert (tunnel.channel, tunnel.cipher) == ("DTLS", "AES-256-GCM")
        transport.close()

    play(site, scene)


def test_without_an_offer_of_udp_nothing_of_it_is_said(site: TestSite) -> None:
    """Any of its fields would make a stock client wait for twelve seconds."""

    async def scene(bench: Bench) -> None:
        await bench.tunnel()
        assert b"X-DTLS" not in bench.last_answer

    play(site, scene)


@pytest.mark.parametrize(
    ("goodbye", "final"),
    [
        (cstp.encode(PacketType.DISCONNECT, b"\xb0bye"), True),
        (cstp.encode(PacketType.DISCONNECT), False),
        (cstp.encode(PacketType.DISCONNECT, b"\x91"), False),
        (cstp.encode(PacketType.COMPRESSED, b"xyz"), False),
        (b"STF\x02 not a packet", False),
        (b"", False),
    ],
)
def test_how_a_client_leaves_decides_whether_it_may_come_back(
    site: TestSite, goodbye: bytes, final: bool
) -> None:
    """Only a user's own goodbye ends the session; errors and broken lines do not."""

    async def scene(bench: Bench) -> None:
        remote = await bench.tunnel()
        if goodbye:
            remote.send(goodbye)
            assert await remote.is_closed()
        else:
            remote.writer.transport.abort()
        ended = await bench.border.end()
        assert (ended.tunnel, ended.session, ended.final) == (7, "s7", final)
        assert not bench.worker._tunnels
        assert not bench.worker._peers.inner
        assert not bench.worker._hosts

    play(site, scene)


def test_packets_before_a_goodbye_arrive(site: TestSite) -> None:
    """A client that leaves has often just sent its last words, in the same segment."""

    async def scene(bench: Bench) -> None:
        remote = await bench.tunnel()
        goodbye = cstp.encode(PacketType.DISCONNECT, b"\xb0bye")
        remote.send(cstp.encode(PacketType.DATA, from_client()), goodbye)
        assert await bench.from_tun() == PLAIN + from_client()
        await bench.border.end()

    play(site, scene)


def test_the_master_ends_a_tunnel_with_a_goodbye(site: TestSite) -> None:
    """A stock client that hears it does not come back by itself."""

    async def scene(bench: Bench) -> None:
        remote = await bench.tunnel()
        bench.border.channel.send(EndTunnel(7, "certificate revoked", bye=True))
        kind, payload = await remote.packet()
        assert kind == PacketType.DISCONNECT
        assert b"certificate revoked" in payload
        assert await remote.is_closed()
        assert (await bench.border.end()).final
        bench.border.channel.send(EndTunnel(7, "again", bye=True))
        assert (await bench.border.status()).tunnels == []

    play(site, scene)


def test_a_refused_connect_is_answered_and_closed(site: TestSite) -> None:
    """401 makes a stock client log in anew."""

    async def scene(bench: Bench) -> None:
        async def refuse(_query: OpenQuery) -> OpenReply:
            return OpenReply(refused=401, reason="Cookie is not acceptable")

        bench.border.on_open = refuse
        remote = await bench.remote()
        answer = await remote.request(connect_request())
        assert answer.startswith(b"HTTP/1.1 401 Cookie is not acceptable\r\n")
        assert await remote.is_closed()
        assert await settled(bench)

    play(site, scene)


async def settled(bench: Bench) -> bool:
    """Let the worker see the ends of its connections."""
    for _ in range(200):
        if not bench.worker.admission.total:
            return True
        await asyncio.sleep(0.005)
    return False


@pytest.mark.parametrize("how", ["abort", "close_notify", "impatience"])
def test_a_client_that_leaves_while_the_master_thinks_leaves_nothing_behind(
    site: TestSite, how: str
) -> None:
    """The tunnel that was granted meanwhile goes back; it would never be closed otherwise."""

    async def scene(bench: Bench) -> None:
        release = asyncio.Event()

        async def slow(_query: OpenQuery) -> OpenReply:
            await release.wait()
            return GRANTED

        bench.border.on_open = slow
        remote = await bench.remote()
        remote.send(connect_request())
        await asyncio.wait_for(bench.border.asked.wait(), WAIT)
        if how == "abort":
            remote.writer.transport.abort()
        elif how == "close_notify":
            remote.tls.connection.shutdown()
            remote.writer.write(remote.tls.output())
            assert await remote.is_closed()
        else:
            answer = await remote.request(b"more")
            assert answer.startswith(b"HTTP/1.1 400 ")
        assert await settled(bench)
        release.set()
        ended = await bench.border.end()
        assert (ended.tunnel, ended.session, ended.final) == (7, "s7", False)
        assert not bench.worker._tunnels
        assert not bench.worker._peers.inner

    play(site, scene)


def test_a_tunnel_without_an_address_the_client_can_use_is_refused(site: TestSite) -> None:
    """IPv6 alone on a link below 1280 bytes: an answer with the reason, and no tunnel left."""

    async def scene(bench: Bench) -> None:
        async def only_ipv6(_query: OpenQuery) -> OpenReply:
            return dataclasses.replace(GRANTED, address4="")

        bench.border.on_open = only_ipv6
        remote = await bench.remote()
        answer = await remote.request(connect_request(X_CSTP_Base_MTU="1300"))
        assert answer.startswith(b"HTTP/1.1 503 "), answer
        assert b"X-Reason: " in answer
        assert await remote.is_closed()
        assert not (await bench.border.end()).final
        assert not bench.worker._tunnels

    play(site, scene)


def test_connections_of_one_address_are_limited(site: TestSite) -> None:
    """The next one gets through when one has gone."""

    async def scene(bench: Bench) -> None:
        first, _ = await bench.remote(), await bench.remote()
        with pytest.raises(ConnectionError):
            await bench.remote()
        first.writer.transport.abort()
        for _ in range(200):
            if bench.worker.admission.total < 2:
                break
            await asyncio.sleep(0.005)
        await bench.remote()

    play(site, scene, connections_per_address=2)


def test_open_tunnels_do_not_count_as_logins(site: TestSite) -> None:
    """Or a full house would lock its own doors: connections without a tunnel are the limit."""

    async def scene(bench: Bench) -> None:
        tunnels = [await bench.tunnel() for _ in range(3)]
        assert bench.worker.admission.pending == 0
        await bench.remote()
        with pytest.raises(ConnectionError):
            await bench.remote()
        for tunnel in tunnels:
            tunnel.send(cstp.encode(PacketType.DPD_REQUEST))
            assert (await tunnel.packet())[0] == PacketType.DPD_RESPONSE

    play(site, scene, handshakes_pending=1)


def test_few_addresses_cannot_keep_the_others_out(
    site: TestSite, caplog: pytest.LogCaptureFixture
) -> None:
    """The oldest login of the address that has most gives way to one that has fewer."""
    caplog.set_level(logging.INFO)

    async def scene(bench: Bench) -> None:
        first, second = [await bench.remote(source="127.0.0.2") for _ in range(2)]
        third, fourth = [await bench.remote(source="127.0.0.3") for _ in range(2)]
        opened = await bench.tunnel()
        assert await first.is_closed()
        for idle in (second, third, fourth):
            assert b"HTTP/1.1 200" in await idle.request(LOGIN)
        await bench.remote(source="127.0.0.3")  # the place that the tunnel no longer needs
        with pytest.raises(ConnectionError):  # who has most himself gets no other's place
            await bench.remote(source="127.0.0.3")
        opened.send(cstp.encode(PacketType.DPD_REQUEST))
        assert (await opened.packet())[0] == PacketType.DPD_RESPONSE
        assert bench.worker.admission.pending == 4

    play(site, scene, handshakes_pending=4)
    reasons = [r.getMessage() for r in caplog.records if "too many logins" in r.getMessage()]
    assert len(reasons) == 2


def test_what_tls_itself_answers_is_bounded_too(
    site: TestSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KeyUpdate is answered with another, before any login, whether it is read or not."""

    async def scene(bench: Bench) -> None:
        remote = await bench.remote()
        monkeypatch.setattr(ClientConnection, "backlog", lambda _: MAX_BACKLOG + 1)
        remote.send(b"GET / HT")
        assert await remote.is_closed()

    play(site, scene)


def test_a_login_that_takes_too_long_is_cut_off(
    site: TestSite, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it does meanwhile; before TLS the time is shorter."""
    caplog.set_level(logging.INFO)

    async def scene(bench: Bench) -> None:
        remote = await bench.remote()
        assert await remote.is_closed()

    play(site, scene, login_timeout_s=0)
    assert any("login timed out" in r.getMessage() for r in caplog.records)
    assert HANDSHAKE_TIMEOUT < 60


def test_a_bad_certificate_is_one_line_that_names_it(
    site: TestSite, caplog: pytest.LogCaptureFixture
) -> None:
    """Subject, reason and address; other clients are not disturbed."""
    caplog.set_level(logging.INFO)

    async def scene(bench: Bench) -> None:
        other = await bench.tunnel()
        expired = site.client("bob", "old-phone", now=BEFORE)
        remote = await bench.remote(files=expired)
        assert await remote.is_closed()
        other.send(cstp.encode(PacketType.DPD_REQUEST))
        assert (await other.packet())[0] == PacketType.DPD_RESPONSE

    play(site, scene)
    (line,) = [r.getMessage() for r in caplog.records if "old-phone" in r.getMessage()]
    assert "expired" in line
    assert "127.0.0.1:" in line


def test_stopping_ends_tunnels_so_that_they_can_resume(site: TestSite) -> None:
    """A restart of ours: the clients come back by their cookies, so nobody says goodbye."""

    async def scene(bench: Bench) -> None:
        remotes = [await bench.tunnel() for _ in range(3)]
        bench.border.channel.send(Stop())
        ended = [await bench.border.end() for _ in remotes]
        assert not any(end.final for end in ended)
        for remote in remotes:
            assert await remote.record() == b""
        await asyncio.wait_for(asyncio.shield(bench.run), WAIT)  # type: ignore[attr-defined]

    play(site, scene)


def test_without_a_master_the_worker_ends(site: TestSite) -> None:
    """It could neither log anybody in nor be stopped."""

    async def scene(bench: Bench) -> None:
        remote = await bench.tunnel()
        bench.border.channel.close()
        await asyncio.wait_for(asyncio.shield(bench.run), WAIT)  # type: ignore[attr-defined]
        assert await remote.is_closed()

    play(site, scene)


def test_a_client_that_uses_anothers_address_is_shown(site: TestSite) -> None:
    """Dropped, counted for the session, and in the sum of all."""

    async def scene(bench: Bench) -> None:
        remote, _ = await bench.tunnel(), await bench.tunnel()
        remote.send(cstp.encode(0, from_client(8)), cstp.encode(0, from_client(7)))
        assert await bench.from_tun() == PLAIN + from_client(7)
        status = await bench.border.status()
        shown = {tunnel.tunnel: tunnel.drops for tunnel in status.tunnels}
        assert shown == {7: {"inner-source": 1}, 8: {}}
        assert status.drops == {"inner-source": 1}

    play(site, scene)


def test_a_client_that_does_not_read_is_cut_off(site: TestSite) -> None:
    """Its answers would pile up in our memory."""

    async def scene(bench: Bench) -> None:
        remote = await bench.tunnel()
        remote.writer.transport.pause_reading()  # type: ignore[attr-defined]
        probe = cstp.encode(PacketType.DPD_REQUEST, os.urandom(16000))
        with suppress(ConnectionError):  # it may be cut while we still write
            for _ in range(5000):
                remote.send(probe)
                await remote.writer.drain()
        ended = await bench.border.end()
        assert ended.reason == "client does not read"
        assert not ended.final

    play(site, scene)
