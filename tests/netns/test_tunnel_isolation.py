"""Two clients on one server: neither can be the other."""

from collections.abc import Callable

import pytest

from tests.netns.site import Site

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    site = make_site(clients=2)
    for index, name in enumerate(("alice", "bob")):
        client = site.connect(index, certificate=site.daemons.add_client(name))
        client.wait_connected()
    return site


def drops(site: Site, user: str) -> int:
    counts: dict[str, int] = site.session(user)["drops"]
    return counts.get("inner-source", 0)


def test_both_are_connected_with_addresses_of_their_own(site: Site) -> None:
    """The server tells them apart, and so does its status."""
    sessions = {name: site.session(name) for name in ("alice", "bob")}
    assert sessions["alice"]["address4"] != sessions["bob"]["address4"]
    assert sessions["alice"]["address6"] != sessions["bob"]["address6"]
    for client in site.bed.clients:
        client.ping(site.gateway4)
        client.ping(site.gateway6)
    listed = site.daemons.vpnctl("status").stdout
    assert "alice" in listed
    assert "bob" in listed


@pytest.mark.parametrize("family", ["address4", "address6"])
def test_packets_under_the_others_address_are_dropped_and_counted(site: Site, family: str) -> None:
    """Who could send under another's address could answer in its place."""
    stolen = site.session("alice")[family]
    length, gateway = (32, site.gateway4) if family == "address4" else (128, site.gateway6)
    bob = site.bed.clients[1]
    before = drops(site, "bob")
    nodad = "" if family == "address4" else "nodad"
    bob.ip(f"address add {stolen}/{length} dev tun0 {nodad}")
    try:
        ping = bob.run(
            "ping", "-c", "3", "-i", "0.2", "-W", "1", "-I", stolen, gateway, check=False
        )
    finally:
        bob.ip(f"address del {stolen}/{length} dev tun0")
    assert " 0 received" in ping.stdout
    assert drops(site, "bob") >= before + 3
    assert drops(site, "alice") == 0
    assert "inner-source" in site.daemons.vpnctl("status").stdout
    for client in site.bed.clients:
        client.ping(gateway)


def test_clients_do_not_reach_each_other_unless_allowed(site: Site) -> None:
    """`network.client_to_client` is off by default."""
    for family in ("address4", "address6"):
        other = site.session("alice")[family]
        ping = site.bed.clients[1].run(
            "ping", "-c", "2", "-i", "0.2", "-W", "1", other, check=False
        )
        assert " 0 received" in ping.stdout
