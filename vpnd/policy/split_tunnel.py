"""What of a server's wishes becomes addresses and routes of this host.

A server is believed about its own network and about nothing of ours.  What it may not have is
left out with a reason; what makes the whole tunnel senseless is refused.  Routes live in a
table of the tunnel's own, from which excluded prefixes fall through to the host's own routes,
so the result never holds one prefix both ways.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    collapse_addresses,
    ip_interface,
    ip_network,
)

Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface

DEFAULT4, DEFAULT6 = IPv4Network("0.0.0.0/0"), IPv6Network("::/0")
EVERYTHING: tuple[Network, ...] = (DEFAULT4, DEFAULT6)
MAX_ROUTES = 2000  # of a server; more are an attack, and each costs the kernel time
MAX_REASONS = 20  # that are told of one server: its list may be all wrong
MIN_MTU, MIN_MTU_IPV6, MAX_MTU = 576, 1280, 9000  # RFC 8200 section 5; jumbo frames
NEVER: tuple[
    Network, ...
] = (  # no server has hosts there: this host's own, links', groups', reserved
    *map(
        IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
    ),
    *map(IPv6Network, ("::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8")),
)


class Unusable(ValueError):
    """What the server gives cannot be a tunnel of this host; the text says why."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What the server gave, as text: "" is no address of that family."""

    address4: str
    prefix4: int
    address6: str
    prefix6: int
    mtu: int
    include: Sequence[str]
    """Networks behind the server; none: everything."""
    exclude: Sequence[str]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the profile says."""

    include: Sequence[Network] | None = None
    """Networks to have inside whatever the server says; (): everything; None: as it says."""
    exclude: Sequence[Network] = ()
    default_route: bool = True
    block_ipv6: bool = True
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """What the tunnel's interface shall be."""

    addresses: tuple[str, ...]
    mtu: int
    routes: tuple[str, ...]
    """No two overlap."""
    exclude: tuple[str, ...]
    """Parts of `routes` that stay outside."""
    block_ipv6: bool
    reasons: tuple[str, ...]
    """What was refused or changed, and why."""


def plan(offer: Offer, wishes: Wishes, *, own: Iterable[str], gateway: str) -> Link:
    """Return what to set up.  Raises Unusable.

    `own` are this host's addresses with their prefix lengths, without the tunnel's; `gateway`
    is the address at which the server was reached.
    """
    return _Planner(offer, wishes, [ip_interface(text) for text in own], gateway).plan()


