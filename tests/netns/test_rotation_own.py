"""Our own client changes its keys while packets flow: not one is lost."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.netns.bed import PORT, SERVER4
from tests.netns.client import Client, device_profile, new_client
from tests.netns.numbered import Stream, serve_numbered
from tests.netns.site import Site

pytestmark = [pytest.mark.netns, pytest.mark.once, pytest.mark.timeout(180)]
STREAM_S = 8.0  # two rotations, and the end of the first overlap
BREAK_MS = 5000  # for a stock client to be back
PROMPT_MS = 2000
NOTHING = {"lost": 0, "twice": 0}


def connected(site: Site) -> Client:
    own = new_client(site.bed.client)
    own.connect(device_profile(site.daemons, "alice"))
    return own


def rotate(site: Site) -> list[dict[str, Any]]:
    said = site.daemons.vpnctl("--json", "rotate-keys", "--all", check=False)
    rotations: list[dict[str, Any]] = json.loads(said.stdout)["rotations"]
    return rotations


@pytest.mark.parametrize(("dtls", "up"), [(True, True), (False, True), (False, False)])
def test_no_packet_is_lost(make_site: Callable[..., Site], dtls: bool, up: bool) -> None:
    """Neither by UDP nor by TLS, in either direction; the session stays what it was."""
    remotes = {"remotes": [f"{SERVER4}:{PORT}"]}
    site = make_site(config={"server": remotes, "dtls": {"enabled": dtls}})
    own = connected(site)
    serve_numbered(site.bed.server, site.gateway4)
    channel = "DTLS" if dtls else "TLS"
    while site.channel("alice") != channel:  # UDP may come up a moment after TLS
        pass
    before = site.session("alice")
    stream = Stream.start(site.bed.client, site.gateway4, seconds=STREAM_S, up=up)
    for _ in range(2):
        (rotation,) = rotate(site)
        assert rotation["rotated"], rotation
        assert rotation["overlapped"]
        assert rotation["took_ms"] < PROMPT_MS, rotation
    counted = stream.finish()
    drops = site.daemons.status()["drops"], own.status()["drops"]
    assert counted == {"up": NOTHING, "down": NOTHING}, drops
    after = site.session("alice")
    for kept in ("id", "address4", "address6", "connected_at"):
        assert after[kept] == before[kept]
    assert after["channel"] == channel
    assert after["outer"] != before["outer"]
    assert after["tx_packets"] > before["tx_packets"] + STREAM_S * 1000
    own.stop()


def test_stock_clients_beside_it_reconnect_and_it_does_not(make_site: Callable[..., Site]) -> None:
    """One command for all; each kind does what it can."""
    site = make_site(clients=2, config={"server": {"remotes": [f"{SERVER4}:{PORT}"]}})
    own = connected(site)
    stock = site.connect(1, certificate=site.daemons.add_client("bob"))
    stock.wait_connected()
    serve_numbered(site.bed.server, site.gateway4)
    address = site.session("bob")["address4"]
    stream = Stream.start(site.bed.client, site.gateway4, seconds=STREAM_S)
    alice, bob = rotate(site)
    assert (alice["user"], alice["rotated"], alice["overlapped"]) == ("alice", True, True)
    assert (bob["user"], bob["rotated"], bob["overlapped"]) == ("bob", True, False)
    assert max(alice["took_ms"], bob["took_ms"]) < BREAK_MS
    site.bed.clients[1].ping(site.gateway4)
    assert site.session("bob")["address4"] == address
    counted = stream.finish()
    drops = site.daemons.status()["drops"], own.status()["drops"]
    assert counted == {"up": NOTHING, "down": NOTHING}, drops
    stock.disconnect()
    own.stop()
