"""TUN -> network: the right peer, the right channel, and drops that have a name."""

from ipaddress import ip_address

import pytest

from tests.dataplane.narrow_link import NarrowLink
from tests.dataplane.wiring import INTERNET4, PLAIN, SERVER4, Client, Plane, tcp
from vpnd.dataplane import counters
from vpnd.dataplane.outbound import READS_PER_WAKEUP, TLS_BACKLOG
from vpnd.dataplane.udp_socket import UdpSocket
from vpnd.wire import cstp
from vpnd.wire.dtls_record import MAX_RECORDS


def to(client: Client, size: int = 100) -> bytes:
    """Return a frame with one packet for the client."""
    return PLAIN + tcp(INTERNET4, client.address4, size).build()


def unpack(packets: list[bytes]) -> list[tuple[int, bytes]]:
    reader = cstp.CstpReader()
    return [(kind, bytes(p)) for data in packets for kind, p in reader.receive(data)]


def test_a_superpacket_leaves_as_records_of_its_segments(plane: Plane) -> None:
    """In order, each with the type of a data packet in front, and all are counted."""
    client = plane.client(2)
    client.activate()
    packet = tcp(INTERNET4, client.address4, 30_000)
    plane.to_tun(packet.frame(1348))
    segments = packet.segments(1348)
    assert client.received() == [b"\0" + segment for segment in segments]
    assert client.peer.tx_packets == len(segments)
    assert client.peer.tx_bytes == sum(map(len, segments))
    assert client.stream.packets == []


def test_ipv6_finds_its_peer_too(plane: Plane) -> None:
    """Both addresses of a lease lead to one peer."""
    client = plane.client(2)
    client.activate()
    packet = tcp(ip_address("2001:db8::1").packed, client.address6, 5000)
    plane.to_tun(packet.frame(1300))
    assert client.received() == [b"\0" + segment for segment in packet.segments(1300)]


def test_without_dtls_each_packet_is_one_cstp_packet(plane: Plane) -> None:
    """And one TLS record: the stream gets a slot for each."""
    client = plane.client(2)
    packet = tcp(INTERNET4, client.address4, 10_000)
    plane.to_tun(packet.frame(1348))
    assert unpack(client.stream.packets) == [(0, s) for s in packet.segments(1348)]
    assert len(client.stream.packets) == len(packet.segments(1348))
    assert client.peer.tx_packets == len(client.stream.packets)


def test_the_two_channels_share_the_slots_without_a_trace(plane: Plane) -> None:
    """A CSTP header left in the buffer would be the type byte of a DTLS record."""
    client = plane.client(2)
    path = client.activate()
    for active in (False, True, False, True):
        client.peer.dtls_active = active
        packet = tcp(INTERNET4, client.address4, 9_000)
        plane.to_tun(packet.frame(1000))
        if active:
            assert client.received() == [b"\0" + s for s in packet.segments(1000)]
    assert path.confirmed


def test_a_packet_for_nobody_is_counted(plane: Plane) -> None:
    """The kernel routes the whole network into the tunnel, whoever is connected."""
    plane.client(2)
    plane.to_tun(PLAIN + tcp(INTERNET4, ip_address("10.8.0.77").packed, 10).build())
    plane.to_tun(PLAIN + tcp(INTERNET4, ip_address("224.0.0.251").packed, 10).build())
    plane.to_tun(PLAIN + tcp(bytes(16), ip_address("ff02::fb").packed, 10).build())
    assert plane.drops.as_dict() == {counters.NO_PEER: 1, counters.MULTICAST: 2}


def test_a_peer_that_left_gets_nothing(plane: Plane) -> None:
    """Nor does the one that comes after it lose its address with it."""
    client = plane.client(2)
    client.activate()
    plane.peers.remove(client.peer)
    plane.to_tun(to(client))
    assert plane.drops[counters.NO_PEER] == 1
    successor, late = plane.client(3), plane.client(3)
    plane.peers.remove(successor.peer)
    plane.to_tun(to(late))
    assert len(late.stream.packets) == 1


@pytest.mark.parametrize(
    "frame",
    [b"", b"\0", PLAIN, PLAIN + b"\x45" + bytes(18), PLAIN + b"\x00" * 40, b"\xff" * 60],
)
def test_what_the_tun_should_never_give_is_counted(plane: Plane, frame: bytes) -> None:
    """A bug elsewhere must not end the worker."""
    plane.outbound.forward(memoryview(frame), plane.now)
    assert plane.drops.as_dict() == {counters.TUN_MALFORMED: 1}