class _Planner:
    def __init__(
        self, offer: Offer, wishes: Wishes, own: Sequence[Interface], gateway: str
    ) -> None:
        self._offer = offer
        self._wishes = wishes
        self._own = own
        self._gateway = ip_network(gateway) if gateway else None
        self._reasons: list[str] = []
        self._left_out = 0

    def plan(self) -> Link:
        inner = self._inner()
        versions: set[int] = {address.version for address in inner}
        mtu = self._mtu(needs_ipv6=6 in versions)
        exclude = self._exclude()
        routes = _minus(self._routes(inner, versions), exclude)
        exclude = [n for n in exclude if any(_overlaps(n, route) for route in routes)]
        alone = DEFAULT4 in routes and 6 not in versions
        if self._left_out:
            self._reasons.append(f"and {self._left_out} more")
        return Link(
            addresses=tuple(f"{address.ip}/{address.max_prefixlen}" for address in inner),
            mtu=mtu,
            routes=tuple(map(str, routes)),
            exclude=tuple(map(str, exclude)),
            block_ipv6=alone and self._wishes.block_ipv6,
            reasons=tuple(self._reasons),
        )

    def _tell(self, reason: str) -> None:
        if len(self._reasons) < MAX_REASONS:
            self._reasons.append(reason)
        else:
            self._left_out += 1

    # the tunnel itself

    def _inner(self) -> list[Interface]:
        offer = self._offer
        found = [
            self._inner_address(address, prefix)
            for address, prefix in (
                (offer.address4, offer.prefix4),
                (offer.address6, offer.prefix6),
            )
            if address
        ]
        if not found:
            raise Unusable("the server gives no address")
        return found

    def _inner_address(self, address: str, prefix: int) -> Interface:
        try:
            found = ip_interface(f"{address}/{prefix}")
        except ValueError:
            raise Unusable(f"the server gives {_shown(address)}, which is no address") from None
        bare = ip_network(found.ip)
        if _within_any(bare, NEVER):
            raise Unusable(f"the server gives {found.ip}, which no host can have")
        if any(found.ip == own.ip for own in self._own):
            raise Unusable(f"the server gives {found.ip}, which this host has already")
        if bare == self._gateway:
            raise Unusable(f"the server gives {found.ip}, its own outer address")
        return found

    def _mtu(self, *, needs_ipv6: bool) -> int:
        low = MIN_MTU_IPV6 if needs_ipv6 else MIN_MTU
        asked = self._offer.mtu
        mtu = min(max(asked, low), MAX_MTU)
        if mtu != asked:
            self._tell(f"MTU {asked} made {mtu}")
        if self._wishes.mtu:
            mtu = max(low, min(mtu, self._wishes.mtu))
        return mtu

    # its routes

    def _routes(self, inner: Sequence[Interface], versions: set[int]) -> list[Network]:
        wished = self._wishes.include
        if wished is None:
            routes = self._pushed(versions)
        else:
            routes = [n for n in wished or EVERYTHING if n.version in versions]
            if len(routes) < len(wished):
                self._tell("the tunnel has no address of some networks' family: left out")
        neighbours = [self._neighbours(address) for address in inner]
        return _collapsed([*routes, *(n for n in neighbours if n is not None)])

    def _neighbours(self, inner: Interface) -> Network | None:
        """Return the network that the inner address is in, unless it is also ours."""
        network = inner.network
        if network.prefixlen == inner.max_prefixlen:
            return None
        if network.prefixlen == 0:
            self._tell(f"the inner network {network} is all there is: not routed")
            return None
        if (reason := self._objection(network)) is not None:
            self._tell(f"inner network {network} not routed: {reason}")
            return None
        return network

    def _pushed(self, versions: set[int]) -> list[Network]:
        include = list(self._offer.include)
        if len(include) > MAX_ROUTES:
            raise Unusable(f"the server gives {len(include)} routes, {MAX_ROUTES} are allowed")
        if not include:
            return self._defaults(n for n in EVERYTHING if n.version in versions)
        routes = []
        for text in include:
            network = self._parsed(text)
            if network is None:
                continue
            if network.version not in versions:
                self._tell(f"route {network} left out: the tunnel has no IPv{network.version}")
            elif not network.prefixlen:
                routes += self._defaults([network])
            elif (reason := self._objection(network)) is not None:
                self._tell(f"route {network} refused: {reason}")
            else:
                routes.append(network)
        return self._unless_everything(routes)

    def _defaults(self, defaults: Iterable[Network]) -> list[Network]:
        found = list(defaults)
        if self._wishes.default_route:
            return found
        for default in found:
            self._tell(f"route {default} refused: network.default_route is false")
        return []

    def _unless_everything(self, routes: list[Network]) -> list[Network]:
        """Refuse halves that make a whole where everything is not allowed."""
        if self._wishes.default_route or not any(not n.prefixlen for n in _collapsed(routes)):
            return routes
        self._tell("the routes together are everything: refused, network.default_route is false")
        return []

    def _objection(self, network: Network) -> str | None:
        """Return why a server may not have a network of its own accord, or None."""
        if _within_any(network, NEVER):
            return "no network behind a server"
        if self._gateway is not None and network == self._gateway:
            return "the server's own outer address"
        for own in self._own:
            if own.version == network.version and _inside(network, own.network):
                return f"this host's own network {own.network}; network.include would allow it"
        return None

    def _exclude(self) -> list[Network]:
        """Return what stays outside: the server's list, where the profile does not decide."""
        pushed: list[Network] = []
        for text in self._offer.exclude[:MAX_ROUTES]:
            network = self._parsed(text)
            if network is None:
                continue
            if self._wishes.include is not None:
                self._tell(f"exclude {network} ignored: network.include decides")
            elif not network.prefixlen:
                self._tell(f"exclude {network} refused: nothing would be inside")
            else:
                pushed.append(network)
        if len(self._offer.exclude) > MAX_ROUTES:
            raise Unusable(f"the server excludes {len(self._offer.exclude)} networks")
        pushed = _collapsed(pushed)
        if any(not network.prefixlen for network in pushed):
            self._tell("the excluded networks together are everything: all ignored")
            pushed = []
        return _collapsed([*pushed, *self._wishes.exclude])

    def _parsed(self, text: str) -> Network | None:
        try:
            return ip_network(text, strict=False)
        except ValueError:
            self._tell(f"{_shown(text)} ignored: no network")
            return None


def _collapsed(networks: Iterable[Network]) -> list[Network]:
    """Return the fewest networks that cover the same addresses, IPv4 first."""
    found = list(networks)
    four = [n for n in found if isinstance(n, IPv4Network)]
    six = [n for n in found if isinstance(n, IPv6Network)]
    return [*collapse_addresses(four), *collapse_addresses(six)]


def _minus(routes: Iterable[Network], exclude: Sequence[Network]) -> list[Network]:
    """Return the routes of which something is left once `exclude` stays outside."""
    return [route for route in routes if not _within_any(route, exclude)]


def _inside(network: Network, other: Network) -> bool:
    """Tell whether `network` is a part of `other` or the same; both of one family."""
    return network.prefixlen >= other.prefixlen and network.network_address in other


def _overlaps(network: Network, other: Network) -> bool:
    return network.version == other.version and network.overlaps(other)


def _within_any(network: Network, others: Iterable[Network]) -> bool:
    return any(network.version == other.version and _inside(network, other) for other in others)


def _shown(text: str) -> str:
    return ascii(text[:64])
