"""SetLink with keep_outside: everybody goes into the tunnel, but for the one who carries it.

Every claim is tried with real sockets of real users: the socket's user decides, not its address.
"""

import asyncio
import contextlib
import ctypes
import errno
import itertools
import os
import pwd
import select
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.netns.helper_host import HelperHost
from tests.netns.namespace import Namespace, inside
from tests.netns.snapshot import differences, snapshot
from vpnd.errors import HelperError
from vpnd.host.helper_client import HelperClient

pytestmark = pytest.mark.netns
numbers = itertools.count(300)
CARRIER, OTHER, ROOT = pwd.getpwnam("games").pw_uid, pwd.getpwnam("mail").pw_uid, 0
FAR, FAR6 = "203.0.113.9", "2001:db8:9::9"  # behind the default route
LAN, LAN6 = "198.51.100.2", "2001:db8:2::2"  # on a link of the host
INNER, INNER6 = "10.8.0.2", "fd00:1::2"
PORT = 9999
WAIT_S = 5.0
FULL: dict[str, Any] = {
    "mtu": 1400,
    "addresses": [f"{INNER}/24", f"{INNER6}/64"],
    "routes": ["0.0.0.0/0", "::/0"],
    "forwarding": False,
    "keep_outside": True,
    "block_ipv6": True,
}
ONLY4 = FULL | {"addresses": [f"{INNER}/24"], "routes": ["0.0.0.0/0"]}


@pytest.fixture
def host() -> Iterator[HelperHost]:
    """A host with default routes, and both far sides with receivers."""
    host = HelperHost(next(numbers))
    try:
        host.build()
        host.inet.ip(f"address add {FAR}/32 dev lo", f"address add {FAR6}/128 dev lo")
        host.host.ip("route add default via 192.0.2.2", "route add default via 2001:db8:1::2")
        before = snapshot(host.host)
        host.start()
        yield host
        asyncio.run(undone(host))
        host.helper.stop()
        assert differences(before, snapshot(host.host)) == []
        assert host.journals() == []
    finally:
        host.close()


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def socket_of(host: HelperHost, uid: int, family: int, kind: int) -> socket.socket:
    """Return a socket that belongs to `uid` in the host's namespace."""

    def make() -> socket.socket:
        ctypes.CDLL(None).setfsuid(uid)  # of this thread alone, which ends at once
        return socket.socket(family, kind)

    return inside(host.host, make)


async def connect(host: HelperHost, uid: int = CARRIER, name: str = "pyvpn10") -> HelperClient:
    """Say Hello as `uid`: SO_PEERCRED keeps who connected."""
    os.seteuid(uid)
    try:
        pending = asyncio.ensure_future(host.connect(name))
        return await pending
    finally:
        os.seteuid(0)


async def undone(host: HelperHost) -> None:
    """Return when the end of the connection before was dealt with."""
    (await connect(host)).close()


