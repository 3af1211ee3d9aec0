"""Our client and our server: logins, addresses, routes, bulk data, UDP that dies, a crash."""

import ipaddress
from collections.abc import Callable, Iterator

import pytest

from tests.netns.bed import SERVER4, SERVER6, WEB4, WEB6
from tests.netns.client import Client, Profile, device_profile, new_client, person_profile
from tests.netns.site import QUICK_TIMERS, Site
from tests.netns.transfer import Transfer, serve_transfers
from tests.netns.web import fetch

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]
NETWORK = {
    "ipv4": "10.9.0.0/24",
    "ipv6": "fd00:9::/64",
    "mtu": 1340,
    "dns": ["192.0.2.53"],
    "exclude": ["192.0.2.128/25"],
}
PASSWORD = "correct horse battery staple"
SIZE = 100 << 20
IMPOSTOR = "pin-sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
FALL_BACK_S = 10.0
UDP_IS_BACK_S = 40.0


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    site = make_site(config={"network": NETWORK, "session": QUICK_TIMERS})
    site.daemons.add_user("bob", PASSWORD)
    serve_transfers(site.bed.server, site.gateway4)
    serve_transfers(site.bed.server, site.gateway6)
    site.bed.start_web()
    return site


@pytest.fixture(scope="module")
def laptop(site: Site) -> Profile:
    return device_profile(site.daemons, "laptop", user="alice")


@pytest.fixture(scope="module")
def _client(site: Site) -> Client:
    return new_client(site.bed.client)


@pytest.fixture
def client(_client: Client) -> Iterator[Client]:
    """A client that may be started; it has ended after the test."""
    yield _client
    if _client.vpnd.is_alive:
        _client.vpnd.kill()
    _client.wait_undone()


def test_a_certificate_suffices_and_what_the_server_gives_is_set_up(
    site: Site, client: Client, laptop: Profile
) -> None:
    """Addresses, MTU and routes are in force; the status of both ends tells the same."""
    client.connect(laptop)
    link, status = client.link(), client.status()
    assert link["mtu"] == 1340
    assert set(status["addresses"]) == link["inner"]
    inner = [ipaddress.ip_interface(address) for address in link["inner"]]
    pools = [ipaddress.ip_network("10.9.0.0/24"), ipaddress.ip_network("fd00:9::/64")]
    assert all(any(address.ip in pool for pool in pools) for address in inner)
    assert {address.version for address in inner} == {4, 6}
    session = site.session("alice")
    assert {str(a.ip) for a in inner} == {session["address4"], session["address6"]}
    assert (session["client"], session["method"]) == ("laptop", "certificate")

    assert client.device_to(WEB4) == client.device_to(WEB6) == "pyvpn10"
    assert client.device_to(SERVER4, user="pyvpn-client") == "uplink"
    assert client.device_to("192.0.2.200") == "uplink"
    assert status["client"]["dns"] == ["192.0.2.53"]
    assert fetch(site.bed.client, WEB4) == SERVER4
    assert fetch(site.bed.client, WEB6) == SERVER6

    client.wait_dtls()
    ours, theirs = client.session(), site.session("alice")
    for same in ("channel", "cipher", "tls_version", "tls_cipher", "key_exchange_group"):
        assert ours[same] == theirs[same], same
    assert (ours["channel"], ours["tls_version"]) == ("DTLS", "TLSv1.3")
    print("key exchange:", ours["key_exchange_group"], "data:", ours["cipher"])

    assert client.stop() == 0
    assert site.daemons.sessions() == []


def test_hybrid_key_exchange_is_named_where_the_library_has_it(
    site: Site, client: Client, laptop: Profile
) -> None:
    """What was recorded today is not to be read by tomorrow's machines."""
    from cryptography.hazmat.backends.openssl.backend import backend

    client.connect(laptop)
    has_it = backend.openssl_version_number() >= 0x30500000
    expected = "X25519MLKEM768" if has_it else "X25519"
    assert client.session()["key_exchange_group"].upper() == expected
    assert site.session("alice")["key_exchange_group"].upper() == expected


def test_a_wrong_password_then_the_right_one(site: Site, client: Client) -> None:
    """The lines of --password-fd are tried one after the other, in one login."""
    client.connect(person_profile(site.daemons, "bob"), passwords=["wrong", PASSWORD])
    assert site.session("bob")["method"] == "password"
    assert client.logins() == 1
    site.bed.client.ping(site.gateway4)
    site.bed.client.ping(site.gateway6)


