"""What the helper's settings do to packets, asked of a real kernel."""

import asyncio
import itertools
import os
import select
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6MLReport2, IPv6
from scapy.packet import Packet

from tests.netns.helper_host import HelperHost
from tests.netns.process import BedError
from tests.netns.snapshot import snapshot
from vpnd.host.helper_client import HelperClient

pytestmark = pytest.mark.netns
numbers = itertools.count(100)
VNET_HEADER = bytes(10)  # virtio_net_hdr without offload
CLIENT, CLIENT6 = "10.8.0.2", "fd00:1::2"
INET, INET6, LAN = "192.0.2.2", "2001:db8:1::2", "198.51.100.2"


@pytest.fixture
def host() -> Iterator[HelperHost]:
    host = HelperHost(next(numbers))
    try:
        host.build()
        yield host
    finally:
        host.close()


def parsed(frame: bytes) -> Packet:
    data = frame[len(VNET_HEADER) :]
    return IP(data) if data[0] >> 4 == 4 else IPv6(data)


class Tunnel:
    """Plays vpnd and its clients at the TUN's queues."""

    def __init__(self, client: HelperClient, fds: list[int]) -> None:
        self.client = client
        self.fds = fds

    def send(self, packet: Packet) -> None:
        """Let a client's packet come out of the tunnel."""
        os.write(self.fds[0], VNET_HEADER + bytes(packet))

    def receive(self, kind: type[Packet], timeout_s: float = 5.0) -> Packet:
        """Return the next packet for a client; it must carry `kind`."""
        while True:
            ready, _, _ = select.select(self.fds, [], [], timeout_s)
            assert ready, "nothing came into the tunnel"
            packet = parsed(os.read(ready[0], 65536))
            if ICMPv6MLReport2 not in packet:  # the kernel's own, when it becomes a router
                assert kind in packet, packet.summary()
                return packet

    def is_silent(self) -> bool:
        """Return whether nothing waits: ask after a packet that came later was received."""
        while ready := select.select(self.fds, [], [], 0)[0]:
            if ICMPv6MLReport2 not in parsed(os.read(ready[0], 65536)):
                return False
        return True

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.client.close()


async def tunnel(host: HelperHost) -> Tunnel:
    client = await host.connect()
    return Tunnel(client, await host.set_up(client))


def echo(number: int) -> Packet:
    return IP(src=CLIENT, dst=INET) / ICMP(id=7, seq=number)


@pytest.mark.parametrize("force", ["force_forwarding", "none"])
def test_clients_reach_the_internet_by_the_hosts_address(host: HelperHost, force: str) -> None:
    """Forwarding and masquerading work for both families, on kernels new and old."""

    async def scenario() -> None:
        up = await tunnel(host)
        for address in (CLIENT, CLIENT6):  # the far side knows no way to our inner networks
            host.inet.ip(f"route add unreachable {address}")
        up.send(echo(1))
        assert up.receive(ICMP)[IP].dst == CLIENT
        up.send(IPv6(src=CLIENT6, dst=INET6) / ICMPv6EchoRequest(id=7, seq=1))
        assert up.receive(ICMPv6EchoReply)[IPv6].dst == CLIENT6
        up.close()

    host.start(force=force)
    asyncio.run(scenario())


def test_nobody_outside_opens_a_connection_into_the_tunnel(host: HelperHost) -> None:
    """Clients behind NAT are not servers; answers still come."""

    async def scenario() -> None:
        up = await tunnel(host)
        with pytest.raises(BedError):
            host.inet.run("ping", "-c1", "-W1", CLIENT)
        up.send(echo(2))
        assert up.receive(ICMP)[ICMP].seq == 2
        assert up.is_silent()
        up.close()

    host.start()
    asyncio.run(scenario())


def test_clients_see_each_other_only_when_they_may(host: HelperHost) -> None:
    """client_to_client is off unless asked for."""

    async def scenario() -> None:
        up = await tunnel(host)
        across = IP(src=CLIENT, dst="10.8.0.3") / UDP(sport=1, dport=2)
        up.send(across)
        up.send(echo(3))
        assert up.receive(ICMP)[ICMP].seq == 3
        assert up.is_silent()
        await up.client.set_firewall(
            networks=["10.8.0.0/24"], masquerade=True, clamp_mss=True, client_to_client=True
        )
        up.send(across)
        assert up.receive(UDP)[IP].dst == "10.8.0.3"
        up.close()

    host.start()
    asyncio.run(scenario())


def test_an_inner_source_from_outside_is_dropped(host: HelperHost) -> None:
    """A stranger on the wire cannot pass for a client towards the host's own services."""

    async def scenario() -> None:
        up = await tunnel(host)
        host.inet.ip(f"address add {CLIENT}/32 dev lo")
        with pytest.raises(BedError):  # an answer would leave through the tunnel
            host.inet.run("ping", "-c1", "-W1", "-I", CLIENT, "192.0.2.1")
        up.send(echo(4))
        up.receive(ICMP)
        assert up.is_silent()
        up.close()

    host.start()
    asyncio.run(scenario())


