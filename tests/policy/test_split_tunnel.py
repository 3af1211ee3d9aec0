"""A server is believed about its own network and about nothing of ours."""

from dataclasses import replace
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.policy.split_tunnel import MAX_REASONS, MAX_ROUTES, Link, Offer, Unusable, Wishes, plan

OWN = ["192.168.1.5/24", "2001:db8:1::5/64"]
GATEWAY = "203.0.113.1"
OFFER = Offer("10.8.0.2", 24, "fd00:8::2", 64, 1400, [], [])
ONLY4 = replace(OFFER, address6="", prefix6=0)


def made(offer: Offer = OFFER, *, own: list[str] | None = None, **wishes: Any) -> Link:
    found = ["192.168.1.5/24", "2001:db8:1::5/64"] if own is None else own
    return plan(offer, Wishes(**wishes), own=found, gateway=GATEWAY)


def pushed(*include: str, exclude: tuple[str, ...] = ()) -> Offer:
    return replace(OFFER, include=include, exclude=exclude)


def test_a_server_without_routes_gets_everything() -> None:
    """The stock meaning; addresses are hosts' so that the kernel adds no route of its own."""
    link = made()
    assert link.addresses == ("10.8.0.2/32", "fd00:8::2/128")
    assert link.routes == ("0.0.0.0/0", "::/0")
    assert link.reasons == ()
    assert not link.block_ipv6


def test_ipv6_is_blocked_where_all_ipv4_is_inside() -> None:
    """Else every name with an AAAA record goes past the tunnel."""
    assert made(ONLY4).block_ipv6
    assert not made(ONLY4, block_ipv6=False).block_ipv6
    assert not made(replace(ONLY4, include=["172.16.0.0/12"])).block_ipv6


def test_routes_are_the_fewest_and_hold_the_inner_network() -> None:
    """Neighbours in the tunnel are reached also where the server forgets them."""
    link = made(pushed("172.16.0.0/24", "172.16.1.0/24", "172.16.0.7/32"))
    assert link.routes == ("10.8.0.0/24", "172.16.0.0/23", "fd00:8::/64")


def test_everything_may_be_forbidden() -> None:
    """Also in halves, or without saying so."""
    inner = ("10.8.0.0/24", "fd00:8::/64")
    for offer in (OFFER, pushed("0.0.0.0/0"), pushed("0.0.0.0/1", "128.0.0.0/1")):
        link = made(offer, default_route=False)
        assert link.routes == inner
        assert any("default_route" in reason for reason in link.reasons)


@pytest.mark.parametrize(
    "network",
    [
        "192.168.1.0/24",
        "192.168.1.1/32",
        "192.168.1.128/25",
        "2001:db8:1::/64",
        "127.0.0.0/8",
        "127.0.0.53/32",
        "::1/128",
        "169.254.0.0/16",
        "fe80::/10",
        "224.0.0.0/24",
        "ff02::/16",
        "240.0.0.0/8",
        "203.0.113.1/32",
    ],
)
def test_routes_for_what_is_not_the_servers_are_refused(network: str) -> None:
    """This host's own networks, loopback, links, groups, and the gateway itself."""
    link = made(pushed("172.16.0.0/12", network))
    assert link.routes == ("10.8.0.0/24", "172.16.0.0/12", "fd00:8::/64")
    (reason,) = link.reasons
    assert network in reason
    assert "refused" in reason


def test_the_profile_may_take_its_own_network_inside() -> None:
    """A stranger's network that has the address of the office is the office's then."""
    wished = (ip_network("192.168.1.0/24"),)
    link = made(pushed("172.16.0.0/12"), include=wished)
    assert link.routes == ("10.8.0.0/24", "192.168.1.0/24", "fd00:8::/64")


