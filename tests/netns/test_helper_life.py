"""The helper's promise: nothing it did is left behind, however its caller or itself ends."""

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from helper.messages import OpenSockets, encode
from tests.netns.helper_host import HelperHost
from tests.netns.process import BedError
from tests.netns.snapshot import State, differences, snapshot
from vpnd.errors import HelperError
from vpnd.host.helper_client import HelperClient

pytestmark = pytest.mark.netns
numbers = itertools.count()


@pytest.fixture
def host() -> Iterator[HelperHost]:
    """A host that each test must leave as it found it."""
    host = HelperHost(next(numbers))
    try:
        host.build()
        before = snapshot(host.host)
        yield host
        host.helper.stop()
        assert differences(before, snapshot(host.host)) == []
        assert host.journals() == []
    finally:
        host.close()


def close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


async def until_gone(host: HelperHost, mark: int, text: str) -> None:
    await asyncio.to_thread(host.helper.wait_for, text, since=mark, timeout_s=15)


async def come_and_go(host: HelperHost, before: State) -> None:
    """Set everything up, then end as a program that is killed does."""
    client = await host.connect()
    fds = await host.set_up(client)
    changed = differences(before, snapshot(host.host))
    for sign in ("pyvpn0", "eth0/forwarding", "eth1/forwarding", "nftables", "fd00:1::"):
        assert any(sign in line for line in changed), (sign, changed)
    client.close()
    close(fds)
    again = await host.connect()  # answered after the end of the first was dealt with
    assert not again.adopted
    again.close()


@pytest.mark.parametrize("force", ["force_forwarding", "none"])
def test_the_end_of_the_connection_undoes_everything(host: HelperHost, force: str) -> None:
    """Whoever dies cannot clean up; on kernels before 6.17 IPv6 has one switch for all links."""
    host.start(force=force)
    asyncio.run(come_and_go(host, snapshot(host.host)))


def test_the_interface_goes_with_the_connection_though_a_queue_is_still_open(
    host: HelperHost,
) -> None:
    """A hung worker that survives its master must not keep the tunnel up."""

    async def scenario() -> None:
        client = await host.connect()
        fds = await host.set_up(client)
        client.close()
        again = await host.connect()
        assert "pyvpn0" not in host.host.run("ip", "link").stdout
        close(fds)
        again.close()

    host.start()
    asyncio.run(scenario())


def test_undo_is_complete_and_the_connection_can_begin_anew(host: HelperHost) -> None:
    """A changed configuration is applied without giving the interface to somebody else."""

    async def scenario() -> None:
        before = snapshot(host.host)
        client = await host.connect()
        fds = await host.set_up(client)
        await client.undo()
        assert differences(before, snapshot(host.host)) == []
        close(fds)
        fds = await host.set_up(client)
        close(fds)
        client.close()
        (await host.connect()).close()

    host.start()
    asyncio.run(scenario())


def test_asking_twice_changes_nothing(host: HelperHost) -> None:
    """Requests carry the wanted state, so repeating them is harmless, and less takes away."""

    async def scenario() -> None:
        client = await host.connect()
        fds = await client.open_tun(queues=1, tx_queue_len=500)
        wide = {"mtu": 1400, "addresses": ["10.8.0.1/24", "fd00::1/64"], "forwarding": True}
        await client.set_link(**wide, routes=["10.9.0.0/16", "fd00:9::/48"])
        once = snapshot(host.host)
        await client.set_link(**wide, routes=["10.9.0.0/16", "fd00:9::/48"])
        assert differences(once, snapshot(host.host)) == []
        await client.set_link(mtu=1300, addresses=["10.8.0.1/24"], forwarding=False)
        less = str(snapshot(host.host))
        assert "10.9.0.0" not in less
        assert "fd00" not in less
        close(fds)
        client.close()
        (await host.connect()).close()

    host.start()
    asyncio.run(scenario())


def test_a_killed_helper_comes_back_and_adopts(host: HelperHost) -> None:
    """An upgrade or crash of the helper must not cost the sessions anything."""

    async def scenario() -> None:
        client = await host.connect()
        fds = await host.set_up(client)
        during = snapshot(host.host)
        host.helper.kill()
        await client.wait_closed()
        assert differences(during, snapshot(host.host)) == []
        host.start()
        again = await host.connect()
        assert again.adopted
        # Nothing but the address is asked for again: the rules are still remembered.
        await again.set_link(mtu=1400, addresses=["10.8.0.1/24", "fd00:1::1/64"], forwarding=True)
        assert differences(during, snapshot(host.host)) == []
        again.close()
        close(fds)
        (await host.connect()).close()

    host.start()
    asyncio.run(scenario())


