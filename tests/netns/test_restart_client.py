"""Restarts of a client that nobody notices: same address, no prompt, nothing gets outside."""

import signal
from collections.abc import Callable, Iterator

import pytest

from tests.netns.client import INTERFACE, person_profile
from tests.netns.manager import ManagedClient, index_of
from tests.netns.site import Site
from tests.netns.transfer import Transfer, serve_transfers

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
PASSWORD = "correct horse"
STORED = ["helper", "session", "tun-0"]
SIZE = 200 << 20


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    site = make_site()
    site.daemons.add_user("bob", PASSWORD)
    serve_transfers(site.bed.server, site.gateway4)
    return site


@pytest.fixture(scope="module")
def _laptop(site: Site) -> Iterator[ManagedClient]:
    laptop = ManagedClient(site.bed.client)
    laptop.prepare()
    laptop.start_helper()
    yield laptop
    laptop.manager.close()


@pytest.fixture
def laptop(site: Site, _laptop: ManagedClient) -> Iterator[ManagedClient]:
    """A person's, who typed the password once; stopped afterwards, with nothing left."""
    _laptop.connect(person_profile(site.daemons, "bob"), passwords=[PASSWORD])
    yield _laptop
    if _laptop.vpnd.is_alive:
        _laptop.end(job="stop")
    _laptop.manager.release()
    _laptop.wait_undone()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_asks_for_no_password_and_breaks_no_connection(
    site: Site, laptop: ManagedClient, signum: int
) -> None:
    """The session goes on, and so does a download; its cookie was never on a disk."""
    before, link = site.session("bob"), laptop.link()
    assert laptop.manager.names == STORED
    transfer = Transfer.start(laptop.namespace, site.gateway4, up=0, down=SIZE)
    transfer.wait_mebibytes("down", 3)
    index, begun = index_of(laptop.namespace, INTERFACE), laptop.vpnd.begin
    laptop.end(signum)
    assert transfer.process.is_alive
    # meanwhile: what is to go inside has no other way
    assert laptop.device_to("192.0.2.80") == INTERFACE
    laptop.go_on()
    transfer.finish()
    after = site.session("bob")
    assert (after["id"], after["address4"]) == (before["id"], before["address4"])
    assert laptop.link()["inner"] == link["inner"]
    assert index_of(laptop.namespace, INTERFACE) == index
    assert "INFO logging-in" not in laptop.vpnd.text()
    assert "INFO logging-in" in laptop.vpnd.text(begun)
    assert laptop.manager.names == STORED


def test_a_stop_ends_the_session(site: Site, laptop: ManagedClient) -> None:
    """`systemctl stop` is meant: the server is told, and the cookie is forgotten."""
    laptop.end(job="stop")
    assert laptop.manager.names == ["helper", "tun-0"]
    laptop.manager.release()
    laptop.wait_undone()
    site.daemons.vpnd.wait_for("session closed")
    assert site.daemons.sessions() == []
    assert not laptop.link_is_up()


def test_down_ends_the_session(site: Site, laptop: ManagedClient) -> None:
    """Whoever asks for it by vpnctl means it too."""
    mark = site.daemons.vpnd.mark()
    laptop.vpnctl("down")
    assert laptop.vpnd.wait() == 0
    site.daemons.vpnd.wait_for("session closed", since=mark)
    assert "session" not in laptop.manager.names


def test_another_identity_does_not_go_on_with_the_session(
    site: Site, laptop: ManagedClient
) -> None:
    """The profile may have been changed before the restart: a cookie is one user's."""
    site.daemons.add_user("carol", PASSWORD)
    laptop.end()
    laptop.start(person_profile(site.daemons, "carol"), passwords=[PASSWORD])
    laptop.vpnd.wait_for(r"INFO connected\b")
    assert "INFO logging-in" in laptop.vpnd.text()
    assert site.session("carol")["address4"]


def test_a_restart_without_a_helper_to_go_on_with_makes_all_anew(
    site: Site, laptop: ManagedClient
) -> None:
    """Whatever was lost with it, the session was not."""
    laptop.end()
    laptop.helper.kill()
    laptop.undo()
    laptop.start_helper()
    laptop.go_on()
    assert "INFO logging-in" not in laptop.vpnd.text()
    site.bed.client.ping(site.gateway4)
    assert laptop.manager.names == STORED