def test_a_gso_frame_that_contradicts_itself_is_counted_for_its_peer(plane: Plane) -> None:
    """The header says IPv6, the packet is IPv4."""
    client = plane.client(2)
    frame = bytearray(tcp(INTERNET4, client.address4, 5000).frame(1000))
    frame[1] = 4
    plane.to_tun(bytes(frame))
    assert client.peer.drops.as_dict() == {counters.TUN_MALFORMED: 1}


def test_a_slow_tls_client_loses_packets_before_they_are_sealed(plane: Plane) -> None:
    """256 KiB may wait; more would only be delay, and memory of ours."""
    client = plane.client(2)
    assert TLS_BACKLOG == 256 * 1024
    packet = tcp(INTERNET4, client.address4, 10_000)
    client.stream.waiting = TLS_BACKLOG + 1
    plane.to_tun(packet.frame(1000))
    assert client.stream.packets == []
    assert client.peer.drops.as_dict() == {counters.TLS_BACKLOG: 10}
    assert client.peer.tx_packets == 0
    client.stream.waiting = TLS_BACKLOG
    plane.to_tun(packet.frame(1000))
    assert len(client.stream.packets) == 10


def test_a_packet_too_big_for_the_path_goes_over_tls(plane: Plane) -> None:
    """The TUN has one MTU, the clients' paths have many."""
    client = plane.client(2, mtu=1000)
    client.activate()
    fits, too_big = tcp(INTERNET4, client.address4, 960), tcp(INTERNET4, client.address4, 961)
    plane.to_tun(PLAIN + fits.build(), PLAIN + too_big.build())
    assert client.received() == [b"\0" + fits.build()]
    assert unpack(client.stream.packets) == [(0, too_big.build())]
    assert client.peer.dtls_active
    assert client.peer.tx_packets == 2


def test_a_datagram_the_kernel_finds_too_big_goes_over_tls(plane: Plane) -> None:
    """The first link may be narrower than the client knew."""
    client = plane.client(2)
    path = client.activate()
    path.udp = UdpSocket(NarrowLink())  # type: ignore[arg-type]
    packet = tcp(INTERNET4, client.address4, 10_000)
    plane.to_tun(packet.frame(1300))
    assert unpack(client.stream.packets) == [(0, s) for s in packet.segments(1300)]
    assert client.peer.dtls_active
    assert path.udp.gso
    assert client.peer.drops.as_dict() == {}


def test_a_packet_that_fits_no_channel_is_counted(plane: Plane) -> None:
    """Somebody has raised the MTU of the interface by hand beyond what a TLS record holds."""
    client = plane.client(2)
    client.activate()
    packet = tcp(INTERNET4, client.address4, 20_000)
    plane.to_tun(PLAIN + packet.build())
    assert client.peer.drops.as_dict() == {counters.TUN_MALFORMED: 1}
    assert client.stream.packets == []


def test_an_error_of_the_kernel_moves_traffic_to_tls(plane: Plane) -> None:
    """A local firewall: not even the packet that finds out is lost."""
    client = plane.client(2)
    path = client.activate()
    path.address = ("255.255.255.255", 9)  # refused without SO_BROADCAST
    plane.to_tun(to(client))
    assert not client.peer.dtls_active
    plane.to_tun(to(client))
    assert len(client.stream.packets) == 2
    assert client.peer.drops.as_dict() == {}


def trains(client: Client) -> list[list[int]]:
    """Return the sizes of the datagrams of each train that the client got."""
    found = []
    while (train := client.udp.receive()) is not None:
        size, data = train.size, len(train.data)
        found.append([min(size, data - at) for at in range(0, data, size)])
    return found


def test_superpackets_of_a_wakeup_fill_trains(plane: Plane) -> None:
    """A train holds fewer records than a superpacket: none leaves half empty for that."""
    client = plane.client(2)
    path = client.activate()
    overhead = path.sealer.suite.overhead + 1
    packet = tcp(INTERNET4, client.address4, 48 * 1348)
    plane.to_tun(packet.frame(1348))
    record = len(packet.segments(1348)[0]) + overhead
    assert trains(client) == [[record] * 45, [record] * 3]
    plane.to_tun(*[packet.frame(1348)] * 3)
    assert trains(client) == [[record] * 45, [record] * 45, [record] * 45, [record] * 9]
    assert client.peer.tx_packets == 48 * 4


