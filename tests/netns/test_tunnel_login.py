"""Stock openconnect logs in, is told its network, and leaves."""

import ipaddress
from collections.abc import Callable

import pytest

from tests.netns.daemons import Certificate
from tests.netns.site import Site

pytestmark = pytest.mark.netns

NETWORK = {
    "ipv4": "10.9.0.0/24",
    "ipv6": "fd00:9::/64",
    "mtu": 1340,
    "dns": ["192.0.2.53", "2001:db8:80::53"],
    "default_domain": "example.test",
    "routes": ["192.0.2.0/24", "2001:db8:80::/48"],
    "exclude": ["192.0.2.128/25"],
}
PASSWORD = "correct horse battery staple"
MakeSite = Callable[..., Site]


@pytest.fixture(scope="module")
def site(make_site: MakeSite) -> Site:
    site = make_site(config={"network": NETWORK})
    site.daemons.add_user("bob", PASSWORD)
    return site


@pytest.fixture(scope="module")
def alice(site: Site) -> Certificate:
    return site.daemons.add_client("laptop", "--user", "alice")


def test_a_certificate_suffices_and_the_script_is_told_everything(
    site: Site, alice: Certificate
) -> None:
    """Address, routes, DNS and MTU reach the client's script as stock clients name them."""
    client = site.connect(certificate=alice)
    env = client.wait_connected()
    address4 = ipaddress.ip_address(env["INTERNAL_IP4_ADDRESS"])
    assert address4 in ipaddress.ip_network("10.9.0.0/24")
    assert env["INTERNAL_IP4_NETMASK"] == "255.255.255.0"
    address6 = ipaddress.ip_interface(env["INTERNAL_IP6_NETMASK"])
    assert address6.ip in ipaddress.ip_network("fd00:9::/64")
    assert env["INTERNAL_IP4_MTU"] == "1340"
    assert env["INTERNAL_IP4_DNS"].split() == ["192.0.2.53", "2001:db8:80::53"]
    assert env["CISCO_DEF_DOMAIN"] == "example.test"
    assert (env["CISCO_SPLIT_INC"], env["CISCO_SPLIT_INC_0_ADDR"]) == ("1", "192.0.2.0")
    assert (env["CISCO_SPLIT_EXC"], env["CISCO_SPLIT_EXC_0_ADDR"]) == ("1", "192.0.2.128")
    assert env["CISCO_IPV6_SPLIT_INC_0_ADDR"] == "2001:db8:80::"

    session = site.session("alice")
    assert (session["client"], session["method"]) == ("laptop", "certificate")
    assert session["address4"] == str(address4)
    assert session["address6"] == str(address6.ip)
    assert session["outer"].startswith("198.51.100.2:")
    assert session["tls_version"] == "TLSv1.3"

    assert client.disconnect() == 0
    assert site.daemons.sessions() == []


def test_a_password_suffices(site: Site) -> None:
    """A user without a certificate logs in by name and password."""
    client = site.connect(user="bob", passwords=[PASSWORD])
    client.wait_connected()
    session = site.session("bob")
    assert (session["client"], session["method"]) == (None, "password")
    site.bed.client.ping(site.gateway4)
    site.bed.client.ping(site.gateway6)
    client.disconnect()


def test_a_wrong_password_then_the_right_one(site: Site) -> None:
    """Who mistypes is asked again, in the same login."""
    client = site.connect(user="bob", passwords=["wrong", PASSWORD])
    client.wait_connected()
    client.disconnect()


@pytest.mark.parametrize("user", ["bob", "nobody"])
def test_three_wrong_passwords_end_the_login(site: Site, user: str) -> None:
    """An unknown user is refused in the same words as a wrong password."""
    mark = site.daemons.vpnd.mark()
    client = site.connect(user=user, passwords=["wrong", "wrong", "wrong", "wrong"])
    assert client.process.wait(30) == 1
    assert "Failed to complete authentication" in client.process.text()
    logged = site.daemons.vpnd.text(mark)
    assert user in logged
    assert "198.51.100.2" in logged
    assert site.daemons.sessions() == []


def test_a_revoked_certificate_ends_its_session_and_never_comes_back(site: Site) -> None:
    """A stolen laptop is out at once."""
    stolen = site.daemons.add_client("stolen", "--user", "carol")
    client = site.connect(certificate=stolen)
    client.wait_connected()
    site.daemons.vpnctl("client", "revoke", "stolen")
    assert client.process.wait(30) != 0
    assert site.daemons.sessions() == []

    mark = site.daemons.vpnd.mark()
    again = site.connect(certificate=stolen)
    assert again.process.wait(30) != 0
    logged = site.daemons.vpnd.text(mark)
    assert "carol" in logged
    assert "198.51.100.2" in logged


def test_a_server_with_another_key_is_not_talked_to(site: Site, alice: Certificate) -> None:
    """The pins in the profile are all that tells the server from an impostor."""
    impostor = "pin-sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    client = site.connect(pins=[impostor], certificate=alice)
    assert client.process.wait(30) == 1
    assert "match server's certificate" in client.process.text()


def test_the_server_is_reached_over_ipv6(site: Site, alice: Certificate) -> None:
    """The outer network may be IPv6 alone."""
    client = site.connect(certificate=alice, server="2001:db8:2::2")
    client.wait_connected()
    client.wait_dtls()
    assert site.channel("alice") == "DTLS"
    assert site.session("alice")["outer"].startswith("[2001:db8:1:1::2]:")
    client.disconnect()