def test_an_inner_network_that_is_ours_is_not_routed() -> None:
    """Two home networks with the same numbers: the tunnel works, the printer too."""
    link = made(replace(pushed("172.16.0.0/12"), address4="192.168.1.77"))
    assert link.addresses[0] == "192.168.1.77/32"
    assert "192.168.1.0/24" not in link.routes
    assert any("192.168.1.0/24" in reason for reason in link.reasons)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"address4": "192.168.1.5"}, "already"),
        ({"address4": "203.0.113.1"}, "outer"),
        ({"address4": "127.0.0.1"}, "no host"),
        ({"address4": "0.0.0.0"}, "no host"),
        ({"address4": "224.0.0.1"}, "no host"),
        ({"address4": "10.8.0.2\n"}, "no address"),
        ({"address4": "", "address6": "::1"}, "no host"),
        ({"address4": "", "address6": "fe80::1"}, "no host"),
        ({"address4": "", "address6": ""}, "gives no address"),
        ({"prefix4": 33}, "no address"),
        ({"include": ["10.0.0.0/8"] * (MAX_ROUTES + 1)}, "routes"),
        ({"exclude": ["10.0.0.0/8"] * (MAX_ROUTES + 1)}, "excludes"),
    ],
)
def test_what_makes_no_tunnel_is_refused(changes: dict[str, Any], words: str) -> None:
    """The reason says what the server gave."""
    with pytest.raises(Unusable, match=words):
        made(replace(OFFER, **changes))


@pytest.mark.parametrize(
    ("asked", "wished", "got"),
    [(0, 0, 1280), (65535, 0, 9000), (1400, 0, 1400), (1400, 1300, 1300), (1400, 9000, 1400)],
)
def test_the_mtu_stays_within_bounds(asked: int, wished: int, got: int) -> None:
    """Neither nothing fits nor do we believe in packets of 64 KiB."""
    assert made(replace(OFFER, mtu=asked), mtu=wished).mtu == got
    assert made(replace(ONLY4, mtu=0)).mtu == 576


def test_what_is_excluded_stays_outside() -> None:
    """The server's word and the profile's; nothing is both inside and outside."""
    link = made(pushed("10.0.0.0/8", exclude=("10.1.0.0/16", "172.16.0.0/12")))
    assert link.exclude == ("10.1.0.0/16",)
    link = made(pushed("10.0.0.0/8"), exclude=(ip_network("10.0.0.0/8"),))
    assert link.routes == ("fd00:8::/64",)
    assert link.exclude == ()
    assert made(exclude=(ip_network("192.168.1.0/24"),)).exclude == ("192.168.1.0/24",)


@pytest.mark.parametrize(
    "exclude", [("0.0.0.0/0",), ("0.0.0.0/1", "128.0.0.0/1"), ("::/0", "nonsense", "1.2.3.4/99")]
)
def test_a_server_cannot_send_everything_outside(exclude: tuple[str, ...]) -> None:
    """A tunnel that was asked for and holds nothing would be a leak."""
    link = made(pushed(exclude=exclude))
    assert link.routes == ("0.0.0.0/0", "::/0")
    assert link.exclude == ()
    assert link.reasons


def test_the_profiles_includes_are_not_excluded_by_the_server() -> None:
    """Who asks for everything inside gets everything inside."""
    link = made(pushed("10.0.0.0/8", exclude=("8.8.8.8/32",)), include=())
    assert link.routes == ("0.0.0.0/0", "::/0")
    assert link.exclude == ()


def test_reasons_are_bounded() -> None:
    """They are logged and shown."""
    link = made(pushed(*(f"127.0.{n // 256}.{n % 256}/32" for n in range(1000))))
    assert len(link.reasons) == MAX_REASONS + 1
    assert "980 more" in link.reasons[-1]


NETWORKS = st.one_of(
    st.ip_addresses(v=4).flatmap(
        lambda a: st.integers(0, 32).map(lambda n: f"{ip_interface((a, n)).network}")
    ),
    st.ip_addresses(v=6).flatmap(
        lambda a: st.integers(0, 128).map(lambda n: f"{ip_interface((a, n)).network}")
    ),
    st.text(max_size=12),
)


@given(
    include=st.lists(NETWORKS, max_size=12),
    exclude=st.lists(NETWORKS, max_size=8),
    default_route=st.booleans(),
    mtu=st.integers(0, 70000),
)
def test_no_offer_breaks_the_rules(
    include: list[str], exclude: list[str], default_route: bool, mtu: int
) -> None:
    """Whatever a server says: sound networks, none twice, nothing of this host, no reason lost."""
    offer = replace(OFFER, include=include, exclude=exclude, mtu=mtu)
    link = made(offer, default_route=default_route)
    routes, out = [[ip_network(n) for n in names] for names in (link.routes, link.exclude)]
    assert not set(routes) & set(out)
    assert 576 <= link.mtu <= 9000
    assert default_route or all(route.prefixlen for route in routes)
    for text in OWN:
        own = ip_interface(text)
        same = [route for route in routes if route.version == own.version]
        assert not any(route.prefixlen >= own.network.prefixlen and own.ip in route
                       for route in same)  # fmt: skip