@pytest.mark.parametrize("asked", ["nothing", "half", "all"])
def test_a_connection_outlives_the_process_that_made_it(host: HelperHost, asked: str) -> None:
    """systemd keeps a copy over a restart; a kill may come in the middle of any request."""

    async def scenario() -> None:
        client = await host.connect()
        fds = await host.set_up(client)
        during = snapshot(host.host)
        request = encode(OpenSockets((("0.0.0.0", 5000),), 2, 1 << 20))
        sent = {"nothing": 0, "half": len(request) // 2, "all": len(request)}[asked]
        os.write(client.fileno(), request[:sent])
        kept = os.dup(client.fileno())
        asyncio.get_running_loop().remove_reader(client.fileno())  # it dies: reads nothing more
        client._closed.set()
        client._socket.close()
        again = await HelperClient.resume(kept, str(host.socket), "pyvpn0")
        assert again.adopted
        assert differences(during, snapshot(host.host)) == []
        await again.set_link(mtu=1400, addresses=["10.8.0.1/24", "fd00:1::1/64"], forwarding=True)
        assert differences(during, snapshot(host.host)) == []
        (group,) = await again.open_sockets(
            [("0.0.0.0", 5000)], udp_per_address=1, buffer_bytes=1 << 20
        )
        close([*fds, group[0], *group[1]])
        again.close()
        (await host.connect()).close()

    host.start()
    asyncio.run(scenario())


def test_a_connection_speaks_for_one_interface_only(host: HelperHost) -> None:
    """A second Hello is for those that were restarted, not for those that want more."""

    async def scenario() -> None:
        client = await host.connect()
        fds = await host.set_up(client)
        kept = os.dup(client.fileno())
        asyncio.get_running_loop().remove_reader(client.fileno())
        client._closed.set()
        client._socket.close()
        with pytest.raises(HelperError, match="the helper is gone"):
            await HelperClient.resume(kept, str(host.socket), "pyvpn1")
        close(fds)
        (await host.connect()).close()

    host.start()
    asyncio.run(scenario())


def test_what_nobody_claims_again_is_undone(host: HelperHost) -> None:
    """vpnd may have died with the helper: its state must not stay for ever."""

    async def scenario() -> None:
        client = await host.connect()
        fds = await host.set_up(client)
        host.helper.kill()
        await client.wait_closed()
        host.start(adoption_s=0.5)
        await until_gone(host, host.helper.begin, "nobody came back")
        close(fds)

    host.start()
    asyncio.run(scenario())


def test_another_user_cannot_adopt(host: HelperHost) -> None:
    """The kept interface still carries somebody's traffic."""

    async def scenario() -> None:
        client = await host.connect()
        fds = await host.set_up(client)
        host.stop()
        await client.wait_closed()
        host.start()
        said = host.host.run(*as_other(host, "pyvpn0"), user="daemon").stdout
        assert "kept for user id 0" in said
        (await host.connect()).close()
        close(fds)
        (await host.connect()).close()

    host.start()
    asyncio.run(scenario())


def as_other(host: HelperHost, interface: str) -> tuple[str, ...]:
    """Return a program that says Hello and prints the refusal."""
    source = (
        "import asyncio, sys\n"
        "from vpnd.host.helper_client import HelperClient\n"
        "try: asyncio.run(HelperClient.connect(*sys.argv[1:]))\n"
        "except Exception as exc: print(exc)\n"
    )
    return (sys.executable, "-P", "-c", source, str(host.socket), interface)


def test_sigterm_keeps_and_the_undo_option_takes_away(host: HelperHost) -> None:
    """`./run.sh clean` has nobody left to talk to."""

    async def scenario() -> None:
        client = await host.connect()
        fds = await host.set_up(client)
        during = snapshot(host.host)
        assert host.stop() == 0
        assert differences(during, snapshot(host.host)) == []
        assert "pyvpn0: undone" in host.undo()
        client.close()
        close(fds)
        assert "nothing was left" in host.undo()

    host.start()
    asyncio.run(scenario())


@pytest.mark.timeout(300)  # some thirty helpers
def test_a_kill_at_any_moment_leaves_nothing(host: HelperHost) -> None:
    """Every change is in the journal before it is made, and undoing can be begun again."""

    async def attempt() -> bool:
        """Set up and undo; return whether the helper was killed on the way."""
        fds: list[int] = []
        client = await host.connect()
        try:
            fds = await host.set_up(client)
            await client.undo()
        except HelperError:
            return True
        finally:
            close(fds)
            client.close()
        return False

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
    assert dies_at > 15


def test_two_tunnels_share_what_both_need(host: HelperHost) -> None:
    """The first to go must not switch forwarding off under the other; the last one must."""

    async def scenario() -> None:
        first, second = await host.connect("pyvpn0"), await host.connect("pyvpn1")
        fds = await host.set_up(first) + await host.set_up(second, number=1)
        for client in (first, second):
            state = snapshot(host.host)["sysctls"]
            assert state["ipv4/conf/eth0/forwarding"] == "1"
            assert state["ipv6/conf/eth1/force_forwarding"] == "1"
            await client.undo()
        assert snapshot(host.host)["sysctls"]["ipv4/conf/eth0/forwarding"] == "0"
        for client in (first, second):
            client.close()
        close(fds)
        (await host.connect()).close()
        (await host.connect("pyvpn1")).close()

    host.start()
    asyncio.run(scenario())


def test_a_setting_that_somebody_changed_since_is_left_alone(host: HelperHost) -> None:
    """What the administrator did after us is what is wanted."""

    async def scenario() -> None:
        client = await host.connect()
        fds = await host.set_up(client)
        host.host.sysctl("net/ipv4/conf/all/forwarding", "1")  # as Docker does when it starts
        await client.undo()
        assert snapshot(host.host)["sysctls"]["ipv4/conf/eth0/forwarding"] == "1"
        host.host.sysctl("net/ipv4/conf/all/forwarding", "0")
        client.close()
        close(fds)

    host.start()
    asyncio.run(scenario())


def test_unreadable_requests_end_the_connection_and_undo(host: HelperHost) -> None:
    """A peer that talks nonsense cannot be trusted to clean up."""

    async def scenario() -> None:
        client = await host.connect()
        fds = await host.set_up(client)
        client._socket.send(b"\x00\x00\x00\x04nope")
        await asyncio.wait_for(client.wait_closed(), 10)
        with pytest.raises(HelperError, match="start pyvpn-helper"):
            await client.undo()
        close(fds)
        (await host.connect()).close()

    host.start()
    asyncio.run(scenario())


def test_only_one_helper_uses_a_run_dir(host: HelperHost) -> None:
    """Two would undo each other's interfaces."""
    host.start()
    with pytest.raises(BedError, match="in use by another pyvpn-helper"):
        host.undo()
    assert host.stop(signal.SIGINT) == 0
