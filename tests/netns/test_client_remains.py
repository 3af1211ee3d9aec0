"""What a client leaves of itself: nothing, in good order or not, with all traffic inside."""

from collections.abc import Callable, Iterator

import pytest

from tests.netns.bed import WEB4
from tests.netns.client import INTERFACE, Client, Profile, device_profile, new_client
from tests.netns.site import Site
from tests.netns.snapshot import State, differences, snapshot

pytestmark = [pytest.mark.netns, pytest.mark.once, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


@pytest.fixture(scope="module")
def alice(site: Site) -> Profile:
    return device_profile(site.daemons, "alice")


@pytest.fixture(scope="module")
def before(site: Site) -> State:
    """The host's network without a client."""
    return snapshot(site.bed.client)


@pytest.fixture(scope="module")
def _client(site: Site, before: State) -> Client:
    assert before
    return new_client(site.bed.client)


@pytest.fixture
def client(site: Site, before: State, _client: Client, alice: Profile) -> Iterator[Client]:
    """A client through which everything goes."""
    if not _client.helper.is_alive:
        _client.start_helper()
    _client.connect(alice)
    assert _client.device_to(WEB4) == INTERFACE
    site.bed.client.ping(site.gateway4)
    assert differences(before, snapshot(site.bed.client))
    yield _client
    for program in (_client.vpnd, _client.helper):
        if program.is_alive:
            program.kill()


def test_a_stop_leaves_nothing_behind(site: Site, before: State, client: Client) -> None:
    """Ctrl-C: the server is told, and the old network is back."""
    assert client.stop() == 0
    client.wait_undone()
    assert differences(before, snapshot(site.bed.client)) == []
    assert site.daemons.sessions() == []


def test_vpnctl_down_leaves_nothing_behind(site: Site, before: State, client: Client) -> None:
    """It returns when the old network is back, not before."""
    client.vpnctl("down")
    client.vpnd.wait()
    client.wait_undone()
    assert differences(before, snapshot(site.bed.client)) == []


def test_kill_9_of_vpnd_leaves_nothing_behind(site: Site, before: State, client: Client) -> None:
    """The helper undoes what was asked for when the one who asked is gone."""
    client.vpnd.kill()
    client.wait_undone()
    assert differences(before, snapshot(site.bed.client)) == []


def test_kill_9_of_the_helper_harms_no_traffic(site: Site, before: State, client: Client) -> None:
    """Traffic goes on; the helper that comes back is told the whole state, and undoes it."""
    client.helper.kill()
    site.bed.client.ping(site.gateway4)
    client.start_helper()
    client.vpnd.wait_for("the helper is back", timeout_s=20)
    site.bed.client.ping(site.gateway4)
    assert client.device_to(WEB4) == INTERFACE
    client.stop()
    client.wait_undone()
    assert differences(before, snapshot(site.bed.client)) == []


def test_kill_9_of_both_leaves_nothing_behind_after_clean(
    site: Site, before: State, client: Client
) -> None:
    """The journal on disk outlives everybody who could have cleaned up."""
    client.helper.kill()
    client.vpnd.kill()
    client.undo()
    assert differences(before, snapshot(site.bed.client)) == []