def test_acknowledgements_of_a_wakeup_leave_together(plane: Plane) -> None:
    """One sendmsg for all of them."""
    client = plane.client(2)
    client.activate()
    plane.to_tun(*[to(client, 0)] * 5)
    assert [len(train) for train in trains(client)] == [5]


def test_what_is_gathered_keeps_its_order_and_its_peer(plane: Plane) -> None:
    """Sizes and peers change in mid-wake-up."""
    clients = [plane.client(2), plane.client(3)]
    for client in clients:
        client.activate()
        plane.to_tun(to(client, 900))
        client.received()
    sizes = (10, 10, 900, 901, 901, 10)
    plane.to_tun(*[to(clients[n % 2], size) for n, size in enumerate(sizes)])
    for n, client in enumerate(clients):
        expected = [b"\0" + to(client, size)[len(PLAIN) :] for size in sizes[n::2]]
        assert client.received() == expected


def test_a_shorter_last_segment_ends_its_train(plane: Plane) -> None:
    """Nothing may follow it there: the receiver cuts at equal lengths."""
    client = plane.client(2)
    client.activate()
    packet = tcp(INTERNET4, client.address4, 10_500)
    plane.to_tun(packet.frame(1000), packet.frame(1000), packet.frame(1000))
    expected = [b"\0" + segment for segment in packet.segments(1000)] * 3
    assert client.received() == expected
    assert client.peer.tx_bytes == sum(len(payload) - 1 for payload in expected)


def test_gathered_packets_that_the_kernel_refuses_go_over_tls(plane: Plane) -> None:
    """A firewall came up in mid-transfer: nothing of what waited is lost."""
    client = plane.client(2)
    path = client.activate()
    plane.to_tun(to(client))
    path.address = ("255.255.255.255", 9)  # refused without SO_BROADCAST
    packet = tcp(INTERNET4, client.address4, 5400)
    plane.to_tun(packet.frame(1000), packet.frame(1000), to(client))
    expected = [*packet.segments(1000) * 2, to(client)[len(PLAIN) :]]
    assert [data for _, data in unpack(client.stream.packets)] == expected
    assert client.peer.drops.as_dict() == {}
    assert not client.peer.dtls_active
    assert client.peer.tx_packets == 1 + len(expected)


def test_keys_used_up_amid_a_wakeup_lose_nothing_sealed_before(plane: Plane) -> None:
    """The records that had a number leave."""
    client = plane.client(2)
    path = client.activate()
    plane.to_tun(to(client, 900))
    packet = tcp(INTERNET4, client.address4, 5400)
    path.sealer._next = path.sealer._stop - 14
    plane.to_tun(*[packet.frame(900)] * 3)
    assert len(client.received()) == 1 + 12
    assert client.peer.drops.as_dict() == {counters.KEYS_USED_UP: 6}
    assert path.sealer.records_left == 2


def test_used_up_keys_move_traffic_to_tls(plane: Plane) -> None:
    """A record number is never used twice, whatever it costs."""
    client = plane.client(2)
    path = client.activate()
    path.sealer._next = path.sealer._stop - 1
    assert path.sealer.records_left == 1 < MAX_RECORDS
    plane.to_tun(to(client), to(client))
    assert len(client.received()) == 1
    assert client.peer.drops.as_dict() == {counters.KEYS_USED_UP: 1}
    plane.to_tun(to(client))
    assert len(client.stream.packets) == 1


def test_a_wakeup_is_bounded(plane: Plane) -> None:
    """One flow may not keep the loop from the others."""
    client = plane.client(2)
    plane.to_tun(*[to(client)] * (READS_PER_WAKEUP + 3))
    assert len(client.stream.packets) == READS_PER_WAKEUP
    plane.outbound.on_readable()
    assert len(client.stream.packets) == READS_PER_WAKEUP + 3


def test_only_what_we_send_on_dtls_starts_the_wait_for_an_answer(plane: Plane) -> None:
    """Liveness: no packet, no question."""
    client = plane.client(2)
    client.activate()
    assert client.peer.liveness.expire(plane.now + 10, dtls_active=True) == []
    plane.to_tun(to(client))
    assert client.peer.liveness.expire(plane.now + 10, dtls_active=True)


def test_the_servers_own_address_is_no_peer(plane: Plane) -> None:
    """Nobody can be given it; a packet for it that comes out of the TUN is dropped."""
    plane.to_tun(PLAIN + tcp(INTERNET4, SERVER4, 10).build())
    assert plane.drops[counters.NO_PEER] == 1
