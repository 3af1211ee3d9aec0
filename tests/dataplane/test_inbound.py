"""Network -> TUN: only what is authentic, new, and the client's own."""

from ipaddress import ip_address

import pytest

from tests.dataplane.wiring import INTERNET4, Client, Plane, tcp
from vpnd.dataplane import counters
from vpnd.dataplane.inbound import seal_one
from vpnd.dataplane.udp_socket import RECEIVES_PER_WAKEUP
from vpnd.wire.cstp import PacketType
from vpnd.wire.dtls_record import HANDSHAKE, HEADER
from vpnd.wire.segment import segment, segment_room

ROOM = memoryview(bytearray(segment_room(0)))


def from_client(client: Client, size: int = 100, **changes: object) -> bytes:
    return tcp(client.address4, INTERNET4, size, **changes).build()


def packets(frames: list[bytes]) -> list[bytes]:
    """Return what the kernel makes of frames: superpackets split."""
    return [bytes(v) for frame in frames for v in segment(memoryview(frame), ROOM, 0)]


def train(client: Client, count: int = 20, size: int = 1000) -> tuple[list[bytes], list[bytes]]:
    """Return the packets of a TCP flow and their records."""
    parts = tcp(client.address4, INTERNET4, count * size).segments(size)
    return parts, [client.seal(part) for part in parts]


def test_a_train_of_records_is_one_write_of_one_superpacket(plane: Plane) -> None:
    """The mirror of the way out; the kernel makes the same packets of it."""
    client = plane.client(2)
    path = client.activate()
    parts, records = train(client)
    client.send_train(b"".join(records), len(records[0]))
    plane.read_udp()
    frames = plane.from_tun()
    assert packets(frames) == parts
    assert len(frames) == 1
    assert client.peer.rx_packets == len(parts)
    assert client.peer.rx_bytes == sum(map(len, parts))
    assert path.confirmed
    assert plane.controls == []


def test_ipv6_passes_from_its_own_address(plane: Plane) -> None:
    """Both addresses of the lease are the client's own."""
    client = plane.client(2)
    client.activate()
    packet = tcp(client.address6, ip_address("2001:db8::1").packed, 50).build()
    client.send(client.seal(packet))
    plane.read_udp()
    assert packets(plane.from_tun()) == [packet]


def test_bad_records_inside_a_train_cost_only_themselves(plane: Plane) -> None:
    """Forged, repeated and good ones side by side in what one receive brings."""
    client = plane.client(2)
    client.activate()
    parts, records = train(client, 6)
    forged = bytearray(records[2])
    forged[-1] ^= 1
    data = [records[0], records[1], bytes(forged), records[3], records[1], records[4], records[5]]
    client.send_train(b"".join(data), len(records[0]))
    plane.read_udp()
    assert packets(plane.from_tun()) == [parts[i] for i in (0, 1, 3, 4, 5)]
    assert client.peer.drops.as_dict() == {counters.NOT_AUTHENTIC: 1, counters.REPLAYED: 1}
    assert client.peer.rx_packets == 5


def test_a_probe_inside_a_train_is_no_packet(plane: Plane) -> None:
    """Of the same length as the data around it, so that the kernel merges them."""
    client = plane.client(2)
    client.activate()
    parts, records = train(client, 9)
    client.sealer._next -= 4  # in place of the sixth record
    probe = client.seal(bytes(len(parts[0])), PacketType.DPD_REQUEST)
    client.send_train(b"".join([*records[:5], probe, *records[6:]]), len(probe))
    plane.read_udp()
    assert packets(plane.from_tun()) == parts[:5] + parts[6:]
    (control,) = plane.controls
    assert control.payload == bytes([PacketType.DPD_REQUEST]) + bytes(len(parts[0]))


def test_trains_that_overtook_each_other_arrive(plane: Plane) -> None:
    """An older train comes in behind a newer one, and some of its records once more."""
    client = plane.client(2)
    client.activate()
    parts, records = train(client, 20)
    for some in (records[10:], records[:10], records[4:8]):
        client.send_train(b"".join(some), len(records[0]))
    plane.read_udp()
    assert packets(plane.from_tun()) == parts[10:] + parts[:10]
    assert client.peer.drops.as_dict() == {counters.REPLAYED: 4}
    assert client.peer.rx_packets == 20


