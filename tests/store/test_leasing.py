"""Leases in the store: sticky over restarts, given away only when idle."""

from ipaddress import IPv4Network, IPv6Network

import pytest

from vpnd.auth.cookies import cookie_hash
from vpnd.errors import StoreError
from vpnd.policy.leases import Lease, Pool, PoolExhausted, user_lease_key
from vpnd.store.contract import Conflict, Leases, Session, User
from vpnd.store.leasing import (
    ULA_SETTING,
    KeysInUse,
    forget_idle,
    own_ula_network,
    take_lease,
    touch_lease,
)
from vpnd.store.memory import MemoryStore

POOL = Pool(IPv4Network("10.8.0.0/29"), None)  # five clients


def test_a_key_keeps_its_address_and_says_when_it_was_used() -> None:
    """The order of use decides who loses an address first."""
    leases = MemoryStore().leases
    first = take_lease(leases, POOL, "a", in_use=(), now=1.0)
    take_lease(leases, POOL, "b", in_use=("a",), now=2.0)
    again = take_lease(leases, POOL, "a", in_use=("b",), now=3.0)
    assert again.index == first.index == 2
    assert again.last_used == 3.0
    touch_lease(leases, "a", now=4.0)
    touch_lease(leases, "nobody", now=4.0)
    stored = leases.get("a")
    assert stored is not None
    assert stored.last_used == 4.0


def test_leases_are_forgotten_when_nobody_used_them_for_long() -> None:
    """Who had which address is not known for ever; who is connected keeps it."""
    leases = MemoryStore().leases
    for number, key in enumerate("abc"):
        take_lease(leases, POOL, key, in_use=(), now=float(number))
    assert forget_idle(leases, in_use={"a"}, unused_since=1.0) == 1
    assert [lease.key for lease in leases.all()] == ["a", "c"]
    assert forget_idle(leases, in_use={"a"}, unused_since=1.0) == 0


def test_the_longest_unused_lease_gives_way_and_is_gone() -> None:
    """Its old bearer gets another address next time, never the same one at the same time."""
    leases = MemoryStore().leases
    for number, key in enumerate("abcde"):
        take_lease(leases, POOL, key, in_use=(), now=float(number))
    new = take_lease(leases, POOL, "f", in_use={"a"}, now=9.0)
    assert new.index == 3
    assert leases.get("b") is None
    with pytest.raises(PoolExhausted):
        take_lease(leases, POOL, "b", in_use=set("acdef"), now=9.0)


def test_a_lease_outside_a_changed_network_moves_inside() -> None:
    """`network.ipv4` was made smaller between two starts."""
    leases = MemoryStore().leases
    stored = leases.put(Lease("a", 200, 1.0))
    moved = take_lease(leases, POOL, "a", in_use=(), now=2.0)
    assert moved.index == 2
    assert moved.revision > stored.revision
    assert len(leases.all()) == 1


def test_sessions_keep_their_leases_and_are_read_only_when_it_matters() -> None:
    """A resumable session's address is as taken as a live one's."""
    store = MemoryStore()
    store.users.put(User("u"))
    for number in range(5):
        key = f"user:u#{number}"
        take_lease(store.leases, POOL, key, in_use=KeysInUse(store.sessions), now=float(number))
        if number != 3:
            store.sessions.put(
                Session(key, cookie_hash(key), "u", None, key, "password", None, 1.0, None, 2.0)
            )
    in_use = KeysInUse(store.sessions)
    assert take_lease(store.leases, POOL, "user:u#1", in_use=in_use, now=9.0).index == 3
    assert in_use._keys is None
    assert take_lease(store.leases, POOL, "user:u#9", in_use=in_use, now=9.0).index == 5
    assert user_lease_key("u", in_use) == "user:u#3"
    with pytest.raises(PoolExhausted):
        take_lease(store.leases, Pool(IPv4Network("10.8.0.0/30"), None), "x", in_use=in_use, now=9)


class _Contested:
    """Leases where another gateway always was a little faster."""

    def __init__(self, leases: Leases, losses: int) -> None:
        self.get, self.all, self.delete = leases.get, leases.all, leases.delete
        self._leases, self._losses = leases, losses

    def put(self, lease: Lease) -> Lease:
        if self._losses:
            self._losses -= 1
            self._leases.put(Lease(f"rival-{self._losses}", lease.index, 0.0))
            raise Conflict("rival")
        return self._leases.put(lease)


def test_a_lost_race_is_tried_again_with_what_the_winner_left() -> None:
    """Two gateways on one store never give out one address."""
    leases = MemoryStore().leases
    got = take_lease(_Contested(leases, 2), POOL, "a", in_use=(), now=1.0)
    assert got.index == 4
    with pytest.raises(StoreError, match="keep changing"):
        take_lease(
            _Contested(leases, 99), Pool(None, IPv6Network("fd00::/64")), "b", in_use=(), now=1.0
        )


def test_the_random_prefix_is_chosen_once() -> None:
    """Clients' firewalls and DNS entries know it."""
    store = MemoryStore()
    network = own_ula_network(store.settings)
    assert network.prefixlen == 64
    assert network.subnet_of(IPv6Network("fd00::/8"))
    assert own_ula_network(store.settings) == network
    assert own_ula_network(MemoryStore().settings) != network
    store.settings.put(ULA_SETTING, "nonsense")
    with pytest.raises(StoreError, match=r"set network\.ipv6 in server\.toml"):
        own_ula_network(store.settings)
