"""A client that stays connected whatever dies or sleeps around it, without another login."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.bed import PORT, SERVER4
from tests.netns.client import Client, Profile, device_profile, new_client
from tests.netns.resolver import start_resolver
from tests.netns.site import QUICK_TIMERS, Site
from tests.netns.transfer import Transfer, serve_transfers

pytestmark = [pytest.mark.netns, pytest.mark.once, pytest.mark.timeout(180)]
NAME = "vpn.example.org"
SIZE = 60 << 20
WORKER_S, SERVER_S, RESUME_S = 3.0, 5.0, 3.0  # promised
ALLOWANCE = 3  # times the promise, on a machine that is busy with something else


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    site = make_site(config={"session": QUICK_TIMERS})
    serve_transfers(site.bed.server, site.gateway4)
    start_resolver(site.bed, NAME, SERVER4)
    return site


@pytest.fixture(scope="module")
def alice(site: Site) -> Profile:
    """A profile that names the server; who resolves the name sits inside the tunnel."""
    profile = device_profile(site.daemons, "alice")
    remotes = [remote | {"address": f"{NAME}:{PORT}"} for remote in profile["remotes"]]
    return profile | {"remotes": remotes}


@pytest.fixture(scope="module")
def _client(site: Site) -> Client:
    return new_client(site.bed.client)


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


def worker(client: Client) -> int:
    """Return the number of its worker process."""
    master = client.vpnd.pid.number
    (child,) = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return int(child)


def test_a_dead_worker_comes_back_by_its_cookie(site: Site, client: Client) -> None:
    """In mid-transfer: what runs over the tunnel goes on, and the server sees no login."""
    before, inner = site.session("alice"), client.link()["inner"]
    transfer = Transfer.start(client.namespace, site.gateway4, up=SIZE, down=SIZE)
    transfer.wait_mebibytes("up", 10)
    mark, heard = client.vpnd.mark(), site.daemons.vpnd.mark()
    killed_at = time.monotonic()
    os.kill(worker(client), signal.SIGKILL)
    client.wait_connected(since=mark)
    took = time.monotonic() - killed_at
    print(f"connected {took:.1f} s after the worker was killed")
    assert took < WORKER_S * ALLOWANCE
    transfer.finish()
    after = site.session("alice")
    assert after["id"] == before["id"]
    assert client.link()["inner"] == inner
    assert client.logins() == 1
    assert "login accepted" not in site.daemons.vpnd.text(heard)


def test_a_resolver_inside_the_tunnel_is_not_waited_for(site: Site, client: Client) -> None:
    """It cannot answer while the tunnel is lost: the address that worked before will do."""
    before = site.session("alice")
    mark = client.vpnd.mark()
    site.daemons.vpnd.kill()
    client.wait_state("reconnecting", "waiting")
    site.daemons.start_vpnd()
    back_at = time.monotonic()
    client.wait_connected(since=mark)
    print(f"connected {time.monotonic() - back_at:.1f} s after the server was back")
    assert time.monotonic() - back_at < SERVER_S * ALLOWANCE
    assert "going to the addresses that worked before" in client.vpnd.text(mark)
    assert site.session("alice")["id"] == before["id"]
    assert client.logins() == 1


def test_a_client_that_slept_is_back_at_once(site: Site, client: Client) -> None:
    """Longer than the server waits, with no network: as a lid that was closed and opened."""
    before, inner = site.session("alice"), client.link()["inner"]
    sleeping = [client.vpnd.pid.number, worker(client)]
    mark, heard = client.vpnd.mark(), site.daemons.vpnd.mark()
    site.bed.cut()
    for pid in sleeping:
        os.kill(pid, signal.SIGSTOP)
    site.daemons.vpnd.wait_for("tunnel closed", since=heard, timeout_s=60)
    site.bed.mend()
    woken_at = time.monotonic()
    for pid in sleeping:
        os.kill(pid, signal.SIGCONT)
    client.wait_connected(since=mark)
    took = time.monotonic() - woken_at
    print(f"connected {took:.1f} s after it woke")
    assert took < RESUME_S * ALLOWANCE
    site.bed.client.ping(site.gateway4)
    assert site.session("alice")["id"] == before["id"]
    assert client.link()["inner"] == inner
    assert client.logins() == 1
