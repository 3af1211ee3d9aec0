"""`vpnctl rotate-keys` with stock clients: they come back by themselves, with new keys."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.netns.site import Site

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
BACK_S = 5.0  # a stock client is to carry packets again


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


def rotate(site: Site, *which: str) -> list[dict[str, Any]]:
    done = site.daemons.vpnctl("--json", "rotate-keys", *which)
    rotations: list[dict[str, Any]] = json.loads(done.stdout)["rotations"]
    return rotations


def test_a_stock_client_is_back_within_seconds_and_keeps_its_address(site: Site) -> None:
    """Nobody logs in again, and what ran over the tunnel goes on."""
    client = site.connect(certificate=site.daemons.add_client("alice"))
    client.wait_connected()
    client.wait_dtls()
    before = site.session("alice")
    mark = client.process.mark()
    began = time.monotonic()
    (rotation,) = rotate(site, "--all")
    site.bed.client.run("ping", "-c", "1", "-i", "0.2", "-w", "20", site.gateway4)
    assert time.monotonic() - began < BACK_S
    assert (rotation["session"], rotation["user"]) == (before["id"], "alice")
    assert (rotation["rotated"], rotation["overlapped"]) == (True, False)
    client.wait_reconnected(since=mark)
    client.wait_dtls(since=mark)
    after = site.session("alice")
    for kept in ("id", "address4", "address6"):
        assert after[kept] == before[kept]
    client.disconnect()
