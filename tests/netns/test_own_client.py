"""Our client against our server: it connects, carries packets, and leaves nothing behind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.bed import PORT, SERVER4, WEB4
from tests.netns.own_client import OwnClient
from tests.netns.site import Site
from tests.netns.snapshot import differences, snapshot

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    site = make_site(config={"server": {"remotes": [f"{SERVER4}:{PORT}"]}})
    site.daemons.add_user("bob", "correct horse")
    return site


@pytest.fixture(scope="module")
def profile(site: Site) -> Path:
    folder = site.daemons.folder / "profiles"
    site.daemons.vpnctl("client", "add", "alice", "--output", str(folder))
    return folder / "alice.toml"


def test_a_profile_is_all_it_takes(site: Site, profile: Path) -> None:
    """Certificate, pins, DTLS, everything inside, and nothing left afterwards."""
    client = site.bed.client
    before = snapshot(client)
    own = OwnClient(client, "profile")
    own.prepare()
    own.start_helper()
    own.start(profile)
    client.ping(site.gateway4)
    client.ping(site.gateway6)
    client.ping(WEB4)
    status = own.status()
    (session,) = status["sessions"]
    assert status["state"] == "up"
    assert session["channel"] == "DTLS"
    assert session["tls_version"] == "TLSv1.3"
    assert session["user"] == "alice"
    assert json.loads(json.dumps(status["client"]["routes"])) == ["0.0.0.0/0", "::/0"]
    own.stop()
    assert differences(before, snapshot(client)) == []


def test_a_url_a_pin_and_a_password_do_too(site: Site) -> None:
    """Without any file."""
    client = site.bed.client
    own = OwnClient(client, "url")
    own.prepare()
    own.start_helper()
    pins = [word for pin in site.daemons.pins() for word in ("--pin", pin)]
    own.start(
        f"https://{SERVER4}:{PORT}", "--user", "bob", *pins, password="correct horse\n"
    )  # fmt: skip
    client.ping(site.gateway4)
    own.stop()
