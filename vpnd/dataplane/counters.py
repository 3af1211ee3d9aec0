"""Counts of dropped packets by reason.

A drop is a number with a name, not a log line.  The names below are all there are;
`vpnctl status` shows them as they stand.
"""

from collections import Counter
from collections.abc import Mapping

TUN_MALFORMED = "tun-malformed"  # what the TUN gave is not a packet we understand
NO_PEER = "no-peer"  # destination belongs to no connected client
MULTICAST = "multicast"  # the tunnel carries unicast only
TLS_BACKLOG = "tls-backlog"  # the client does not drain its TLS connection
UDP_FULL = "udp-full"  # the kernel's send buffer is full
KEYS_USED_UP = "keys-used-up"  # the record numbers of this channel are spent
NOT_AUTHENTIC = "not-authentic"  # a record that does not decrypt
REPLAYED = "replayed"  # a record that was seen before, or is too old
UNKNOWN_SOURCE = "unknown-source"  # a datagram that belongs to no session
INNER_SOURCE = "inner-source"  # the client used an address that is not its own
LINK_LOCAL = "link-local"  # IPv6 neighbour chatter, which a routed tunnel does not carry
INNER_MALFORMED = "inner-malformed"  # the client sent something that is no IP packet
TUN_FULL = "tun-full"  # the TUN device did not take it
HANDSHAKE_LIMIT = "handshake-limit"  # too many DTLS handshakes at once

REASONS = frozenset(
    value for name, value in list(globals().items()) if name.isupper() and isinstance(value, str)
)


class Drops:
    """Dropped packets of one peer or one worker, by reason."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, reason: str, packets: int = 1) -> None:
        self._counts[reason] += packets

    def __getitem__(self, reason: str) -> int:
        return self._counts[reason]

    def as_dict(self) -> Mapping[str, int]:
        """Return the non-zero counts."""
        return {reason: count for reason, count in self._counts.items() if count}
