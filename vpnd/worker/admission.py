"""How many clients may be connected, and how many may be trying to.

Limits count per client address, which for IPv6 is a /64: whoever has one has 2^64 addresses.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from vpnd import log
from vpnd.worker.messages import Start

REFUSAL_INTERVAL = 1.0  # seconds between two log lines of one reason: floods must not fill it
TOO_MANY_LOGINS = "too many logins at once"


class PendingLogin(Protocol):
    """A connection without a tunnel."""

    def give_way(self) -> None:
        """Leave: somebody from a less busy address is waiting."""
        ...


@dataclass(slots=True)
class Admission:
    """How many connections there are; every number has a limit from the configuration."""

    limits: Start
    total: int = 0
    pending: int = 0
    """Connections without an open tunnel."""
    logins: dict[str, dict[PendingLogin, None]] = field(default_factory=dict)
    """Those connections by client address, the oldest first."""
    _per_network: Counter[str] = field(default_factory=Counter)
    _untold: Counter[str] = field(default_factory=Counter)
    _told_at: dict[str, float] = field(default_factory=dict)

    def make_room(self, network: str) -> bool:
        """Cut off the oldest login of the address that has most, unless `network` has as many.

        Two addresses with idle connections would otherwise keep everybody out.
        """
        busiest = max(self.logins.values(), key=len, default={})
        if len(busiest) <= len(self.logins.get(network, ())):
            return False
        next(iter(busiest)).give_way()
        return True

    def refusal(self, network: str) -> str:
        """Return why one more connection from there is too many, or nothing."""
        if self.total >= self.limits.connections:
            return "too many connections"
        if self._per_network[network] >= self.limits.connections_per_address:
            return "too many connections from this address"
        if self.pending >= self.limits.handshakes_pending:
            return TOO_MANY_LOGINS
        return ""

    def tell_refusal(self, address: str, reason: str, now: float) -> None:
        """Log that a connection was refused; in a flood one line stands for `count` of them."""
        self._untold[reason] += 1
        if now >= self._told_at.get(reason, now - REFUSAL_INTERVAL) + REFUSAL_INTERVAL:
            self._told_at[reason] = now
            count = self._untold.pop(reason)
            log.event("connection refused", address=address, reason=reason, count=count)

    def enter(self, network: str) -> None:
        self.total += 1
        self.pending += 1
        self._per_network[network] += 1

    def leave(self, network: str, *, pending: bool) -> None:
        self.total -= 1
        self.pending -= pending
        self._per_network[network] -= 1
        if not self._per_network[network]:
            del self._per_network[network]
