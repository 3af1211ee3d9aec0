"""UDP beside the data: who may begin a channel, who may move it, and what nobody may do."""

import logging
import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.dataplane.wiring import INTERNET4, PLAIN, tcp
from tests.protocol.psk_client import again
from tests.worker.gateway import Device, Gateway
from vpnd.dataplane import counters
from vpnd.dataplane.udp_socket import Train
from vpnd.protocol.dtls_handshake import HANDSHAKE_TIMEOUT, MAX_ANSWERS, MAX_RESENDS
from vpnd.wire.cstp import PacketType
from vpnd.wire.dtls_record import ALERT, HEADER, SUITES
from vpnd.worker.datagrams import (
    HANDSHAKES_PER_TUNNEL,
    REBIND_CANDIDATES,
    SLOW_HANDSHAKE,
    WAITING_STEPS,
)
from vpnd.worker.tunnel import Tunnel

DPD = bytes([PacketType.DPD_REQUEST])


def packet(tunnel: Tunnel, size: int = 20) -> bytes:
    return tcp(tunnel.peer.address4, INTERNET4, size).build()


def connected(gateway: Gateway, number: int = 2) -> tuple[Tunnel, Device]:
    """Return a tunnel whose DTLS channel carries data."""
    tunnel = gateway.tunnel(number)
    device = gateway.device(tunnel)
    device.handshake()
    device.send(device.seal(b"\0" + packet(tunnel)))
    gateway.settle()
    assert tunnel.peer.dtls_active
    gateway.from_tun()
    return tunnel, device


@pytest.mark.parametrize("cipher", SUITES)
def test_a_channel_opens_and_carries_packets_both_ways(gateway: Gateway, cipher: str) -> None:
    """From the ClientHello to the TUN and back."""
    tunnel = gateway.tunnel(2)
    device = gateway.device(tunnel, cipher=cipher)
    device.handshake()
    assert tunnel.pending == 0
    assert not tunnel.peer.dtls_active  # its first record has to come
    device.send(device.seal(b"\0" + packet(tunnel)))
    gateway.settle()
    assert gateway.from_tun() == [PLAIN + packet(tunnel)]
    back = tcp(INTERNET4, tunnel.peer.address4, 100).build()
    gateway.to_tun(PLAIN + back)
    assert device.payloads() == [b"\0" + back]


def test_nothing_is_sealed_before_the_clients_first_record(gateway: Gateway) -> None:
    """A lost Finished could never be accepted after it: its number would be too old."""
    tunnel = gateway.tunnel(2)
    device = gateway.device(tunnel)
    device.handshake()
    tunnel.send_dtls(DPD)
    gateway.to_tun(PLAIN + tcp(INTERNET4, tunnel.peer.address4, 10).build())
    assert device.answers() == []
    assert len(tunnel.peer.stream.packets) == 1  # type: ignore[attr-defined]


def test_an_unknown_app_id_gets_no_answer_and_leaves_no_state(gateway: Gateway) -> None:
    """Neither a handshake nor a reason to send anything to a forged address."""
    tunnel = gateway.tunnel(2)
    stranger = gateway.device(tunnel, app_id=os.urandom(32))
    stranger.send(stranger.openssl.hello(), b"\x16\xfe\xfd junk", b"", os.urandom(400))
    gateway.settle()
    assert stranger.answers() == []
    assert not gateway.datagrams._pending
    assert gateway.drops[counters.UNKNOWN_SOURCE] >= 2
    assert tunnel.pending == 0


def test_what_cannot_begin_a_handshake_does_not_wait_for_a_turn(gateway: Gateway) -> None:
    """A flood of junk must not fill the places of those who can."""
    tunnel = gateway.tunnel(2)
    stranger = gateway.device(tunnel)
    for _ in range(40):
        stranger.send(b"\x16\xfe\xfd" + bytes(100))
    gateway.read_udp()
    assert not gateway.calls
    assert gateway.drops[counters.UNKNOWN_SOURCE] > 0


