"""SetLink with keep_outside: everybody goes into the tunnel, but for the one who carries it."""

import asyncio
import os
import select
import socket
from collections.abc import Iterator

import pytest

from tests.netns.carrier import (
    CARRIER,
    FAR,
    FAR6,
    FULL,
    INNER,
    INNER6,
    LAN,
    LAN6,
    ONLY4,
    OTHER,
    PORT,
    ROOT,
    RP,
    WAIT_S,
    Tunnel,
    carrier_host,
    connect,
    socket_of,
    tunnel,
    undone,
)
from tests.netns.helper_host import HelperHost
from tests.netns.namespace import inside
from tests.netns.snapshot import snapshot

pytestmark = pytest.mark.netns


@pytest.fixture
def host() -> Iterator[HelperHost]:
    with carrier_host() as host:
        yield host


def test_everybody_goes_inside_but_the_carrier(host: HelperHost) -> None:
    """Its own packets would go round in circles; no route to the gateway is needed for that."""

    async def scenario() -> None:
        async with tunnel(host, FULL) as up:
            for address in (FAR, FAR6):
                assert up.way(OTHER, address) == "tunnel"
                assert up.way(ROOT, address) == "tunnel"
                assert up.way(CARRIER, address) == "inet"

    asyncio.run(scenario())


def test_networks_on_the_hosts_links_are_inside_unless_excluded(host: HelperHost) -> None:
    """A network that the host joins may call any address its own (CVE-2023-36672)."""

    async def scenario() -> None:
        async with tunnel(host, FULL) as up:
            for address in (LAN, LAN6):
                assert up.way(OTHER, address) == "tunnel"
            exclude = ["198.51.100.0/24", "2001:db8:2::/64", "203.0.113.8/29"]
            await up.client.set_link(**FULL, exclude=exclude)
            for address in (LAN, LAN6):
                assert up.way(OTHER, address) == "lan"
            assert up.way(OTHER, FAR) == "inet"
            assert up.way(OTHER, FAR6) == "tunnel"
            await up.client.set_link(**FULL)
            for address in (LAN, LAN6, FAR):
                assert up.way(OTHER, address) == "tunnel"

    asyncio.run(scenario())


def test_routes_that_a_network_hands_out_do_not_lead_outside(host: HelperHost) -> None:
    """DHCP option 121 makes routes that are more special than the tunnel's (CVE-2024-3661)."""
    routes = ("0.0.0.0/1", "128.0.0.0/1", f"{FAR}/32")

    async def scenario() -> None:
        async with tunnel(host, FULL) as up:
            host.host.ip(*(f"route add {route} via {LAN}" for route in routes))
            assert up.way(OTHER, FAR) == "tunnel"
            assert up.way(ROOT, "192.0.2.2") == "tunnel"
            host.host.ip(*(f"route delete {route}" for route in routes))

    asyncio.run(scenario())


def test_ipv6_goes_nowhere_when_only_ipv4_is_inside(host: HelperHost) -> None:
    """A server without IPv6 must not mean that IPv6 passes by the tunnel."""

    async def scenario() -> None:
        async with tunnel(host, ONLY4) as up:
            for address in (FAR6, LAN6):
                assert up.way(OTHER, address) == "nowhere"
            assert up.way(OTHER, FAR) == "tunnel"
            assert up.way(CARRIER, FAR6) == "inet"
            await up.client.set_link(**ONLY4, exclude=["2001:db8:2::/64"])
            assert up.way(OTHER, LAN6) == "lan"
            assert up.way(OTHER, FAR6) == "nowhere"
            await up.client.set_link(**{**ONLY4, "block_ipv6": False})
            assert up.way(OTHER, FAR6) == "inet"

    asyncio.run(scenario())


@pytest.mark.parametrize("strict", ["all", "eth0"])
def test_answers_come_in_where_rp_filter_is_strict(host: HelperHost, strict: str) -> None:
    """Strict reverse path filtering takes the tunnel for the way back to everybody."""

    def connects() -> bool:
        with inside(host.inet, lambda: socket.create_server((FAR, PORT))) as server:
            carrier = socket_of(host, CARRIER, socket.AF_INET, socket.SOCK_STREAM)
            with carrier:
                carrier.settimeout(1.5)  # the SYN is sent again after one second
                try:
                    carrier.connect((FAR, PORT))
                except TimeoutError:
                    return False
                server.accept()[0].close()
                return True

    async def scenario() -> None:
        before = snapshot(host.host)["sysctls"]
        host.host.sysctl(RP.format(strict), "1")
        async with tunnel(host, FULL) as up:
            assert connects()
            during = snapshot(host.host)["sysctls"]
            await up.client.set_link(**FULL)
            assert snapshot(host.host)["sysctls"] == during
            host.host.sysctl(RP.format("eth0"), "1")
            assert not connects()  # so it was the filter
            host.host.sysctl(RP.format("eth0"), "2")
        await undone(host)
        host.host.sysctl(RP.format(strict), "0")
        assert snapshot(host.host)["sysctls"] == before

    asyncio.run(scenario())