def test_a_train_is_judged_packet_by_packet(plane: Plane) -> None:
    """One of many has a stolen source address, one has a length of its own."""
    client = plane.client(2)
    client.activate()
    parts, _ = train(client, 12)
    stolen, liar = bytearray(parts[3]), bytearray(parts[7])
    stolen[15] ^= 1
    liar[3] ^= 1
    parts[3], parts[7] = bytes(stolen), bytes(liar)
    records = [client.seal(part) for part in parts]
    client.send_train(b"".join(records), len(records[0]))
    plane.read_udp()
    assert packets(plane.from_tun()) == [p for n, p in enumerate(parts) if n not in (3, 7)]
    dropped = {counters.INNER_SOURCE: 1, counters.INNER_MALFORMED: 1}
    assert client.peer.drops.as_dict() == dropped
    assert client.peer.rx_packets == 10
    assert client.peer.rx_bytes == 10 * len(parts[0])


def test_a_forged_record_costs_only_itself_in_a_long_train(plane: Plane) -> None:
    """What was opened before it is not opened again, what comes behind is opened at once."""
    client = plane.client(2)
    client.activate()
    parts, records = train(client, 40, 1400)
    for at in (0, 17, 18, 39):
        records[at] = records[at][:-1] + bytes([records[at][-1] ^ 1])
    client.send_train(b"".join(records), len(records[0]))
    plane.read_udp()
    assert packets(plane.from_tun()) == [
        p for n, p in enumerate(parts) if n not in (0, 17, 18, 39)
    ]
    assert client.peer.drops.as_dict() == {counters.NOT_AUTHENTIC: 4}


def test_trains_of_different_sizes_share_a_wakeup(plane: Plane) -> None:
    """Each begins in the buffers where the one before has ended."""
    client = plane.client(2)
    client.activate()
    expected = []
    for count, size in ((9, 1001), (20, 77), (5, 1400), (30, 1001), (1, 3), (6, 1001)):
        parts, records = train(client, count, size)
        client.send_train(b"".join(records), len(records[0]))
        expected += parts
    plane.read_udp()
    assert packets(plane.from_tun()) == expected
    assert client.peer.drops.as_dict() == {}


def test_tiny_records_behind_large_ones_cost_what_they_weigh(plane: Plane) -> None:
    """The places of small records far behind in a buffer are not counted from its start."""
    client = plane.client(2)
    client.activate()
    for size in (1400, 1):
        for _ in range(5):
            records = [client.seal(bytes([n + 1]) * size, n + 1) for n in range(40)]
            client.send_train(b"".join(records), len(records[0]))
    plane.read_udp()
    assert [len(control.payload) - 1 for control in plane.controls] == [1400] * 200 + [1] * 200
    cuts = [*plane.udp.cells._cuts.values(), *plane.inbound._room._cuts.values()]
    assert max(map(len, cuts)) <= 1024


def test_a_whole_train_sent_twice_arrives_once(plane: Plane) -> None:
    """Somebody on the path records and repeats."""
    client = plane.client(2)
    client.activate()
    parts, records = train(client, 10)
    for _ in range(2):
        client.send_train(b"".join(records), len(records[0]))
    plane.read_udp()
    assert packets(plane.from_tun()) == parts
    assert client.peer.drops.as_dict() == {counters.REPLAYED: 10}


def test_another_clients_source_address_is_dropped_counted_and_charged(plane: Plane) -> None:
    """The lease decides, for each packet: this is what keeps clients apart."""
    alice, bob = plane.client(2), plane.client(3)
    alice.activate()
    stolen = tcp(bob.address4, INTERNET4, 10).build()
    stolen6 = tcp(bob.address6, ip_address("2001:db8::1").packed, 10).build()
    own = from_client(alice)
    alice.send(alice.seal(stolen), alice.seal(own), alice.seal(stolen6))
    plane.read_udp()
    plane.inbound.from_tls(alice.peer, [memoryview(stolen), memoryview(own)])
    assert packets(plane.from_tun()) == [own, own]
    assert alice.peer.drops.as_dict() == {counters.INNER_SOURCE: 3}
    assert bob.peer.drops.as_dict() == {}
    assert alice.peer.rx_packets == 2


