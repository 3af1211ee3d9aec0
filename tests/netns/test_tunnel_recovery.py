"""What a stock client lives through: UDP that dies and comes back, a server that dies."""

from collections.abc import Callable

import pytest

from tests.netns.daemons import Certificate
from tests.netns.site import QUICK_TIMERS, Site
from tests.netns.transfer import Transfer, serve_transfers

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]
SIZE = 100 << 20
UDP_IS_BACK_S = 150.0  # openconnect tries DTLS at once for 12 s, and again 60 s later


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    return make_site(config={"session": QUICK_TIMERS})


@pytest.fixture(scope="module")
def alice(site: Site) -> Certificate:
    return site.daemons.add_client("alice")


def test_a_transfer_outlives_udp(site: Site, alice: Certificate) -> None:
    """Blocked UDP costs seconds, not the session."""
    serve_transfers(site.bed.server, site.gateway4)
    client = site.connect(certificate=alice)
    client.wait_connected()
    client.wait_dtls()
    transfer = Transfer.start(site.bed.client, site.gateway4, up=SIZE, down=SIZE)
    transfer.wait_mebibytes("up", 10)
    site.bed.block_udp()
    transfer.wait_mebibytes("down", 10, timeout_s=90)
    assert site.session("alice")["channel"] == "TLS"
    transfer.finish()
    client.disconnect()
    site.bed.unblock_udp()


def test_udp_is_used_again_when_it_is_back(site: Site, alice: Certificate) -> None:
    """TLS is a bridge and not the destination."""
    client = site.connect(certificate=alice)
    client.wait_connected()
    client.wait_dtls()
    blocked = client.process.mark()
    site.bed.block_udp()
    client.process.wait_for("DTLS Dead Peer Detection detected dead peer", since=blocked)
    site.bed.client.run("ping", "-c", "1", "-w", "20", site.gateway4)  # until one comes back
    assert site.session("alice")["channel"] == "TLS"

    site.bed.unblock_udp()
    client.wait_dtls(since=blocked, timeout_s=UDP_IS_BACK_S)
    assert site.channel("alice") == "DTLS"
    client.disconnect()


def test_a_client_comes_back_by_its_cookie_after_vpnd_was_killed(
    site: Site, alice: Certificate
) -> None:
    """A crash of the server asks nobody for a password and changes nobody's address."""
    client = site.connect(certificate=alice)
    env = client.wait_connected()
    mark = client.process.mark()
    site.daemons.vpnd.kill()
    site.daemons.start_vpnd()
    client.wait_reconnected(since=mark)
    session = site.session("alice")
    assert session["address4"] == env["INTERNAL_IP4_ADDRESS"]
    assert session["address6"] == env["INTERNAL_IP6_ADDRESS"]
    site.bed.client.ping(site.gateway4)
    client.disconnect()


def test_a_client_that_vanished_gets_its_address_again(site: Site, alice: Certificate) -> None:
    """A device keeps its address from session to session."""
    first = site.connect(certificate=alice)
    address = first.wait_connected()["INTERNAL_IP4_ADDRESS"]
    first.vanish()
    second = site.connect(certificate=alice)
    assert second.wait_connected()["INTERNAL_IP4_ADDRESS"] == address
    site.bed.client.ping(site.gateway4)
    second.disconnect()