def test_wrong_passwords_end_it_with_a_reason(site: Site, client: Client) -> None:
    """Nobody is there to ask: it ends and does not knock for ever."""
    client.start(person_profile(site.daemons, "bob"), passwords=["wrong"])
    assert client.vpnd.wait(30) != 0
    assert "disconnected for good" in client.vpnd.text()
    assert "wrong" not in client.vpnd.text().replace("wrong password", "")
    assert site.daemons.sessions() == []


def test_a_server_with_another_key_is_told_nothing(
    site: Site, client: Client, laptop: Profile
) -> None:
    """The pins tell the server from an impostor, who gets neither name nor certificate."""
    mark = site.daemons.vpnd.mark()
    remotes = [remote | {"pins": [IMPOSTOR]} for remote in laptop["remotes"]]
    client.start(laptop | {"remotes": remotes})
    client.vpnd.wait_for("not trusted.*pin", timeout_s=20)
    assert "pin" in client.wait_state("waiting")["reason"]
    assert "alice" not in site.daemons.vpnd.text(mark)
    assert site.daemons.sessions() == []


def test_the_server_is_reached_over_ipv6(site: Site, client: Client, laptop: Profile) -> None:
    """The outer network may be IPv6 alone."""
    remotes = [r | {"address": f"[{SERVER6}]:55555"} for r in laptop["remotes"]]
    client.connect(laptop | {"remotes": remotes})
    client.wait_dtls()
    site.bed.client.ping(site.gateway4)
    assert site.session("alice")["outer"].startswith("[2001:db8:1:1::2]:")


@pytest.mark.parametrize("channel", ["DTLS", "TLS"])
def test_100_megabytes_each_way_arrive_unharmed(
    site: Site, client: Client, laptop: Profile, channel: str
) -> None:
    """Both channels carry bulk data of both families."""
    client.connect(laptop | {"dtls": {"enabled": channel == "DTLS"}})
    if channel == "DTLS":
        client.wait_dtls()
    took = Transfer.start(site.bed.client, site.gateway4, up=SIZE, down=SIZE).finish()
    for way in ("up", "down"):
        print(f"{channel} {way}: {took[way] * 8 / took[f'{way}_s'] / 1e6:.0f} Mbit/s")
    Transfer.start(site.bed.client, site.gateway6, up=SIZE // 4, down=SIZE // 4).finish()
    session = client.session()
    assert session["channel"] == site.session("alice")["channel"] == channel
    assert min(session["rx_bytes"], session["tx_bytes"]) > SIZE


def test_a_transfer_outlives_udp_and_udp_is_used_again(
    site: Site, client: Client, laptop: Profile
) -> None:
    """Blocked UDP costs seconds, not the session; TLS is a bridge and not the destination."""
    client.connect(laptop)
    client.wait_dtls()
    transfer = Transfer.start(site.bed.client, site.gateway4, up=SIZE, down=SIZE)
    transfer.wait_mebibytes("up", 10)
    site.bed.block_udp()
    try:
        transfer.wait_mebibytes("up", 100, timeout_s=60)
        client.wait_tls(timeout_s=FALL_BACK_S)
    finally:
        site.bed.unblock_udp()
    transfer.finish()
    client.wait_dtls(timeout_s=UDP_IS_BACK_S)
    assert client.logins() == 1
    assert site.channel("alice") == "DTLS"


def test_it_comes_back_by_its_cookie_after_the_server_was_killed(
    site: Site, client: Client, laptop: Profile
) -> None:
    """A crash of the server asks nobody to log in and changes nobody's address."""
    client.connect(laptop)
    before = site.session("alice")
    mark = client.vpnd.mark()
    site.daemons.vpnd.kill()
    client.wait_state("reconnecting", "waiting")
    site.daemons.start_vpnd()
    client.wait_connected(since=mark, timeout_s=30)
    after = site.session("alice")
    for kept in ("id", "address4", "address6"):
        assert after[kept] == before[kept]
    assert client.logins() == 1
    site.bed.client.ping(site.gateway4)


def test_a_revoked_certificate_ends_it_for_good(site: Site, client: Client) -> None:
    """A stolen laptop is out at once, and says so instead of knocking."""
    client.connect(device_profile(site.daemons, "stolen", user="carol"))
    site.daemons.vpnctl("client", "revoke", "stolen")
    assert client.vpnd.wait(30) == 1
    assert "the server ended the session" in client.vpnd.text()
    assert site.daemons.sessions() == []
    client.wait_undone()