def test_a_client_without_ipv6_cannot_send_any(plane: Plane) -> None:
    """No address is not any address."""
    client = plane.client(2)
    client.peer.address6 = b""
    packet = tcp(ip_address("fd00::2").packed, ip_address("2001:db8::1").packed, 10).build()
    plane.inbound.from_tls(client.peer, [memoryview(packet)])
    assert plane.from_tun() == []
    assert client.peer.drops.as_dict() == {counters.INNER_SOURCE: 1}


@pytest.mark.parametrize("source", ["fe80::1", "::"])
def test_neighbour_chatter_is_no_accusation(plane: Plane, source: str) -> None:
    """Every IPv6 host says such things on a new interface; status must not cry wolf."""
    client = plane.client(2)
    packet = tcp(ip_address(source).packed, ip_address("ff02::2").packed, 10).build()
    plane.inbound.from_tls(client.peer, [memoryview(packet)])
    assert client.peer.drops.as_dict() == {counters.LINK_LOCAL: 1}


@pytest.mark.parametrize("junk", [b"", b"\x00", b"\x45" + bytes(30), b"hello world" * 5])
def test_what_is_no_ip_packet_never_reaches_the_tun(plane: Plane, junk: bytes) -> None:
    """With a stock server it ends the session; here it is a number."""
    client = plane.client(2)
    client.activate()
    client.send(client.seal(junk))
    plane.read_udp()
    plane.inbound.from_tls(client.peer, [memoryview(junk)])
    assert plane.from_tun() == []
    assert client.peer.drops.as_dict() == {counters.INNER_MALFORMED: 2}


def test_several_clients_in_one_wakeup_do_not_mix(plane: Plane) -> None:
    """Trains alternate; each packet is judged by its own sender's lease."""
    clients = [plane.client(n) for n in (2, 3, 4)]
    expected = []
    for client in clients:
        client.activate()
    for turn in range(3):
        for client in clients:
            packet = from_client(client, 10 + turn)
            expected.append(packet)
            client.send(client.seal(packet))
    plane.read_udp()
    assert sorted(packets(plane.from_tun())) == sorted(expected)
    assert [client.peer.rx_packets for client in clients] == [3, 3, 3]


def test_what_is_not_data_waits_until_the_batch_is_written(plane: Plane) -> None:
    """DPD between packets: order among data stays, the question is handed on whole."""
    client = plane.client(2)
    client.activate()
    first, second = from_client(client, 10), from_client(client, 20)
    probe = b"tag!" + bytes(1300)
    client.send(
        client.seal(first),
        client.seal(probe, PacketType.DPD_REQUEST),
        client.seal(second),
        client.seal(b"", 0)[:13] + b"short",
    )
    plane.read_udp()
    assert packets(plane.from_tun()) == [first, second]
    (control,) = plane.controls
    assert control.authentic
    assert control.payload == bytes([PacketType.DPD_REQUEST]) + probe


def test_several_records_in_one_datagram_are_all_opened(plane: Plane) -> None:
    """RFC 6347 section 4.1.1 allows it."""
    client = plane.client(2)
    client.activate()
    parts, records = train(client, 4)
    client.send(b"".join(records))
    plane.read_udp()
    assert packets(plane.from_tun()) == parts


def test_a_datagram_cut_short_costs_nothing_else(plane: Plane) -> None:
    """Lengths that do not add up are counted, the next datagram counts as usual."""
    client = plane.client(2)
    client.activate()
    packet = from_client(client)
    client.send(b"", b"\x17", client.seal(packet)[:-1], bytes(13), client.seal(packet))
    plane.read_udp()
    assert packets(plane.from_tun()) == [packet]
    assert plane.drops[counters.NOT_AUTHENTIC] == 2


def test_what_openssl_did_not_seal_with_our_keys_is_handed_on_as_a_claim(plane: Plane) -> None:
    """A repeated Finished, a new ClientHello: not authentic, and marked so."""
    client = plane.client(2)
    client.activate()
    hello = HEADER.pack(HANDSHAKE, 0xFEFF, 0, 5) + b"hello"
    client.send(hello)
    plane.read_udp()
    (control,) = plane.controls
    assert (control.kind, control.authentic, control.payload) == (HANDSHAKE, False, hello)
    assert client.peer.drops.as_dict() == {}


