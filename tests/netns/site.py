"""A bed with a running server, and what the tunnel tests do with it."""

from functools import cached_property
from typing import Any

from tests.netns.bed import Bed
from tests.netns.daemons import Daemons
from tests.netns.openconnect import OpenConnect

# What the server sends in a test, in seconds: dead UDP is to be found out while somebody waits.
QUICK_TIMERS = {"dpd_s": 5}


class Site:
    """Clients, an internet and a server that serves."""

    def __init__(self, bed: Bed, daemons: Daemons) -> None:
        self.bed = bed
        self.daemons = daemons

    def connect(self, index: int = 0, **login: Any) -> OpenConnect:
        """Start openconnect in a client namespace; `login` as for OpenConnect.start."""
        login.setdefault("pins", self.daemons.pins())
        return OpenConnect.start(self.bed.clients[index], **login)

    @cached_property
    def gateway4(self) -> str:
        """The server's own IPv4 address in the tunnel."""
        return next(a for a in self.daemons.addresses() if ":" not in a)

    @cached_property
    def gateway6(self) -> str:
        """The server's own IPv6 address in the tunnel."""
        return next(a for a in self.daemons.addresses() if ":" in a)

    def session(self, user: str) -> dict[str, Any]:
        """Return the one session of a user."""
        (session,) = (s for s in self.daemons.sessions() if s["user"] == user)
        return session

    def channel(self, user: str, index: int = 0) -> str:
        """Return the channel that carries a user's packets, "DTLS" or "TLS", after a ping."""
        self.bed.clients[index].ping(self.gateway4, count=1)
        channel: str = self.session(user)["channel"]
        return channel