def test_what_the_host_forwards_goes_inside_too(host: HelperHost) -> None:
    """A forwarded packet has no user: containers and guests must not leak what the host hides."""

    async def scenario() -> None:
        for family in ("ipv4", "ipv6"):
            host.host.sysctl(f"net/{family}/conf/all/forwarding", "1")
        async with tunnel(host, ONLY4) as up:
            up.drain()
            with inside(
                host.lan, lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            ) as lan:
                for address in (FAR6, f"::ffff:{FAR}"):
                    lan.sendto(b"forwarded", (address, PORT))
            assert select.select(up.fds, [], [], WAIT_S)[0]
            assert b"forwarded" in os.read(up.fds[0], 65536)
            assert not select.select(list(up.receivers), [], [], 0)[0]  # IPv6 was sent before
        await undone(host)
        for family in ("ipv4", "ipv6"):
            host.host.sysctl(f"net/{family}/conf/all/forwarding", "0")

    asyncio.run(scenario())


def test_the_inner_network_binds_everybody_but_the_carrier(host: HelperHost) -> None:
    """A server that claims the gateway's own network must not catch the tunnel's packets."""

    async def scenario() -> None:
        claimed = FULL | {
            "addresses": ["192.0.2.77/24", f"{INNER6}/64"]
        }  # eth0 is in 192.0.2.0/24
        async with tunnel(host, claimed) as up:
            assert up.way(CARRIER, "192.0.2.2") == "inet"
            assert up.way(OTHER, "192.0.2.2") == "tunnel"
            assert up.way(OTHER, "192.0.2.78") == "tunnel"

    asyncio.run(scenario())


def test_nobody_outside_can_speak_to_the_inner_address(host: HelperHost) -> None:
    """Hosts on the link could find out about connections inside (CVE-2019-14899)."""

    async def scenario() -> None:
        host.lan.ip(f"route add {INNER} via 198.51.100.1", f"route add {INNER6} via 2001:db8:2::1")
        async with tunnel(host, FULL) as up:
            for address in (INNER, INNER6):
                up.drain()
                host.lan.run("ping", "-c1", "-W1", address, check=False)
                assert not select.select(up.fds, [], [], 0)[0]
            host.host.run("nft", "delete", "table", "inet", "pyvpn10")
            host.lan.run("ping", "-c1", "-W1", INNER, check=False)
            assert select.select(up.fds, [], [], WAIT_S)[0]  # the answer: so it was the rules

    asyncio.run(scenario())


def test_a_new_address_leaves_no_moment_without_routes(host: HelperHost) -> None:
    """With its last address a link loses its routes; what holds then is not the host's own."""

    async def scenario() -> None:
        async with tunnel(host, FULL) as up:
            await up.client.set_link(**FULL | {"addresses": ["10.8.0.3/24", f"{INNER6}/64"]})
            for address in (FAR, FAR6):
                assert up.way(OTHER, address) == "tunnel"
            host.host.ip("link set pyvpn10 down")  # takes the routes, not what is below them
            for address in (FAR, FAR6):
                assert up.way(OTHER, address) == "nowhere"
                assert up.way(CARRIER, address) == "inet"

    asyncio.run(scenario())


def test_link_local_and_multicast_still_work_for_everybody(host: HelperHost) -> None:
    """Neighbours are found, and DHCP speaks, on the link: neither leaves it."""

    async def scenario() -> None:
        async with tunnel(host, ONLY4):
            found = host.lan.run("ip", "-6", "-json", "address", "show", "dev", "eth1").stdout
            local = found[found.index("fe80::") :].partition('"')[0]
            host.host.run("ping", "-c1", "-W5", f"{local}%eth1")
            host.host.run("ping", "-c1", "-W5", "-I", "eth1", "ff02::1")
            host.host.run("ip", "neigh", "flush", "dev", "eth0")
            host.host.run("ping", "-c1", "-W5", "-I", "eth0", "192.0.2.2")

    asyncio.run(scenario())


def test_a_split_tunnel_takes_only_its_prefixes(host: HelperHost) -> None:
    """With root as the caller too: the user that asked is the one kept outside."""

    async def scenario() -> None:
        client = await connect(host, ROOT, "pyvpn5")
        up = Tunnel(host, client, await client.open_tun(queues=1, tx_queue_len=500))
        await client.set_link(
            mtu=1400,
            addresses=["10.8.0.2/32"],
            routes=["10.9.0.0/16"],
            exclude=["10.9.7.0/24"],
            forwarding=False,
            keep_outside=True,
        )
        host.inet.ip("address add 10.9.1.1/32 dev lo", "address add 10.9.7.1/32 dev lo")
        assert up.way(OTHER, "10.9.1.1") == "tunnel"
        assert up.way(ROOT, "10.9.1.1") == "inet"
        assert up.way(OTHER, "10.9.7.1") == "inet"
        assert up.way(OTHER, FAR) == "inet"
        up.close()
        client.close()
        (await connect(host, ROOT, "pyvpn5")).close()

    asyncio.run(scenario())