def test_forged_records_are_no_sign_of_life_and_confirm_nothing(plane: Plane) -> None:
    """Neither does a replay: an attacker could keep a dead path alive."""
    client = plane.client(2)
    path = client.connect()
    record = bytearray(client.seal(from_client(client)))
    record[-1] ^= 1
    client.send(bytes(record))
    plane.now += 50
    plane.read_udp()
    assert plane.confirmed == []
    assert not path.confirmed
    good = client.seal(from_client(client))
    client.send(good)
    plane.read_udp()
    assert plane.confirmed == [path]
    path.confirmed = client.peer.dtls_active = True
    plane.confirmed.clear()
    client.peer.dtls_active = False
    client.send(good)
    plane.read_udp()
    assert plane.confirmed == []
    assert client.peer.drops[counters.REPLAYED] == 1


def test_an_authentic_record_brings_a_suspended_channel_back(plane: Plane) -> None:
    """UDP passes again: the session code is told."""
    client = plane.client(2)
    path = client.activate()
    client.peer.dtls_active = False
    client.send(client.seal(b"", PacketType.DPD_RESPONSE))
    plane.read_udp()
    assert plane.confirmed == [path]


def test_strangers_are_handed_on_datagram_by_datagram(plane: Plane) -> None:
    """And none of them, empty ones included, disturbs who is known."""
    known, stranger = plane.client(2), plane.client(3)
    known.activate()
    packet = from_client(known)
    stranger.send(b"", b"who is there")
    known.send(known.seal(packet))
    stranger.send_train(b"a" * 100 + b"b" * 50, 100)
    plane.read_udp()
    assert packets(plane.from_tun()) == [packet]
    expected = [b"who is there", b"a" * 100, b"b" * 50]
    assert plane.strays == [(stranger.outer, data) for data in expected]


def test_the_kernels_answer_leaves_without_another_wakeup(plane: Plane) -> None:
    """It waits when the write returns: an echo, or acknowledgements."""
    client = plane.client(2)
    client.activate()
    answer = tcp(INTERNET4, client.address4, 100).build()
    plane.kernel.send(bytes(10) + answer)
    client.send(client.seal(from_client(client)))
    plane.read_udp()
    assert len(plane.from_tun()) == 1
    assert client.received() == [b"\0" + answer]


def test_a_full_tun_is_counted(plane: Plane) -> None:
    """The kernel's queue is the bound, not ours."""
    client = plane.client(2)
    packet = memoryview(from_client(client, 30_000))
    for _ in range(2000):
        plane.inbound.from_tls(client.peer, [packet])
        if client.peer.drops[counters.TUN_FULL]:
            break
    assert client.peer.drops[counters.TUN_FULL] == 1
    assert not plane.tun.gone


def test_a_wakeup_is_bounded(plane: Plane) -> None:
    """Other readers get their turn; what is left is read at the next one."""
    client = plane.client(2)
    client.activate()
    sent = [from_client(client, 10 + n) for n in range(RECEIVES_PER_WAKEUP + 5)]
    for packet in sent:
        client.send(client.seal(packet))
    plane.read_udp()
    assert packets(plane.from_tun()) == sent[:RECEIVES_PER_WAKEUP]
    plane.read_udp()
    assert packets(plane.from_tun()) == sent[RECEIVES_PER_WAKEUP:]


def test_the_room_is_enough_for_the_largest_wakeup(plane: Plane) -> None:
    """Trains of 64 KiB, as many as one wake-up takes."""
    client = plane.client(2)
    client.activate()
    expected = []
    for _ in range(RECEIVES_PER_WAKEUP):
        parts, records = train(client, 44, 1400)
        client.send_train(b"".join(records), len(records[0]))
        expected += parts
    plane.read_udp()
    plane.read_udp()
    assert packets(plane.from_tun()) == expected


def test_a_single_record_is_what_a_batch_of_one_is(plane: Plane) -> None:
    """For probes and answers."""
    client = plane.client(2)
    path = client.activate()
    client.send(seal_one(client.sealer, b"\x04pong"))
    path.udp.send(seal_one(path.sealer, b"\x04pong"), client.outer, [])
    plane.read_udp()
    assert [control.payload for control in plane.controls] == client.received() == [b"\x04pong"]
