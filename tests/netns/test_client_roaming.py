"""A client on the move: what runs over the tunnel goes on, and nobody logs in again."""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.netns.client import POLL_S, Client, Profile, device_profile, new_client
from tests.netns.roaming import Pulse, Roamer
from tests.netns.site import QUICK_TIMERS, Site
from tests.netns.transfer import Transfer, serve_transfers

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]
SIZE = 100 << 20
ROAM_S, REBIND_S = 3.0, 1.0  # promised
ALLOWANCE = 3  # times the promise, on a machine that is busy with something else


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    site = make_site(config={"session": QUICK_TIMERS})
    serve_transfers(site.bed.server, site.gateway4)
    return site


@pytest.fixture(scope="module")
def _client(site: Site) -> Client:
    return new_client(site.bed.client)


@pytest.fixture(scope="module")
def alice(site: Site) -> Profile:
    return device_profile(site.daemons, "alice")


@pytest.fixture
def client(_client: Client, alice: Profile) -> Iterator[Client]:
    """A client that is connected; it has said good-bye after the test."""
    _client.start(alice)
    try:
        _client.wait_connected()
        _client.wait_dtls()
        yield _client
    finally:
        _client.stop()
        _client.wait_undone()


@pytest.fixture(scope="module")
def roamer(site: Site) -> Roamer:
    return Roamer(site.bed)


@pytest.fixture
def pulse(site: Site, client: Client) -> Iterator[Pulse]:
    pulse = Pulse.start(client.namespace, site.gateway4)
    yield pulse
    pulse.stop()


def test_a_transfer_outlives_changes_of_address_and_of_nat_ports(
    site: Site, client: Client, roamer: Roamer, pulse: Pulse
) -> None:
    """200 MB with three addresses more, the last in mid-download; then the ports alone."""
    before = site.session("alice")
    transfer = Transfer.start(client.namespace, site.gateway4, up=SIZE, down=SIZE)
    for direction, mebibytes in (("up", 20), ("up", 60), ("down", 30)):
        transfer.wait_mebibytes(direction, mebibytes)
        moved_at = time.time()
        own = roamer.move()
        transfer.wait_mebibytes(direction, mebibytes + 30)
        pause = pulse.longest_pause(moved_at)
        print(f"another address in mid-{direction}: {pause:.2f} s without an answer")
        assert pause < ROAM_S * ALLOWANCE
    transfer.finish()
    after = site.session("alice")
    assert after["id"] == before["id"]
    assert after["outer"].startswith(f"{own}:")
    assert client.logins() == 1


def test_new_keys_that_do_not_come_do_not_delay_the_return(
    site: Site, client: Client, roamer: Roamer, pulse: Pulse
) -> None:
    """They were asked for where nothing passes; then there is another network."""
    roamer.block()
    with ThreadPoolExecutor(1) as thread:
        rotation = thread.submit(client.vpnctl, "rotate-keys", check=False)
        while not client.namespace.run("ss", "-Htn", "state", "syn-sent").stdout:
            time.sleep(POLL_S)
        roamer.unblock()
        moved_at = time.time()
        roamer.move()
        site.bed.client.run("ping", "-c", "3", "-i", "0.2", "-w", "60", site.gateway4)
        pause = pulse.longest_pause(moved_at)
        print(f"another address while keys are changed: {pause:.2f} s without an answer")
        assert "lost" in rotation.result()
    assert pause < ROAM_S * ALLOWANCE
    client.wait_dtls()
    assert client.logins() == 1


def test_other_ports_of_a_nat_are_hardly_noticed(
    site: Site, client: Client, roamer: Roamer, pulse: Pulse
) -> None:
    """Home routers forget; the address stays, only UDP comes from elsewhere."""
    roamer.rebind()
    site.bed.client.run("ping", "-c", "1", "-w", "20", site.gateway4)  # until one comes back
    client.wait_dtls()
    before = site.session("alice")
    transfer = Transfer.start(client.namespace, site.gateway4, up=SIZE, down=SIZE)
    for direction in ("up", "down"):
        transfer.wait_mebibytes(direction, 20)
        moved_at, mark = time.time(), site.daemons.vpnd.mark()
        ports = roamer.rebind()
        transfer.wait_mebibytes(direction, 60)
        pause = pulse.longest_pause(moved_at)
        print(f"other NAT ports in mid-{direction}: {pause:.2f} s without an answer")
        assert pause < REBIND_S * ALLOWANCE
        moved = re.findall(r"client moved.*:(\d+)\b", site.daemons.vpnd.text(mark))
        assert {int(port) for port in moved} <= set(ports)
        assert moved
    transfer.finish()
    after = site.session("alice")
    assert after["id"] == before["id"]
    assert client.session()["channel"] == "DTLS"
    assert client.logins() == 1


def test_another_address_of_a_nat_is_found_out_without_the_hosts_help(
    site: Site, client: Client, roamer: Roamer, pulse: Pulse
) -> None:
    """A home router gets another address: nothing changes here, and no answer comes any more."""
    before = site.session("alice")
    roamer.readdress()
    site.bed.client.run("ping", "-c", "1", "-w", "60", site.gateway4)
    client.wait_dtls()
    for _ in range(2):
        moved_at = time.time()
        own = roamer.readdress()
        site.bed.client.run("ping", "-c", "1", "-w", "60", site.gateway4)
        pause = pulse.longest_pause(moved_at)
        print(f"another address of the NAT: {pause:.2f} s without an answer")
        client.wait_dtls()
        assert pause < ROAM_S * ALLOWANCE
    after = site.session("alice")
    assert after["id"] == before["id"]
    assert after["outer"].startswith(f"{own}:")
    assert client.logins() == 1
