"""What keeps a user outside: made again, shared, and undone, whoever ends and whenever."""

import asyncio
import itertools
import os
import sys
from collections.abc import Iterator

import pytest

from tests.netns.carrier import (
    FAR,
    FAR6,
    FULL,
    ONLY4,
    OTHER,
    RP,
    carrier_host,
    connect,
    tunnel,
    undone,
)
from tests.netns.helper_host import HelperHost
from tests.netns.snapshot import differences, snapshot
from vpnd.errors import HelperError

pytestmark = pytest.mark.netns

VANISHING = """
import os
from helper import link, tun
from helper.journal import Journal
from helper.messages import OpenTun, SetLink

def vanishing(kind, method):
    def wrapped(verb, **what):
        if (verb, kind) == ("del", "link"):
            os.close(fds.pop())
        return method(verb, **what)
    return wrapped

journal = Journal("pyvpn10", 1)
journal.link_index, fds = tun.open_queues("pyvpn10", OpenTun(1, 500))
link.set_link(journal, SetLink(
    1400, ("10.8.0.2/24", "fd00::2/64"), ("0.0.0.0/0", "::/0"), False, ("192.168.0.0/16",), True))
link.getattr = lambda netlink, kind: vanishing(kind, getattr(netlink, kind))
link.undo(journal)
assert not fds
"""


@pytest.fixture
def host() -> Iterator[HelperHost]:
    with carrier_host() as host:
        yield host


def test_an_interface_that_vanishes_while_it_is_undone_leaves_nothing(host: HelperHost) -> None:
    """Who is killed closes the connection first and the TUN a moment later."""
    host.host.run(sys.executable, "-P", "-c", VANISHING)


def test_a_link_that_comes_later_is_loosened_when_asked_again(host: HelperHost) -> None:
    """A telephone is plugged in and out; what is gone needs no restoring."""

    async def scenario() -> None:
        async with tunnel(host, FULL) as up:
            host.host.ip("link add eth2 type veth peer name eth3")
            host.host.sysctl(RP.format("eth2"), "1")
            await up.client.set_link(**FULL)
            assert snapshot(host.host)["sysctls"]["ipv4/conf/eth2/rp_filter"] == "2"
            host.host.ip("link delete eth2")
            await up.client.set_link(**FULL)

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
