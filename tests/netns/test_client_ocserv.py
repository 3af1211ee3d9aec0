"""Our client and Debian's ocserv: its stock configuration (TLS 1.2), and TLS 1.3."""

from collections.abc import Callable, Iterator

import pytest

from tests.netns.bed import Bed
from tests.netns.client import Client, new_client
from tests.netns.ocserv import TARGET, TLS13, Ocserv
from tests.netns.transfer import Transfer, serve_transfers

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]
PASSWORD = "correct horse battery staple"
SIZE = 100 << 20
VERSIONS = {"TLSv1.2": {}, "TLSv1.3": TLS13}


@pytest.fixture(scope="module")
def bed(make_bed: Callable[[int], Bed]) -> Bed:
    bed = make_bed(1)
    bed.server.sysctl("net/ipv4/ip_forward", "1")
    return bed


@pytest.fixture(scope="module", params=["TLSv1.2", "TLSv1.3"])
def version(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def _ocserv(bed: Bed) -> Ocserv:
    ocserv = Ocserv(bed.server)
    ocserv.prepare()
    ocserv.add_user("bob", PASSWORD)
    serve_transfers(bed.server, TARGET)
    return ocserv


@pytest.fixture(scope="module")
def ocserv(_ocserv: Ocserv, version: str) -> Iterator[Ocserv]:
    _ocserv.start(**VERSIONS[version])
    yield _ocserv
    _ocserv.stop()


@pytest.fixture(scope="module")
def _client(bed: Bed) -> Client:
    return new_client(bed.client)


@pytest.fixture
def client(_client: Client) -> Iterator[Client]:
    """A client that may be started; it has said good-bye after the test."""
    yield _client
    if _client.vpnd.is_alive:
        _client.stop()
    _client.wait_undone()


def test_a_certificate_suffices(client: Client, ocserv: Ocserv, version: str) -> None:
    """CA and name tell the server; the certificate's name is the user."""
    client.connect(ocserv.profile(user="carol", certificate=True))
    client.namespace.ping(TARGET)
    assert client.session()["tls_version"] == version
    (user,) = ocserv.users()
    assert user["Username"] == "carol"
    assert client.device_to(TARGET) == "pyvpn10"
    assert client.stop() == 0


def test_a_wrong_password_then_the_right_one(client: Client, ocserv: Ocserv) -> None:
    """Its login asks in two steps, and loses its place after a wrong password."""
    profile = ocserv.profile(user="bob")
    client.connect(profile, passwords=["wrong", PASSWORD])
    client.namespace.ping(TARGET)
    (user,) = ocserv.users()
    assert user["Username"] == "bob"


@pytest.mark.parametrize("channel", ["DTLS", "TLS"])
def test_100_megabytes_each_way_arrive_unharmed(
    client: Client, ocserv: Ocserv, version: str, channel: str
) -> None:
    """Both channels carry bulk data, and ocserv's own status names the channel."""
    profile = ocserv.profile(user="bob") | {"dtls": {"enabled": channel == "DTLS"}}
    client.connect(profile, passwords=[PASSWORD])
    if channel == "DTLS":
        client.wait_dtls()
        client.namespace.ping(TARGET)
    (user,) = ocserv.users()
    assert ("PSK" in str(user.get("DTLS cipher", ""))) == (channel == "DTLS"), user
    took = Transfer.start(client.namespace, TARGET, up=SIZE, down=SIZE).finish()
    for way in ("up", "down"):
        rate = took[way] * 8 / took[f"{way}_s"] / 1e6
        print(f"ocserv {version} {channel} {way}: {rate:.0f} Mbit/s")
    assert client.session()["channel"] == channel


def test_it_comes_back_after_a_killed_worker(client: Client, ocserv: Ocserv) -> None:
    """The cookie outlives the process that carried us: same address, no new login."""
    client.connect(ocserv.profile(user="bob"), passwords=[PASSWORD])
    client.wait_dtls()
    inner, mark = client.link()["inner"], client.vpnd.mark()
    ocserv.kill_worker()
    client.wait_connected(since=mark)
    client.namespace.ping(TARGET)
    assert client.link()["inner"] == inner
    assert client.logins() == 1


def test_new_keys_do_not_end_the_session(client: Client, ocserv: Ocserv) -> None:
    """ocserv has no second tunnel of one session: it ends the old one when the new one comes."""
    client.connect(ocserv.profile(user="bob"), passwords=[PASSWORD])
    client.wait_dtls()
    inner = client.link()["inner"]
    for _ in range(5):  # which of the two it does first varies
        client.vpnctl("rotate-keys", check=False)
        client.namespace.run("ping", "-c", "1", "-w", "20", TARGET)
    assert client.vpnd.is_alive
    assert client.link()["inner"] == inner
    assert client.logins() == 1


def test_a_server_that_forgot_the_session_is_logged_in_to_again(
    client: Client, ocserv: Ocserv
) -> None:
    """ocserv keeps no cookies over a restart: certificate or password are shown once more."""
    for profile, passwords in (
        (ocserv.profile(user="carol", certificate=True), []),
        (ocserv.profile(user="bob"), [PASSWORD]),
    ):
        client.connect(profile, passwords=passwords)
        mark = client.vpnd.mark()
        ocserv.restart()
        client.wait_connected(since=mark, timeout_s=40)
        client.namespace.ping(TARGET)
        assert client.logins() == 2
        client.stop()
        client.wait_undone()


def test_an_end_that_the_administrator_means_is_one(client: Client, ocserv: Ocserv) -> None:
    """Who is thrown out does not come back by itself, and says why it ended."""
    client.connect(ocserv.profile(user="bob"), passwords=[PASSWORD])
    ocserv.disconnect("bob")
    assert client.vpnd.wait(30) == 1
    assert "the server ended the session" in client.vpnd.text()
