"""`vpnctl rotate-keys` with stock clients: they come back by themselves, with new keys."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from tests.netns.site import Site
from tests.netns.stranger import Stranger

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
BACK_S = 5.0  # a stock client is to carry packets again
USERS, LOGINS = ("bob", "carol"), 25
PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


def rotate(site: Site, *which: str) -> list[dict[str, Any]]:
    done = site.daemons.vpnctl("--json", "rotate-keys", *which, check=False)
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


class Returning:
    """A client that comes back by its cookie once, as stock ones do; or does not."""

    def __init__(self, site: Site, user: str) -> None:
        self._namespace = site.bed.client
        with Stranger(self._namespace) as login:
            answer = login.log_in({"username": user, "password": PASSWORD})
        self._cookie = answer.cookies["webvpn"]
        self.addresses = [self._connect()]

    def _connect(self) -> str:
        self.connection = Stranger(self._namespace)
        answer = self.connection.connect(self._cookie)
        assert answer.status == 200
        return answer.headers["x-cstp-address"]

    def come_back(self) -> None:
        """Wait until the server hangs up, and connect again."""
        with suppress(OSError):
            assert self.connection.tls.recv(4096) == b""
        self.connection.tls.close()
        self.addresses.append(self._connect())


@pytest.mark.once  # 45 s; the test above makes the same change of keys
def test_fifty_sessions_and_one_that_stays_away(site: Site) -> None:
    """All that come back have their addresses; of the one that does not, the report says so."""
    for user in USERS:
        site.daemons.add_user(user, PASSWORD)
    clients = [Returning(site, user) for user in USERS for _ in range(LOGINS)]
    back = clients[1:]  # the first is the one
    with ThreadPoolExecutor(len(back)) as threads:
        returned = [threads.submit(client.come_back) for client in back]
        rotations = rotate(site, "--all")
        for each in returned:
            each.result()
    assert len(rotations) == len(clients)
    (failed,) = (rotation for rotation in rotations if not rotation["rotated"])
    assert "did not come back" in failed["reason"]
    assert max(r["took_ms"] for r in rotations if r["rotated"]) < BACK_S * 1000
    assert all(len(set(client.addresses)) == 1 for client in back)
    assert len(site.daemons.sessions()) == len(back)
    for client in clients:
        client.connection.tls.close()
