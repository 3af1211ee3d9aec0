"""When the server cannot be reached: status and log say so, and nobody knocks without end."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.netns.bed import PORT, SERVER4
from tests.netns.client import Client, Profile, device_profile, new_client
from tests.netns.namespace import PYTHON
from tests.netns.process import BedError
from tests.netns.site import QUICK_TIMERS, Site

pytestmark = [pytest.mark.netns, pytest.mark.once, pytest.mark.timeout(180)]
WATCHED_S = 4.0
TRIES = 7  # in WATCHED_S, with waits of 0.25 s at least that double
BUSY_S = 2.5  # CPU seconds in WATCHED_S; the start alone takes most of it
ELSEWHERE = 4444


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    return make_site(config={"session": QUICK_TIMERS})


@pytest.fixture(scope="module")
def alice(site: Site) -> Profile:
    return device_profile(site.daemons, "alice")


@pytest.fixture(scope="module")
def _client(site: Site) -> Client:
    return new_client(site.bed.client)


@pytest.fixture
def client(site: Site, _client: Client) -> Iterator[Client]:
    """A client that may be started."""
    yield _client
    if _client.vpnd.is_alive:
        _client.stop()
    _client.wait_undone()
    site.bed.mend()


def to(profile: Profile, address: str, **options: Any) -> Profile:
    """Return a profile that names another address."""
    remotes = [remote | {"address": address} for remote in profile["remotes"]]
    return profile | {"remotes": remotes} | options


def watch(client: Client) -> Mapping[str, Any]:
    """Return the state after a while in which it tried now and then, and slept otherwise."""
    client.wait_state("waiting")
    time.sleep(WATCHED_S)
    connection = client.connection
    assert connection["state"] in ("waiting", "connecting", "reconnecting")
    assert 1 <= connection["attempt"] <= TRIES
    assert connection["reason"]
    assert client.link_is_up()
    told = re.findall(r"WARNING waiting: (.*)", client.vpnd.text())
    assert 1 <= len(told) <= 2  # once for each reason, not for each try
    assert "address=" in told[-1]
    assert connection["reason"][:30] in told[-1]
    assert client.cpu_s() < BUSY_S
    print(f"attempt {connection['attempt']}, {client.cpu_s():.1f} s CPU: {connection['reason']}")
    return connection


def test_a_server_that_is_not_there_at_the_start_is_waited_for(
    site: Site, client: Client, alice: Profile
) -> None:
    """Nobody listens yet: refused connections; then it is there."""
    site.daemons.vpnd.stop()
    client.start(alice)
    connection = watch(client)
    assert "refused" in connection["reason"].lower()
    site.daemons.start_vpnd()
    client.wait_connected(timeout_s=40)
    assert client.connection["reason"] == ""


def test_a_network_that_swallows_everything_is_waited_for(
    site: Site, client: Client, alice: Profile
) -> None:
    """No answer at all, at the start and in the middle; afterwards the same address."""
    site.bed.cut()
    client.start(alice)
    # its log, not its status: the first wait is over in half a second
    client.vpnd.wait_for("waiting: .*time", timeout_s=40)
    site.bed.mend()
    client.wait_connected(timeout_s=40)
    client.wait_dtls()
    inner = client.link()["inner"]

    mark, began = client.vpnd.mark(), time.monotonic()
    site.bed.cut()
    client.vpnd.wait_for("connection lost.*does not answer", since=mark, timeout_s=40)
    print(f"noticed after {time.monotonic() - began:.0f} s")
    client.wait_state("waiting", "reconnecting")
    assert client.link()["inner"] == inner
    site.bed.mend()
    client.wait_connected(since=mark, timeout_s=60)
    assert client.link()["inner"] == inner
    assert client.logins() == 1
    site.bed.client.ping(site.gateway4)


def test_a_server_that_is_gone_for_good_ends_it_when_the_profile_says_so(
    site: Site, client: Client, alice: Profile
) -> None:
    """Otherwise it tries for ever."""
    client.connect(alice | {"session": {"reconnect_timeout_s": 10}})
    mark = client.vpnd.mark()
    site.daemons.vpnd.kill()
    try:
        assert client.vpnd.wait(60) == 1
        client.vpnd.wait_for("disconnected for good.*not connected within 10 s", since=mark)
        client.wait_undone()
    finally:
        site.daemons.start_vpnd()


def test_a_name_that_does_not_resolve_is_asked_again(client: Client, alice: Profile) -> None:
    """DNS is dead: said so, and tried again."""
    client.start(to(alice, f"vpn.invalid:{PORT}"))
    connection = watch(client)
    assert "vpn.invalid is not resolved" in connection["reason"]


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_a_captive_portal_is_recognised_and_told_nothing(
    site: Site, client: Client, alice: Profile, kind: str
) -> None:
    """HTML instead of TLS, or another certificate: neither gets a request, nor a busy client."""
    pair = [str(site.bed.folder / f"portal.{what}") for what in ("crt", "key")]
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=portal"
    site.bed.server.run(*make.split(), "-out", pair[0], "-keyout", pair[1])
    arguments = [kind, SERVER4, str(ELSEWHERE), *(pair if kind == "tls" else ())]
    portal = site.bed.server.start("portal", *PYTHON, "tests.netns.captive", *arguments)
    portal.wait_for("^ready")
    try:
        client.start(to(alice, f"{SERVER4}:{ELSEWHERE}"))
        connection = watch(client)
        assert re.search("TLS" if kind == "plain" else "pin", connection["reason"])
        assert 1 <= portal.text().count("connection") <= TRIES
        assert "asked" not in portal.text()
    finally:
        portal.kill()


def test_a_web_server_with_the_right_key_is_no_vpn_server(
    site: Site, client: Client, alice: Profile
) -> None:
    """HTML where a login was expected."""
    state = site.daemons.folder / "state"
    pair = (str(state / "server.crt"), str(state / "server.key"))
    arguments = ["tls", SERVER4, str(ELSEWHERE), *pair]
    portal = site.bed.server.start("portal", *PYTHON, "tests.netns.captive", *arguments)
    portal.wait_for("^ready")
    try:
        client.start(to(alice, f"{SERVER4}:{ELSEWHERE}"))
        assert "web page" in watch(client)["reason"]
        assert "asked POST" in portal.text()
    finally:
        portal.kill()


def test_nothing_said_is_nothing_lost(client: Client, alice: Profile) -> None:
    """Ctrl-C while it waits ends it at once."""
    client.start(to(alice, f"{SERVER4}:{ELSEWHERE}"))
    client.wait_state("waiting")
    began = time.monotonic()
    try:
        assert client.stop() == 0
    except BedError as exc:
        pytest.fail(str(exc))
    assert time.monotonic() - began < 5
