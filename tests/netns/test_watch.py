"""What the watch tells of a real kernel's network, and what it keeps to itself."""

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.netns.namespace import Namespace, inside
from tests.netns.process import Pid
from tests.netns.teardown import TEST_BEDS, take_down
from vpnd.host.watch import NetworkWatch

pytestmark = pytest.mark.netns
numbers = itertools.count()
SETTLE_S = 0.3  # longer than an `ip -batch` takes on a busy machine
WAIT_S = 10.0


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    folder = TEST_BEDS / f"{os.getpid()}-w{next(numbers)}"
    folder.mkdir(parents=True)
    (folder / "owner").write_text(str(Pid.of(os.getpid())))
    namespace = Namespace(f"pyvpn-t-{folder.name}", folder)
    far = Namespace(f"pyvpn-t-{folder.name}-far", folder)
    try:
        namespace.create()
        far.create()
        for link in ("eth0", "eth1"):
            namespace.ip(f"link add {link} type veth peer name {link} netns {far.name}")
            namespace.sysctl(f"net/ipv6/conf/{link}/addr_gen_mode", "1")  # no link-local address
            far.ip(f"link set {link} up")
        namespace.ip("link set eth1 up")
        namespace.wait_link("eth1")
        yield namespace
    finally:
        take_down(folder)


class Watched:
    """A watch in a namespace, and what it told."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._told: asyncio.Queue[str] = asyncio.Queue()
        self.watch = NetworkWatch("pyvpn10", self._told.put_nowait, settle_s=SETTLE_S)

    async def ip(self, *commands: str) -> None:
        await asyncio.to_thread(self._namespace.ip, *commands)

    async def reason(self) -> str:
        """Return what is told next."""
        return await asyncio.wait_for(self._told.get(), WAIT_S)


def watched(namespace: Namespace, scenario: Callable[[Watched], Awaitable[None]]) -> None:
    """Run `scenario` with a watch, in the namespace."""

    async def run() -> None:
        found = Watched(namespace)
        try:
            await scenario(found)
        finally:
            found.watch.close()

    inside(namespace, lambda: asyncio.run(run()))


def test_joining_a_network_is_told_once(namespace: Namespace) -> None:
    """Link, address and route come together; each alone would make us look too early."""

    async def scenario(host: Watched) -> None:
        await host.ip(
            "link set eth0 up",
            "address add 192.0.2.5/24 dev eth0",
            "address add 2001:db8::5/64 dev eth0 nodad",
            "route add default via 192.0.2.1",
        )
        reason = await host.reason()
        assert "link eth0 is up" in reason
        assert "address 192.0.2.5 came" in reason
        await host.ip("link set eth0 down")
        reason = await host.reason()
        assert "link eth0 is down" in reason

    watched(namespace, scenario)


def test_a_route_alone_is_told(namespace: Namespace) -> None:
    """Another uplink took over while all addresses stayed."""

    async def scenario(host: Watched) -> None:
        await host.ip("route add default dev eth1")
        assert await host.reason() == "route 0.0.0.0/0 came"
        await host.ip("route delete default dev eth1")
        assert await host.reason() == "route 0.0.0.0/0 went"

    watched(namespace, scenario)


def test_our_own_interface_and_routes_are_not_told(namespace: Namespace) -> None:
    """Else every tunnel that comes up would be looked at because it came up."""

    async def scenario(host: Watched) -> None:
        await host.ip(
            "tuntap add dev pyvpn10 mode tun",
            "link set pyvpn10 up",
            "address add 10.8.0.2/32 dev pyvpn10",
            "route add 10.9.0.0/16 dev pyvpn10",
            "route add throw 10.10.0.0/16 table 28010 protocol 118",
            "rule add priority 28010 table 28010 protocol kernel",
            "address add 192.0.2.6/32 dev eth1",
        )
        assert await host.reason() == "address 192.0.2.6 came"
        await host.ip("link delete pyvpn10", "address delete 192.0.2.6/32 dev eth1")
        assert await host.reason() == "address 192.0.2.6 went"

    watched(namespace, scenario)


def test_a_rule_of_ours_that_somebody_took_away_is_told(namespace: Namespace) -> None:
    """What cleans up behind others takes rules it did not make: all would pass us by."""

    async def scenario(host: Watched) -> None:
        rule = "priority 28010 table 28010 protocol kernel"
        await host.ip(
            f"rule add {rule}", "rule add priority 5 table 100", "rule delete priority 5"
        )
        await host.ip(f"rule delete {rule}")
        assert await host.reason() == "a routing rule went"

    watched(namespace, scenario)


def test_an_address_that_is_only_prolonged_is_not_told(namespace: Namespace) -> None:
    """Router advertisements and DHCP do so every few minutes."""

    async def scenario(host: Watched) -> None:
        address = "2001:db8::7/64 dev eth1"
        await host.ip(f"address add {address} valid_lft 1000 preferred_lft 500 nodad")
        assert "address 2001:db8::7 came" in await host.reason()
        await host.ip(f"address change {address} valid_lft 2000 preferred_lft 900 nodad")
        await host.ip("link set eth1 alias other", "route add default dev eth1")
        reason = await host.reason()
        assert "route 0.0.0.0/0 came" in reason
        assert "address" not in reason

    watched(namespace, scenario)


def test_a_flood_is_told_as_one(namespace: Namespace) -> None:
    """What the kernel could not queue for us is a change too, and nothing is kept without end."""

    async def scenario(host: Watched) -> None:
        host.watch._socket.setsockopt(1, 8, 1)  # SO_RCVBUF: the least there is
        commands = [f"route add 10.{n}.0.0/16 dev eth1" for n in range(250)]
        host._namespace.ip(*commands)  # the loop does not run meanwhile
        reason = await host.reason()
        assert "more" in reason
        await host.ip("route add default dev eth1")
        assert await host.reason() == "route 0.0.0.0/0 came"

    watched(namespace, scenario)
