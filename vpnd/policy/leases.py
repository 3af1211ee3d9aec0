"""Address pools: which inner addresses a lease key gets, and keeps.

A lease is an *index* into the pool; the index gives the IPv4 and the IPv6
address alike (10.8.0.5 and fd..::5), so both stay free or taken together and a
changed network in the configuration moves everybody without losing an order.
Index 0 is the network itself, 1 the server, the last IPv4 one the broadcast.

Lease keys: `client:U/C` for a certificate (one device, one lease) and
`user:U#SLOT` for password logins, the lowest slot that is free.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from vpnd.errors import ConfigError, VpnError

SERVER_INDEX = 1
FIRST_INDEX = 2
MAX_INDEX = 2**20  # an IPv6 /64 alone would never run out, the lease table must
MAX_SLOTS = 32  # parallel password logins of one user; nobody may empty the pool alone
ULA_RANDOM_SIZE = 7  # 40 bits of global id and 16 of subnet id, RFC 4193 section 3


class PoolExhausted(VpnError):
    """No address can be given; the text says what the operator can do."""


@dataclass(frozen=True, slots=True)
class Lease:
    """An index kept for a key.

    `last_used` is in Unix seconds; `revision` is the store's, 0 before it is stored.
    """

    key: str
    index: int
    last_used: float
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Assignment:
    """The index a key gets, and the lease of another key that it is taken from, if any."""

    index: int
    taken_from: Lease | None = None


class Pool:
    """The inner networks of one server; at least one of the two is given."""

    def __init__(self, ipv4: IPv4Network | None, ipv6: IPv6Network | None) -> None:
        """Raise ConfigError where a network has no room for a single client."""
        if ipv4 is None and ipv6 is None:
            raise ConfigError("network: neither ipv4 nor ipv6 is set; set at least one of them")
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.last_index = MAX_INDEX
        if ipv4 is not None:
            self._limit("ipv4", ipv4, ipv4.num_addresses - 2, 30)  # the last is the broadcast
        if ipv6 is not None:
            self._limit("ipv6", ipv6, ipv6.num_addresses - 1, 126)

    def _limit(
        self, key: str, network: IPv4Network | IPv6Network, last: int, longest: int
    ) -> None:
        if last < FIRST_INDEX:
            raise ConfigError(
                f"network.{key}: {network} has no room for clients; use a /{longest} or wider"
            )
        self.last_index = min(self.last_index, last)

    @property
    def capacity(self) -> int:
        """How many clients can have an address at the same time."""
        return self.last_index - FIRST_INDEX + 1

    def __contains__(self, index: int) -> bool:
        """Return True for an index that a client may have."""
        return FIRST_INDEX <= index <= self.last_index

    def addresses(self, index: int) -> tuple[IPv4Address | None, IPv6Address | None]:
        """Return the addresses of an index; None for a family without a network.

        Raises ValueError for an index outside the pool, so that a stale lease never
        turns into somebody else's address.
        """
        if index != SERVER_INDEX and index not in self:
            raise ValueError(f"index {index} is outside the pool")
        return (
            None if self.ipv4 is None else self.ipv4[index],
            None if self.ipv6 is None else self.ipv6[index],
        )

    def server_addresses(self) -> tuple[IPv4Address | None, IPv6Address | None]:
        """Return the server's own addresses: .1 and ::1."""
        return self.addresses(SERVER_INDEX)

    def __str__(self) -> str:
        return " and ".join(str(n) for n in (self.ipv4, self.ipv6) if n is not None)


def assign(pool: Pool, key: str, leases: Iterable[Lease], in_use: Container[str]) -> Assignment:
    """Return the index for `key`: its old one, the lowest free one, or the longest unused one.

    `leases` are all stored leases; `in_use` holds the keys of all sessions that live or
    may still be resumed, whose leases are never taken.  Raises PoolExhausted.
    """
    within = {lease.key: lease for lease in leases if lease.index in pool}
    if key in within:
        return Assignment(within[key].index)
    taken = {lease.index for lease in within.values()}
    if len(taken) < pool.capacity:
        return Assignment(
            next(i for i in range(FIRST_INDEX, pool.last_index + 1) if i not in taken)
        )
    idle = [lease for lease in within.values() if lease.key not in in_use]
    if not idle:
        raise PoolExhausted(
            f"all {pool.capacity} addresses of {pool} are in use; "
            "widen network.ipv4 or network.ipv6 in server.toml"
        )
    oldest = min(idle, key=lambda lease: (lease.last_used, lease.index))
    return Assignment(oldest.index, taken_from=oldest)


def client_lease_key(user: str, client: str) -> str:
    """Return the key of a client's one lease."""
    return f"client:{user}/{client}"


def user_lease_key(user: str, in_use: Container[str]) -> str:
    """Return the key for one more password login: the lowest slot not in use.

    Raises PoolExhausted for a user with MAX_SLOTS logins already.
    """
    for slot in range(MAX_SLOTS):
        if (key := f"user:{user}#{slot}") not in in_use:
            return key
    raise PoolExhausted(f"{user} has {MAX_SLOTS} sessions by password already; end one of them")


def ula_network(random: bytes) -> IPv6Network:
    """Return a unique local /64 made of ULA_RANDOM_SIZE random bytes (RFC 4193)."""
    if len(random) != ULA_RANDOM_SIZE:
        raise ValueError(f"{ULA_RANDOM_SIZE} random bytes are needed")
    return IPv6Network((b"\xfd" + random + bytes(8), 64))