def test_a_removed_tunnel_is_an_unknown_one(gateway: Gateway) -> None:
    """Its App-ID dies with it, and so do the handshakes under way."""
    tunnel = gateway.tunnel(2)
    device = gateway.device(tunnel)
    device.send(device.openssl.hello())
    gateway.settle()
    assert tunnel.pending == 1
    gateway.datagrams.remove(tunnel)
    assert tunnel.pending == 0
    assert not gateway.datagrams._pending
    late = gateway.device(tunnel)
    late.send(late.openssl.hello())
    gateway.settle()
    assert late.answers() == []


def test_four_handshakes_of_a_tunnel_at_once_and_no_more(gateway: Gateway) -> None:
    """Whoever knows an App-ID can cost us 70 KiB a time; the fifth waits until one ends."""
    tunnel, other = gateway.tunnel(2), gateway.tunnel(3)
    devices = [gateway.device(tunnel) for _ in range(HANDSHAKES_PER_TUNNEL + 2)]
    for device in devices:
        device.send(device.openssl.hello())
    neighbour = gateway.device(other)
    neighbour.send(neighbour.openssl.hello())
    gateway.settle()
    assert [bool(device.answers()) for device in devices] == [True] * 4 + [False] * 2
    assert neighbour.answers()
    assert tunnel.peer.drops.as_dict() == {counters.HANDSHAKE_LIMIT: 2}
    gateway.now += HANDSHAKE_TIMEOUT
    gateway.datagrams.expire(gateway.now)
    assert tunnel.pending == other.pending == 0
    late = gateway.device(tunnel)
    late.send(late.openssl.hello())
    gateway.settle()
    assert late.answers()


def test_replayed_hellos_do_not_keep_the_client_out(gateway: Gateway) -> None:
    """Those from elsewhere give way to its own, and all that stand still to the next."""
    tunnel = gateway.tunnel(2)
    tunnel.channel.address = ("127.0.0.1", 40000)
    hello = gateway.device(tunnel).openssl.hello()
    for n in range(2, 2 + HANDSHAKES_PER_TUNNEL):
        gateway.datagrams.on_stray(
            gateway.udp,
            Train(memoryview(hello), len(hello), (f"127.0.0.{n}", 9), []),
            memoryview(hello),
        )
    gateway.settle()
    assert tunnel.pending == HANDSHAKES_PER_TUNNEL
    device = gateway.device(tunnel)
    device.handshake()
    assert tunnel.peer.dtls is not None
    assert tunnel.pending == HANDSHAKES_PER_TUNNEL - 1
    sniffers = [gateway.device(tunnel) for _ in range(HANDSHAKES_PER_TUNNEL)]
    for sniffer in sniffers:  # behind the same NAT, or with a forged source
        sniffer.send(sniffer.openssl.hello())
    gateway.settle()
    late = gateway.device(tunnel)
    late.send(late.openssl.hello())
    gateway.settle()
    assert late.answers() == []
    gateway.now += SLOW_HANDSHAKE
    again = gateway.device(tunnel)
    again.handshake()
    assert tunnel.pending <= HANDSHAKES_PER_TUNNEL


def test_a_repeated_hello_belongs_to_its_handshake(gateway: Gateway) -> None:
    """Or the client's answer would fit none of two ServerHellos."""
    tunnel = gateway.tunnel(2)
    device = gateway.device(tunnel)
    hello = device.openssl.hello()
    device.send(hello)
    gateway.settle()
    device.answers()  # lost
    device.send(again(hello, 1), again(hello, 2), again(hello, 3), again(hello, 4))
    gateway.settle()
    flights = device.answers()
    assert len(flights) == MAX_ANSWERS - 1
    assert tunnel.pending == 1
    device.send(device.openssl.step(flights[0]))
    gateway.settle()
    assert tunnel.peer.dtls is not None


def test_a_new_hello_from_the_same_port_begins_anew(gateway: Gateway) -> None:
    """A client with a fixed local port that gave up and tries again."""
    tunnel = gateway.tunnel(2)
    first, second = gateway.device(tunnel), gateway.device(tunnel)
    first.send(first.openssl.hello())
    gateway.settle()
    assert first.answers()
    first.send(second.openssl.hello())
    gateway.settle()
    (flight,) = first.answers()
    first.send(second.openssl.step(flight))
    gateway.settle()
    assert tunnel.peer.dtls is not None
    assert tunnel.pending == 0


