"""Our own client changes its keys while packets flow: not one is lost."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.netns.bed import PORT, SERVER4
from tests.netns.client import POLL_S, Client, device_profile, new_client
from tests.netns.numbered import Stream, serve_numbered
from tests.netns.returning import Returning, cookies
from tests.netns.site import Site
from tests.netns.transfer import Transfer, serve_transfers

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
SESSIONS = 50
BACK_S = 5.0  # promised of stock clients
PROMPT_S = 2.0  # our own; there is no break
ALLOWANCE = 3  # times the promise, on a machine that is busy with something else
BULK = 48 << 20  # bytes each way
WINDOW = 128 << 10  # bytes of the bulk transfer under way: no queue drops packets of the judged
LET_GO_S = 20.0
Counted = dict[str, dict[str, int]]


def connected(site: Site) -> Client:
    own = new_client(site.bed.client)
    own.connect(device_profile(site.daemons, "alice"))
    return own


def rotate(site: Site, *which: str) -> list[dict[str, Any]]:
    said = site.daemons.vpnctl("--json", "rotate-keys", *which, check=False)
    rotations: list[dict[str, Any]] = json.loads(said.stdout)["rotations"]
    return rotations


def rotate_own(site: Site) -> None:
    (rotation,) = rotate(site, "--user", "alice")
    print(f"our client: {rotation['took_ms']} ms")
    assert rotation["rotated"], rotation
    assert rotation["overlapped"]
    assert rotation["took_ms"] < PROMPT_S * ALLOWANCE * 1000, rotation


def wait_let_go(site: Site) -> None:
    """Wait until our client has let its earlier tunnels go: what comes by them is over."""
    deadline = time.monotonic() + LET_GO_S
    to_server = ("state", "established", "dport", f"= :{PORT}")
    while len(site.bed.client.run("ss", "-Htn", *to_server).stdout.splitlines()) > 1:
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


def assert_nothing_lost(stream: Stream, site: Site, own: Client) -> None:
    counted = stream.finish()
    drops = site.daemons.status()["drops"], own.status()["drops"]
    assert counted["down"]["sent"] > 0
    for way in counted.values():
        assert (way["lost"], way["twice"]) == (0, 0), (counted, drops)


@pytest.fixture
def site(make_site: Callable[..., Site], request: pytest.FixtureRequest) -> Iterator[Site]:
    dtls: bool = request.param
    remotes = {"remotes": [f"{SERVER4}:{PORT}"]}
    site = make_site(clients=2, config={"server": remotes, "dtls": {"enabled": dtls}})
    serve_numbered(site.bed.server, site.gateway4)
    yield site
    site.daemons.stop()


@pytest.mark.parametrize("site", [True], indirect=True)
def test_all_of_fifty_sessions_change_keys_under_load(site: Site, held: ExitStack) -> None:
    """Ours goes on, with a transfer and every packet counted; stock ones are back in seconds."""
    serve_transfers(site.bed.server, site.gateway4)
    own = connected(site)
    stock = site.connect(1, certificate=site.daemons.add_client("bob"))
    namespace = site.bed.clients[1]
    others = [
        held.enter_context(closing(Returning(namespace, cookie)))
        for cookie in cookies(site.daemons, SESSIONS - 2)
    ]
    stock.wait_connected()
    stock.wait_dtls()
    own.wait_dtls()
    before = {session["id"]: session for session in site.daemons.sessions()}
    assert len(before) == SESSIONS
    stream = Stream.start(site.bed.client, site.gateway4)
    bulk = Transfer.start(site.bed.client, site.gateway4, up=BULK, down=BULK, window=WINDOW)
    bulk.wait_mebibytes("up", 4)
    mark = stock.process.mark()
    with ThreadPoolExecutor(len(others)) as threads:
        back = [threads.submit(other.come_back) for other in others]
        rotations = rotate(site, "--all")
        for each in back:
            each.result()
    bulk.wait_mebibytes("down", 4)
    rotate_own(site)
    took = bulk.finish()
    wait_let_go(site)
    assert_nothing_lost(stream, site, own)
    print(f"transfer: {took['up_s']:.1f} s up, {took['down_s']:.1f} s down")

    assert {rotation["session"] for rotation in rotations} == set(before)
    assert all(rotation["rotated"] for rotation in rotations), rotations
    times = {r["user"]: r["took_ms"] / 1000 for r in rotations}
    slowest = max(r["took_ms"] for r in rotations) / 1000
    print(
        f"ours {times['alice']:.1f} s, openconnect {times['bob']:.1f} s, slowest {slowest:.1f} s"
    )
    assert [r["user"] for r in rotations if r["overlapped"]] == ["alice"]
    assert slowest < BACK_S * ALLOWANCE
    stock.wait_reconnected(since=mark)
    namespace.ping(site.gateway4)
    after = {session["id"]: session for session in site.daemons.sessions()}
    assert after.keys() == before.keys()
    for session, now in after.items():
        assert now["address4"] == before[session]["address4"]
        assert now["outer"] != before[session]["outer"]
    alice = next(session for session in after.values() if session["user"] == "alice")
    assert alice["channel"] == "DTLS"
    assert alice["connected_at"] == before[alice["id"]]["connected_at"]
    assert alice["rx_bytes"] > BULK
    assert alice["tx_bytes"] > BULK
    stock.disconnect()
    own.stop()


@pytest.mark.parametrize("site", [False], indirect=True)
def test_without_udp_nothing_is_lost_either_and_the_new_cookie_holds(site: Site) -> None:
    """Both ways, and from the server alone; then it dies, and nobody logs in again."""
    own = connected(site)
    before = site.session("alice")
    stream = Stream.start(site.bed.client, site.gateway4)
    rotate_own(site)
    wait_let_go(site)
    assert_nothing_lost(stream, site, own)
    stream = Stream.start(site.bed.client, site.gateway4, up=False)
    rotate_own(site)
    assert_nothing_lost(stream, site, own)
    after = site.session("alice")
    for kept in ("id", "address4", "address6", "connected_at"):
        assert after[kept] == before[kept]
    assert after["channel"] == "TLS"
    assert after["outer"] != before["outer"]
    mark = own.vpnd.mark()
    site.daemons.vpnd.kill()
    site.daemons.start_vpnd()
    own.wait_connected(since=mark)
    assert own.logins() == 1
    assert site.session("alice")["address4"] == before["address4"]
    own.stop()