@pytest.mark.parametrize("force", ["force_forwarding", "none"])
def test_the_host_does_not_become_an_open_router(host: HelperHost, force: str) -> None:
    """Forwarding on its links is for the tunnel: LAN to Internet stays as closed as it was."""

    async def scenario() -> None:
        up = await tunnel(host)
        for address in (INET, INET6):
            with pytest.raises(BedError):
                host.lan.run("ping", "-c1", "-W1", address)
        host.host.run("nft", "delete", "table", "inet", "pyvpn0")
        host.lan.ping(INET, count=1)  # so it was the rules that held it
        host.lan.ping(INET6, count=1)
        up.close()

    host.start(force=force)
    asyncio.run(scenario())


def test_the_guard_stands_before_forwarding_is_on_even_without_a_firewall(
    host: HelperHost,
) -> None:
    """A caller that forgets SetFirewall must not open the host."""

    async def scenario() -> None:
        client = await host.connect()
        up = Tunnel(client, await client.open_tun(queues=1, tx_queue_len=100))
        await client.set_link(mtu=1400, addresses=["10.8.0.1/24"], forwarding=True)
        assert snapshot(host.host)["sysctls"]["ipv4/conf/eth1/forwarding"] == "1"
        with pytest.raises(BedError):
            host.lan.run("ping", "-c1", "-W1", INET)
        up.close()

    host.start()
    asyncio.run(scenario())


def test_tcp_through_the_tunnel_is_clamped_both_ways(host: HelperHost) -> None:
    """Segments that do not fit the tunnel are never sent, also where ICMP is filtered."""

    async def scenario() -> None:
        up = await tunnel(host)
        host.inet.nft(
            "table inet look { chain input { type filter hook input priority 0;\n"
            "tcp flags syn tcp option maxseg size 1360 counter\n"
            "tcp flags syn tcp option maxseg size > 1360 drop\n}\n}\n"
        )
        server = host.inet.start("web", "/usr/bin/python3", "-m", "http.server", "8000")
        server.wait_for("Serving")
        up.send(IP(src=CLIENT, dst=INET) / TCP(dport=8000, flags="S", options=[("MSS", 1460)]))
        answer = up.receive(TCP)
        assert answer[TCP].flags == "SA"
        assert ("MSS", 1360) in answer[TCP].options  # 1400 less the headers
        up.close()

    host.start()
    asyncio.run(scenario())


def test_forwarding_that_was_on_stays_as_it_is(host: HelperHost) -> None:
    """Where the host is a router already there is nothing to switch, guard or undo."""

    async def scenario() -> None:
        for key in ("ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"):
            host.host.sysctl(f"net/{key}", "1")
        before = snapshot(host.host)["sysctls"]
        up = await tunnel(host)
        host.lan.ping(INET, count=1)
        during = snapshot(host.host)["sysctls"]
        assert {k: during[k] for k in before} == before
        up.send(echo(5))
        up.receive(ICMP)
        up.close()
        (await host.connect()).close()
        assert snapshot(host.host)["sysctls"] == before

    host.start()
    asyncio.run(scenario())


ADVERTISE = """
import socket, sys
raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
head = bytes([134, 0, 0, 0, int(sys.argv[1]), 0]) + (1800).to_bytes(2, "big")
raw.sendto(head + bytes(8), ("ff02::1", 0))
"""


def test_an_uplink_that_lives_by_router_advertisements_keeps_its_default_route(
    host: HelperHost,
) -> None:
    """On kernels with one switch for all links, forwarding makes a host deaf to them."""

    async def default_route(hop_limit: int) -> str:
        """Advertise; return the route once the host has taken its hop limit over."""
        host.inet.run("/usr/bin/python3", "-c", ADVERTISE, str(hop_limit))
        for _ in range(50):
            route = host.host.run("ip", "-6", "route", "show", "default").stdout
            if f"hoplimit {hop_limit}" in route:
                return route
            await asyncio.sleep(0.05)  # no event tells that a route has been learned
        return "none"

    async def scenario() -> None:
        assert "proto ra" in await default_route(33)
        before = snapshot(host.host)
        up = await tunnel(host)
        during = snapshot(host.host)["sysctls"]
        assert during["ipv6/conf/all/forwarding"] == "1"
        assert during["ipv6/conf/eth0/accept_ra"] == "2"
        assert "proto ra" in await default_route(34)
        await up.client.undo()
        assert "proto ra" in await default_route(33)
        assert snapshot(host.host)["sysctls"] == before["sysctls"]
        assert snapshot(host.host)["routes6"] == before["routes6"]
        up.close()

    host.start(force="none")
    asyncio.run(scenario())