def test_the_living_channel_works_until_a_new_one_is_complete(gateway: Gateway) -> None:
    """From another port, as stock clients do it, and from the same one."""
    tunnel, device = connected(gateway)
    old = tunnel.peer.dtls
    attempt = gateway.device(tunnel, psk=os.urandom(32))  # will never complete
    attempt.send(attempt.openssl.hello())
    gateway.settle()
    attempt.send(attempt.openssl.step(attempt.answers()[0]))
    device.send(device.seal(DPD + b"still here"))
    gateway.settle()
    assert device.payloads() == [b"\x04still here"]
    assert tunnel.peer.dtls is old
    successor = gateway.device(tunnel)
    successor.handshake()
    assert tunnel.peer.dtls is not old
    assert device.outer not in gateway.peers.outer


def test_a_handshake_from_the_port_of_the_living_channel_replaces_it(gateway: Gateway) -> None:
    """Its records are told apart, repeated hellos included."""
    tunnel, device = connected(gateway)
    old, again_client = tunnel.peer.dtls, gateway.device(tunnel).openssl
    hello = again_client.hello()
    device.send(hello, again(hello, 1))
    gateway.settle()
    flight = device.answers()[0]
    assert tunnel.pending == 1
    device.send(again_client.step(flight))
    gateway.settle()
    assert tunnel.peer.dtls is not old
    again_client.step(device.answers()[-1])
    assert again_client.is_done


def test_a_port_that_a_nat_gave_to_another_client_changes_hands(gateway: Gateway) -> None:
    """The first client's packets must not go on to the second one."""
    alice, device = connected(gateway, 2)
    bob = gateway.tunnel(3)
    client = gateway.device(bob).openssl
    device.send(client.hello())
    gateway.settle()
    device.send(client.step(device.answers()[0]))
    gateway.settle()
    assert gateway.peers.outer[device.outer].peer is bob.peer
    assert alice.peer.dtls is None
    assert not alice.peer.dtls_active


def finished_again(device: Device, number: int) -> bytes:
    """Return a repetition of the client's Finished: clients give each its own record number."""
    keys = device.openssl.keys().client
    sequence = (1 << 48 | 1 + number).to_bytes(8, "big")
    body = bytes(24)
    bound = sequence + b"\x16\xfe\xfd" + len(body).to_bytes(2, "big")
    sealed = sequence + AESGCM(keys.key).encrypt(keys.iv + sequence, body, bound)
    return b"\x16\xfe\xfd" + sequence + len(sealed).to_bytes(2, "big") + sealed


def test_a_lost_last_flight_is_repeated_when_the_client_repeats_its_own(gateway: Gateway) -> None:
    """Verbatim, at most ten times, and not more often than every 200 ms."""
    tunnel = gateway.tunnel(2)
    device = gateway.device(tunnel)
    device.send(device.openssl.hello())
    gateway.settle()
    finished = device.openssl.step(device.answers()[0])
    device.send(finished)
    gateway.settle()
    (last,) = device.answers()  # lost
    for _ in range(3 * MAX_RESENDS):  # anybody can send what looks like it
        gateway.now += 0.1
        device.send(b"\x16\xfe\xfd" + (1 << 48).to_bytes(8, "big") + b"\0\x28" + bytes(40))
        device.send(finished[:-1] + b"?")
        gateway.settle()
    assert device.answers() == []
    seen = []
    for number in range(3 * MAX_RESENDS):
        gateway.now += 0.1
        device.send(finished_again(device, number))
        gateway.settle()
        seen += device.answers()
    assert seen == [last] * MAX_RESENDS
    device.openssl.step(seen[0])
    assert device.openssl.is_done


