"""Bulk data through the tunnel, over UDP and over TCP, in both families."""

from collections.abc import Callable

import pytest

from tests.netns.bed import SERVER4, SERVER6, WEB4, WEB6
from tests.netns.daemons import Certificate
from tests.netns.site import Site
from tests.netns.transfer import Transfer, serve_transfers
from tests.netns.web import fetch

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]
SIZE = 100 << 20


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    site = make_site()
    serve_transfers(site.bed.server, site.gateway4)
    serve_transfers(site.bed.server, site.gateway6)
    site.bed.start_web()
    return site


@pytest.fixture(scope="module")
def alice(site: Site) -> Certificate:
    return site.daemons.add_client("alice")


@pytest.mark.parametrize("channel", ["DTLS", "TLS"])
def test_100_megabytes_each_way_arrive_unharmed(
    site: Site, alice: Certificate, channel: str
) -> None:
    """Both channels carry bulk data of both families, and status counts it."""
    client = site.connect(certificate=alice, dtls=channel == "DTLS")
    client.wait_connected()
    if channel == "DTLS":
        client.wait_dtls()
    assert site.channel("alice") == channel
    result = Transfer.start(site.bed.client, site.gateway4, up=SIZE, down=SIZE).finish()
    assert result["up"] == result["down"] == SIZE
    Transfer.start(site.bed.client, site.gateway6, up=SIZE // 4, down=SIZE // 4).finish()
    session = site.session("alice")
    assert session["channel"] == channel
    assert min(session["rx_bytes"], session["tx_bytes"]) > SIZE
    client.disconnect()


def test_the_internet_sees_the_server_in_both_families(site: Site, alice: Certificate) -> None:
    """Clients go out under the server's address."""
    client = site.connect(certificate=alice)
    client.wait_connected()
    assert fetch(site.bed.client, WEB4) == SERVER4
    assert fetch(site.bed.client, WEB6) == SERVER6
    client.disconnect()
