"""Two tunnels of one session, while a client of our own changes its keys.

    old    serving ─────────────────┬── what still comes in is taken ──► ended quietly
    new         opened, silent ─────┴── serving ────────────────────────────────────►
                                    the client's first authentic packet on it

Packets to the client go by the old tunnel until the client has shown that the new one works;
what it sends is taken on both, so that no packet in flight is lost.  The session's figures go
on.  A new tunnel that is not used in time is ended instead, and the old one stays.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vpnd.dataplane.peer import PeerTable
from vpnd.worker.messages import TunnelProved, TunnelTakesOver
from vpnd.worker.tunnel import Tunnel

MAX_OVERLAP = 15.0  # seconds; every session may cost two connections so long
CHANGED = "its keys were changed"
UNUSED = "its new keys were not used"


@dataclass(slots=True)
class _Overlap:
    old: Tunnel
    new: Tunnel
    ends_at: float


class Overlaps:
    """The sessions of this worker that have two tunnels."""

    def __init__(
        self, peers: PeerTable, tell_master: Callable[[TunnelTakesOver | TunnelProved], None]
    ) -> None:
        self._peers = peers
        self._tell_master = tell_master
        self._by_old: dict[Tunnel, _Overlap] = {}
        self._by_new: dict[Tunnel, _Overlap] = {}

    def begin(self, old: Tunnel, new: Tunnel, now: float) -> None:
        """Let `new` wait beside `old`; any third tunnel of the session ends."""
        before, rival = self._by_new.get(old), self._by_old.get(old)
        if before is not None:
            before.old.channel.finish(CHANGED, final=False)
        if rival is not None:
            rival.new.channel.finish(UNUSED, final=False)
        new.serving = new.proved = False
        overlap = _Overlap(old, new, now + MAX_OVERLAP)
        self._by_old[old] = self._by_new[new] = overlap

    def prove(self, tunnel: Tunnel) -> None:
        """The client has used a new tunnel: it has got all that came with it."""
        tunnel.proved = True
        self.take_over(tunnel)
        self._tell_master(TunnelProved(tunnel.number, tunnel.session))

    def take_over(self, new: Tunnel) -> None:
        """Serve the session by its new tunnel from now on."""
        overlap = self._by_new.get(new)
        if overlap is None or new.serving:
            return
        old = overlap.old
        old.serving, new.serving = False, True
        self._peers.add(new.peer)
        new.peer.liveness.go_on_from(old.peer.liveness)
        new.peer.count_on(old.peer)
        self._tell_master(TunnelTakesOver(new.number, new.session))

    def closed(self, tunnel: Tunnel, reason: str, *, final: bool) -> None:
        """One of the two is gone: the other serves alone, or ends too."""
        overlap = self._by_old.get(tunnel) or self._by_new.get(tunnel)
        if overlap is None:
            return
        old, new = overlap.old, overlap.new
        if tunnel is old and not final:
            self.take_over(new)
            new.peer.count_on(old.peer)
        del self._by_old[old], self._by_new[new]
        if tunnel is old and final:
            new.channel.finish(reason, final=True)
        elif tunnel is new and (final or new.serving):
            old.channel.finish(reason, final=final)

    def count_on(self) -> None:
        """Bring the figures of the sessions up to date."""
        for overlap in self._by_new.values():
            if overlap.new.serving:
                overlap.new.peer.count_on(overlap.old.peer)

    def expire(self, now: float) -> None:
        """End what has overlapped long enough."""
        for overlap in [o for o in self._by_new.values() if now >= o.ends_at]:
            if overlap.new.serving:
                overlap.old.channel.finish(CHANGED, final=False)
            else:
                overlap.new.channel.finish(UNUSED, final=False)