def test_a_dpd_request_is_echoed_byte_for_byte(gateway: Gateway) -> None:
    """Stock clients measure the path with it, at full size, before they bring up the TUN."""
    tunnel, device = connected(gateway)
    probe = os.urandom(1400)
    device.send(device.seal(DPD + probe), device.seal(bytes([PacketType.KEEPALIVE])))
    gateway.settle()
    assert device.payloads() == [bytes([PacketType.DPD_RESPONSE]) + probe]
    assert tunnel.peer.rx_packets == 1


def test_unknown_and_empty_payloads_are_ignored(gateway: Gateway) -> None:
    """As both stock ends do."""
    _, device = connected(gateway)
    device.send(*(device.seal(payload) for payload in (b"", b"\x01", b"\xff" * 9, b"\x05\xb0bye")))
    gateway.settle()
    assert device.answers() == []
    assert gateway.drops.as_dict() == {}


def test_a_channel_that_was_given_up_has_to_answer_a_question(gateway: Gateway) -> None:
    """UDP may pass in one direction alone: what the client sends is no proof of what it gets."""
    tunnel, device = connected(gateway)
    tunnel.peer.dtls_active = False
    for _ in range(5):
        device.send(device.seal(b"\0" + packet(tunnel)))
        gateway.settle()
    assert len(gateway.from_tun()) == 5
    assert not tunnel.peer.dtls_active
    assert device.payloads() == [DPD]  # asked once, not for every record
    device.send(device.seal(bytes([PacketType.DPD_RESPONSE])))
    gateway.settle()
    assert tunnel.peer.dtls_active


def test_an_authentic_alert_ends_the_channel_and_a_forged_one_does_not(gateway: Gateway) -> None:
    """Traffic goes on over TLS."""
    tunnel, device = connected(gateway)
    device.send(HEADER.pack(ALERT, 0xFEFD, 1 << 48 | 5000, 26) + bytes(26))
    gateway.settle()
    assert tunnel.peer.dtls_active
    device.openssl.connection.shutdown()
    device.send(device.openssl._flight())
    gateway.settle()
    assert tunnel.peer.dtls is None
    assert not tunnel.peer.dtls_active