def receiver(namespace: Namespace) -> socket.socket:
    """Return a socket there that gets datagrams of both families."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("", PORT))
        return sock

    return inside(namespace, make)


class Tunnel:
    """The carrier's helper connection, its TUN, and receivers at the ends of the other links."""

    def __init__(self, host: HelperHost, client: HelperClient, fds: list[int]) -> None:
        self.host = host
        self.client = client
        self.fds = fds
        self.receivers = {receiver(host.inet): "inet", receiver(host.lan): "lan"}

    def way(self, uid: int, address: str) -> str:
        """Return where a datagram of `uid` to `address` arrives: tunnel, inet, lan or nowhere."""
        self.drain()
        with socket_of(self.host, uid, family_of(address), socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(b"which way?", (address, PORT))
            except OSError as exc:
                if exc.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                    raise
                return "nowhere"
        wanted = socket.inet_pton(family_of(address), address)
        while ready := select.select([*self.fds, *self.receivers], [], [], WAIT_S)[0]:
            for each in ready:
                if isinstance(each, socket.socket):
                    assert each.recv(100) == b"which way?"
                    return self.receivers[each]
                if wanted in os.read(each, 65536):
                    return "tunnel"
        return "lost"

    def drain(self) -> None:
        """Forget what arrived before."""
        while ready := select.select([*self.fds, *self.receivers], [], [], 0)[0]:
            for each in ready:
                each.recv(100) if isinstance(each, socket.socket) else os.read(each, 65536)

    def lose_tun(self) -> None:
        """Go on without the interface, which the helper has taken away."""
        while self.fds:
            os.close(self.fds.pop())

    def close(self) -> None:
        for sock in self.receivers:
            sock.close()
        self.lose_tun()


@contextlib.asynccontextmanager
async def tunnel(host: HelperHost, wanted: dict[str, Any]) -> AsyncIterator[Tunnel]:
    client = await connect(host)
    try:
        up = Tunnel(host, client, await client.open_tun(queues=1, tx_queue_len=500))
        try:
            await client.set_link(**wanted)
            yield up
        finally:
            up.close()
    finally:
        client.close()


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


RP = "net/ipv4/conf/{}/rp_filter"


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


def test_rp_filter_stays_loose_until_the_last_tunnel_is_gone(host: HelperHost) -> None:
    """The second tunnel finds it loosened already; the first to go must not make it strict."""

    async def scenario() -> None:
        host.host.sysctl(RP.format("eth0"), "1")
        first, second = await connect(host), await connect(host, name="pyvpn11")
        fds = [
            *await first.open_tun(queues=1, tx_queue_len=500),
            *await second.open_tun(queues=1, tx_queue_len=500),
        ]
        await first.set_link(**FULL)
        await second.set_link(**FULL | {"addresses": ["10.9.0.2/24"], "routes": ["10.9.0.0/16"]})
        for client, expected in ((first, "2"), (second, "1")):
            assert snapshot(host.host)["sysctls"]["ipv4/conf/eth0/rp_filter"] == "2"
            await client.undo()
            assert snapshot(host.host)["sysctls"]["ipv4/conf/eth0/rp_filter"] == expected
        for fd in fds:
            os.close(fd)
        first.close()
        second.close()
        host.host.sysctl(RP.format("eth0"), "0")
        (await connect(host, name="pyvpn11")).close()

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


def test_what_somebody_took_away_is_made_again(host: HelperHost) -> None:
    """systemd-networkd removes rules that it did not make, when it starts."""

    async def scenario() -> None:
        async with tunnel(host, FULL) as up:
            once = snapshot(host.host)
            await up.client.set_link(**FULL)
            assert differences(once, snapshot(host.host)) == []
            for family in ("-4", "-6"):
                host.host.run("ip", family, "rule", "delete", "priority", "28010")
                host.host.run("ip", family, "route", "flush", "table", "28010")
            assert up.way(OTHER, FAR) == "inet"
            await up.client.set_link(**FULL)
            assert differences(once, snapshot(host.host)) == []
            assert up.way(OTHER, FAR) == "tunnel"

    asyncio.run(scenario())


def test_what_others_have_in_the_table_is_left_alone(host: HelperHost) -> None:
    """Its number is no more than a custom: ours is what carries our mark."""
    theirs = ("throw 10.77.0.0/16 table 28010", "unreachable 2001:db8:77::/48 table 28010")

    async def scenario() -> None:
        host.host.ip(*(f"route add {route}" for route in theirs))
        host.host.ip("rule add priority 28010 table 100")
        before = snapshot(host.host)
        async with tunnel(host, FULL) as up:
            await up.client.set_link(**FULL)
        await undone(host)
        assert differences(before, snapshot(host.host)) == []
        host.host.ip(*(f"route delete {route}" for route in theirs))
        host.host.ip("rule delete priority 28010 table 100")

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


def test_a_killed_helper_leaves_it_working_and_comes_back(host: HelperHost) -> None:
    """A crash of the helper must neither stop the traffic nor let it out."""

    async def scenario() -> None:
        async with tunnel(host, FULL) as up:
            during = snapshot(host.host)
            host.helper.kill()
            await up.client.wait_closed()
            assert differences(during, snapshot(host.host)) == []
            assert up.way(OTHER, FAR) == "tunnel"
            host.start()
            again = await connect(host)
            assert again.adopted
            await again.set_link(**FULL)
            assert differences(during, snapshot(host.host)) == []
            again.close()
            await undone(host)
            up.lose_tun()
            assert up.way(OTHER, FAR) == "inet"

    asyncio.run(scenario())


def test_what_nobody_claims_again_is_undone(host: HelperHost) -> None:
    """Caller and helper were both killed: the host must not stay cut off for ever."""

    async def scenario() -> None:
        async with tunnel(host, ONLY4) as up:
            host.helper.kill()
            await up.client.wait_closed()
            host.start(adoption_s=0.5)
            mark = host.helper.begin
            said = "nobody came back"
            await asyncio.to_thread(host.helper.wait_for, said, since=mark, timeout_s=15)
            up.lose_tun()
            assert up.way(OTHER, FAR) == "inet"
            assert up.way(OTHER, FAR6) == "inet"

    asyncio.run(scenario())


@pytest.mark.timeout(300)  # some fifty helpers
def test_a_kill_between_any_two_steps_leaves_nothing(host: HelperHost) -> None:
    """Routes that lead nowhere and rules do not go with the interface, as its own routes do."""
    wanted = FULL | {"exclude": ["198.51.100.0/24", "2001:db8:2::/64"]}

    async def attempt() -> bool:
        """Set up and undo; return whether the helper was killed on the way."""
        client = await connect(host)
        fds: list[int] = []
        try:
            fds = await client.open_tun(queues=1, tx_queue_len=500)
            await client.set_link(**wanted)
            await client.undo()
        except HelperError:
            return True
        finally:
            for fd in fds:
                os.close(fd)
            client.close()
        return False

    host.helper.stop()
    host.host.sysctl(RP.format("eth0"), "1")
    before = snapshot(host.host)
    for dies_at in itertools.count(1):
        host.start(dies_at=dies_at)
        killed = asyncio.run(attempt())
        if not killed:
            break
        host.helper.wait()
        host.undo()
        assert differences(before, snapshot(host.host)) == [], f"killed before effect {dies_at}"
        assert host.journals() == []
    assert dies_at > 30
    host.helper.kill()  # unless the end of the connection was its last step
    host.undo()
    host.host.sysctl(RP.format("eth0"), "0")
    host.start()


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
