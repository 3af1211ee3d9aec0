"""Inner addresses: sticky, never shared, never those of the network itself."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.errors import ConfigError
from vpnd.policy.leases import (
    MAX_INDEX,
    MAX_SLOTS,
    Lease,
    Pool,
    PoolExhausted,
    assign,
    client_lease_key,
    ula_network,
    user_lease_key,
)

V6 = IPv6Network("fd12:3456:789a:1::/64")


def pool(text: str = "10.8.0.0/24") -> Pool:
    return Pool(IPv4Network(text), V6)


def test_the_server_has_the_first_address_and_both_families_share_an_index() -> None:
    """One number says who has 10.8.0.5 and who has ::5."""
    assert pool().server_addresses() == (IPv4Address("10.8.0.1"), IPv6Address(f"{V6[1]}"))
    assert pool().addresses(5) == (IPv4Address("10.8.0.5"), V6[5])
    assert Pool(None, V6).addresses(5) == (None, V6[5])
    assert Pool(IPv4Network("10.8.0.0/24"), None).addresses(5)[1] is None


@pytest.mark.parametrize("index", [-1, 0, 255, 256, 10**30])
def test_an_index_outside_the_pool_has_no_address(index: int) -> None:
    """A stale lease never becomes the network, the broadcast or a stranger's address."""
    with pytest.raises(ValueError, match="outside"):
        pool().addresses(index)


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "text"),
    [
        ("10.8.0.0/31", None, "network.ipv4: 10.8.0.0/31 has no room"),
        ("10.8.0.0/32", None, "use a /30 or wider"),
        (None, "fd00::/127", "network.ipv6: fd00::/127 has no room"),
        (None, None, "neither ipv4 nor ipv6"),
    ],
)
def test_a_network_without_room_is_a_configuration_error(
    ipv4: str | None, ipv6: str | None, text: str
) -> None:
    """It is said at the start, not at the first login."""
    with pytest.raises(ConfigError, match=text):
        Pool(
            None if ipv4 is None else IPv4Network(ipv4),
            None if ipv6 is None else IPv6Network(ipv6),
        )


def test_the_smallest_networks_serve_one_client() -> None:
    """/30: network, server, client, broadcast."""
    assert pool("10.8.0.0/30").capacity == 1
    assert pool("10.8.0.0/30").addresses(2)[0] == IPv4Address("10.8.0.2")
    assert Pool(None, IPv6Network("fd00::/126")).capacity == 2


def test_a_huge_network_is_bounded() -> None:
    """Nobody's lease table grows to 2**64 rows."""
    assert Pool(None, V6).last_index == MAX_INDEX
    assert assign(Pool(None, V6), "a", [], ()).index == 2


def test_a_key_keeps_its_index() -> None:
    """People write down the address of their printer."""
    leases = [Lease("a", 2, 1.0), Lease("b", 9, 1.0)]
    assert assign(pool(), "b", leases, ()).index == 9


def test_a_new_key_gets_the_lowest_free_index() -> None:
    """Idle leases are left alone as long as there is room."""
    leases = [Lease("a", 2, 1.0), Lease("b", 4, 1.0)]
    assert assign(pool(), "c", leases, ()).index == 3


def test_a_lease_beyond_a_smaller_network_is_given_up() -> None:
    """The operator made the network smaller; the client gets an address that exists."""
    assert assign(pool("10.8.0.0/29"), "a", [Lease("a", 200, 1.0)], ()).index == 2


def test_a_full_pool_takes_the_longest_unused_lease_not_in_use() -> None:
    """A session's address is never given away, also while its cookie may resume it."""
    leases = [Lease("a", 2, 1.0), Lease("b", 3, 9.0), Lease("c", 4, 5.0), Lease("d", 5, 6.0)]
    leases.append(Lease("e", 6, 7.0))
    small = pool("10.8.0.0/29")
    taken = assign(small, "new", leases, {"a", "c"})
    assert (taken.index, taken.taken_from) == (5, leases[3])
    with pytest.raises(PoolExhausted, match=r"all 5 addresses of 10\.8\.0\.0/29 .* widen"):
        assign(small, "new", leases, {"a", "b", "c", "d", "e"})


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=60))
def test_two_sessions_never_share_an_address(steps: list[tuple[str, bool]]) -> None:
    """Whatever comes and goes, indexes in use are distinct and of the pool."""
    small, leases, in_use = pool("10.8.0.0/29"), dict[str, Lease](), set[str]()
    for now, (key, arrives) in enumerate(steps):
        if not arrives:
            in_use.discard(key)
            continue
        try:
            got = assign(small, key, leases.values(), in_use)
        except PoolExhausted:
            assert len(in_use) == small.capacity
            continue
        if got.taken_from is not None:
            assert got.taken_from.key not in in_use
            del leases[got.taken_from.key]
        leases[key] = Lease(key, got.index, now)
        in_use.add(key)
        indexes = [lease.index for lease in leases.values()]
        assert len(set(indexes)) == len(indexes)
        assert all(index in small for index in indexes)


def test_parallel_password_logins_get_the_lowest_free_slot() -> None:
    """One login a day always gets the same address."""
    assert user_lease_key("u", ()) == "user:u#0"
    assert user_lease_key("u", {"user:u#0", "user:u#2"}) == "user:u#1"
    assert client_lease_key("u", "c") == "client:u/c"


def test_one_user_cannot_empty_the_pool() -> None:
    """A shared password gets MAX_SLOTS addresses and not one more."""
    mine = {f"user:u#{slot}" for slot in range(MAX_SLOTS)}
    assert user_lease_key("v", mine) == "user:v#0"
    with pytest.raises(PoolExhausted, match="end one of them"):
        user_lease_key("u", mine)


def test_the_random_prefix_is_a_unique_local_one() -> None:
    """RFC 4193: fd, 40 random bits, a subnet of 16."""
    assert ula_network(bytes.fromhex("123456789a0001")) == V6
    with pytest.raises(ValueError, match="random"):
        ula_network(b"")