def test_a_client_behind_a_new_nat_port_keeps_its_channel(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole train of it: moved once, said once, and the answers go to the new port."""
    caplog.set_level(logging.INFO)
    tunnel, device = connected(gateway)
    device.move()
    caplog.clear()
    records = [device.seal(b"\0" + packet(tunnel, 100)) for _ in range(5)]
    device.udp.send_train(memoryview(b"".join(records)), len(records[0]), gateway.outer, [])
    gateway.settle()
    assert tunnel.peer.rx_packets == 1 + len(records)  # the one that was the proof included
    assert sum(map(len, gateway.from_tun())) > len(records) * 100
    assert gateway.drops.as_dict() == {}
    path = tunnel.peer.dtls
    assert path is not None
    assert path.address == device.outer
    assert list(gateway.peers.outer) == [device.outer]
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == ["client moved"]
    device.send(device.seal(DPD + b"?"))
    gateway.settle()
    assert device.payloads() == [b"\x04?"]


def test_a_forged_or_repeated_record_moves_nobody(gateway: Gateway) -> None:
    """Somebody on the path sends on what it has seen, from an address of its own."""
    tunnel, device = connected(gateway)
    seen = device.seal(b"\0" + packet(tunnel))
    device.send(seen)
    gateway.settle()
    thief = gateway.device(tunnel)
    thief.send(seen, seen[:-1] + bytes([seen[-1] ^ 1]), bytes([23]) + os.urandom(60))
    gateway.settle()
    assert tunnel.peer.dtls is not None
    assert tunnel.peer.dtls.address == device.outer
    assert gateway.drops[counters.UNKNOWN_SOURCE] == 3


def test_a_record_that_was_overtaken_does_not_move_the_client_back(gateway: Gateway) -> None:
    """It left the old address before the client moved and arrives after (RFC 9146 section 6)."""
    tunnel, device = connected(gateway)
    late = device.seal(b"\0" + packet(tunnel))
    old = device.udp
    device.udp = gateway.device(tunnel).udp
    device.send(device.seal(b"\0" + packet(tunnel)))
    gateway.settle()
    old.socket.sendto(late, gateway.outer)
    gateway.settle()
    assert tunnel.peer.dtls is not None
    assert tunnel.peer.dtls.address == device.outer
    old.close()


def test_a_client_that_moved_to_another_host_is_not_looked_for(gateway: Gateway) -> None:
    """Only sessions of the sender's own host are tried."""
    tunnel, device = connected(gateway)
    tunnel.channel.address = ("192.0.2.99", 40000)
    device.move()
    device.send(device.seal(DPD))
    gateway.settle()
    assert device.answers() == []
    assert gateway.drops[counters.UNKNOWN_SOURCE] == 1


def test_strays_cost_a_bounded_number_of_tries(gateway: Gateway) -> None:
    """A flood of them is looked at so many times a second, and no more."""
    tunnels = [connected(gateway, n)[0] for n in range(2, 2 + REBIND_CANDIDATES + 2)]
    stranger = gateway.device(tunnels[0])
    for _ in range(6):
        stranger.send(*[bytes([23]) + bytes(50)] * 10)
        gateway.settle()
    assert gateway.datagrams._tries_left < 0
    tunnel, device = connected(gateway, 99)
    gateway.tunnels[:] = [tunnel]
    device.move()
    device.send(device.seal(DPD))
    gateway.settle()
    assert device.answers() == []  # the tries of this second are used up
    gateway.now += 1
    device.send(device.seal(DPD), device.seal(DPD))
    gateway.settle()
    assert len(device.answers()) == 2
    gateway.tunnels[:] = [*tunnels, tunnel]


def test_the_silent_one_of_many_neighbours_is_found(gateway: Gateway) -> None:
    """Behind a large NAT the client that moved is the one not heard where it was."""
    moved, device = connected(gateway, 2)
    for n in range(3, 3 + 3 * REBIND_CANDIDATES):
        neighbour, _ = connected(gateway, n)
        neighbour.peer.liveness.heard_dtls(gateway.now + 1)
    device.move()
    device.send(device.seal(DPD), device.seal(DPD))
    gateway.settle()
    assert device.answers()
    assert moved.peer.dtls is not None


def test_data_gets_its_turn_between_handshake_steps(gateway: Gateway) -> None:
    """One step of 0.75 ms beside one of TLS, then whatever is readable."""
    tunnels = [gateway.tunnel(n) for n in range(2, 8)]
    devices = [gateway.device(tunnel) for tunnel in tunnels]
    for device in devices:
        device.send(device.openssl.hello())
    gateway.turn()
    answered = [bool(device.answers()) for device in devices]
    assert answered == [True] + [False] * 5
    gateway.turn()
    assert sum(bool(device.answers()) for device in devices) == 1


def test_steps_that_wait_are_bounded(gateway: Gateway) -> None:
    """Clients repeat what is lost; memory does not come back that easily."""
    tunnel = gateway.tunnel(2)
    hello = gateway.device(tunnel).openssl.hello()
    data = gateway.udp
    for port in range(WAITING_STEPS + 10):
        gateway.datagrams._put_off(data, ("127.0.0.1", port), [], hello)
    assert gateway.drops.as_dict() == {counters.HANDSHAKE_LIMIT: 10}
    assert len(gateway.calls) == 1
    gateway.datagrams._turns._steps.clear()


def test_a_handshake_that_takes_too_long_is_given_up(gateway: Gateway) -> None:
    """A wrong PSK is silent on both sides: only the clock ends it."""
    tunnel = gateway.tunnel(2)
    device = gateway.device(tunnel, psk=os.urandom(32))
    device.send(device.openssl.hello())
    gateway.settle()
    device.send(device.openssl.step(device.answers()[0]))
    gateway.settle()
    assert device.answers() == []
    gateway.datagrams.expire(gateway.now + HANDSHAKE_TIMEOUT - 0.1)
    assert tunnel.pending == 1
    gateway.datagrams.expire(gateway.now + HANDSHAKE_TIMEOUT)
    assert tunnel.pending == 0
    assert not gateway.datagrams._pending
