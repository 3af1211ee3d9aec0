"""Addresses and networks as text of a stranger: what a tunnel can have, and what it never can."""

import re
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from vpnd.errors import Malformed

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
MAX_TEXT = 64  # characters; the longest IPv6 network has 49
NOWHERE: tuple[Network, ...] = (  # no packet of a tunnel may go to or come from these
    IPv4Network("0.0.0.0/8"),
    IPv4Network("127.0.0.0/8"),
    IPv4Network("169.254.0.0/16"),
    IPv4Network("224.0.0.0/4"),
    IPv4Network("255.255.255.255/32"),
    IPv6Network("::/127"),
    IPv6Network("::ffff:0:0/96"),
    IPv6Network("fe80::/10"),
    IPv6Network("ff00::/8"),
)
_LENGTH = re.compile(r"[0-9]{1,3}")


def parse_address(text: str) -> Address:
    """Return an address that an end of a tunnel, or a host inside, can have.

    Raises Malformed for what is none, has a scope, or lies in one of `NOWHERE`.
    """
    try:
        address = ip_address(_bounded(text))
    except ValueError:
        raise Malformed("what should be an address is none") from None
    if any(address in network for network in NOWHERE):
        raise Malformed(f"{address} is no address that a tunnel can have")
    return address


def parse_length(text: str, most: int) -> int:
    """Return a prefix length of 1 to `most`; raise Malformed for anything else."""
    if not _LENGTH.fullmatch(text) or not 1 <= int(text) <= most:
        raise Malformed("a prefix length that is none")
    return int(text)


def parse_network(text: str) -> Network:
    """Return a network, host bits cleared; a bare address is a host.

    Takes "NET/LENGTH" and "NET/MASK".  Raises Malformed for what is none, or has a scope.
    """
    try:
        return ip_network(_bounded(text), strict=False)
    except ValueError:
        raise Malformed("what should be a network is none") from None


def unusable_range(network: Network) -> Network | None:
    """Return the one of `NOWHERE` that a network lies in, or None."""
    return next((other for other in NOWHERE if _within(network, other)), None)


def _bounded(text: str) -> str:
    stripped = text.strip()
    if len(stripped) > MAX_TEXT or "%" in stripped or not stripped.isascii():
        raise Malformed("an address that is too long or has a scope")
    return stripped


def _within(network: Network, other: Network) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(other, IPv4Network) and network.subnet_of(other)
    return isinstance(other, IPv6Network) and network.subnet_of(other)
