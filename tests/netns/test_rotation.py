"""New keys on request, seen from outside: stock clients come back, cookies change."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.netns.returning import cookies
from tests.netns.site import Site
from tests.netns.stranger import Answer, Stranger
from vpnd.wire import cstp
from vpnd.wire.cstp import PacketType

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
BACK_S = 5.0  # a stock client is to carry packets again
ALLOWANCE = 3  # times the promise, on a machine that is busy with something else
OWN = ("X-Pyvpn-Version", "1")
REKEY = ("X-Pyvpn-Rekey", "1")
QUESTION = cstp.encode(PacketType.DPD_REQUEST, b"?")


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


def test_a_stock_client_is_back_within_seconds_and_keeps_its_address(site: Site) -> None:
    """Nobody logs in again, and what ran over the tunnel goes on."""
    client = site.connect(certificate=site.daemons.add_client("alice"))
    client.wait_connected()
    client.wait_dtls()
    before = site.session("alice")
    mark = client.process.mark()
    began = time.monotonic()
    said = site.daemons.vpnctl("--json", "rotate-keys", "--all", check=False)
    (rotation,) = json.loads(said.stdout)["rotations"]
    site.bed.client.run("ping", "-c", "1", "-i", "0.2", "-w", "20", site.gateway4)
    took = time.monotonic() - began
    print(f"packets again after {took:.1f} s")
    assert took < BACK_S * ALLOWANCE
    assert (rotation["session"], rotation["user"]) == (before["id"], "alice")
    assert (rotation["rotated"], rotation["overlapped"]) == (True, False)
    client.wait_reconnected(since=mark)
    client.wait_dtls(since=mark)
    after = site.session("alice")
    for kept in ("id", "address4", "address6"):
        assert after[kept] == before[kept]
    client.disconnect()


def test_with_new_keys_a_client_of_ours_gets_a_new_cookie(site: Site, held: ExitStack) -> None:
    """Both are good until its first packet shows that it has it; a restart forgets neither."""
    (first,) = cookies(site.daemons, 1)

    def asked(cookie: str, *headers: tuple[str, str]) -> tuple[Stranger, Answer]:
        client = held.enter_context(Stranger(site.bed.client))
        return client, client.connect(cookie, [OWN, *headers])

    _, given = asked(first)
    assert "x-pyvpn-cookie" not in given.headers
    _, lost = asked(first, REKEY)  # the client never reads this answer
    site.daemons.vpnd.kill()
    site.daemons.start_vpnd()
    _, again = asked(first)
    assert (again.status, asked(lost.headers["x-pyvpn-cookie"])[1].status) == (200, 401)

    new, answer = asked(first, REKEY)
    second = answer.headers["x-pyvpn-cookie"]
    new.send(QUESTION)
    assert new.tls.recv(64) == cstp.encode(PacketType.DPD_RESPONSE, b"?")
    assert asked(first)[1].status == 401
    site.daemons.vpnd.kill()
    site.daemons.start_vpnd()
    assert asked(first)[1].status == 401
    _, back = asked(second)
    assert back.status == 200
    assert back.headers["x-cstp-address"] == given.headers["x-cstp-address"]
