"""The tunnels of a client's session: the one in use, and those that new keys have replaced.

New keys are a second tunnel of the same session.  Packets move over to it, and the first is
still read for a while: nothing that is under way is lost.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from vpnd import log
from vpnd.dataplane.peer import PeerTable
from vpnd.errors import VpnError
from vpnd.wire import cstp
from vpnd.worker.client_tunnel import ClientTunnel
from vpnd.worker.messages import Rotated

SUPERSEDED_WAIT = 2.0  # seconds for new keys when the server has closed the old tunnel meanwhile
UNREACHABLE_WAIT = 0.2  # the same, when nothing comes back from it
DTLS_WAIT = 5.0  # seconds a rotation waits for the new DTLS channel
OVERLAP = 3.0  # seconds the old tunnel is still read after a rotation
RECORDS_LEFT = 1 << 20  # rotate when a channel has fewer to seal


class ClientTunnels:
    """One tunnel in use, and how it gets new keys."""

    def __init__(
        self,
        peers: PeerTable,
        another: Callable[[ClientTunnel], Awaitable[ClientTunnel]],
        *,
        rekey_s: int,
    ) -> None:
        """`another` makes a second tunnel beside the given one; it raises as connecting does."""
        self.current: ClientTunnel | None = None
        """The one in use, or the one that was lost last."""
        self._peers = peers
        self._another = another
        self._rekey_s = rekey_s
        self._old: set[ClientTunnel] = set()
        self._coming: ClientTunnel | None = None
        self._rotation: asyncio.Task[Rotated] | None = None

    async def serve(self, tunnel: ClientTunnel) -> str:
        """Send packets through it, or what replaces it, until that is lost; return why."""
        self.current = tunnel
        self._peers.gateway = tunnel.peer
        tunnel.ask_tls()  # what the answer takes is the measure of the way
        while True:
            current = self.current
            reason = await asyncio.shield(current.connection.lost)
            await self._end_rotation(current)
            if self.current is current:
                current.abandon()
                self._peers.gateway = None
                return reason

    def living(self) -> ClientTunnel | None:
        """Return the tunnel in use, if there is one."""
        current = self.current
        return None if current is None or current.connection.lost.done() else current

    def close(self, reason: str, *, code: int) -> None:
        """Say good-bye on every tunnel."""
        for tunnel in self._all():
            tunnel.close(reason, code=code)

    def leave(self) -> None:
        """Close every tunnel without a word: the session goes on later."""
        for tunnel in self._all():
            tunnel.connection.close()
            tunnel.abandon()

    def expire(self, now: float) -> None:
        """Do what is due: questions to the server, new keys."""
        current = self.current
        if current is None:
            return
        current.expire(now)
        if self._coming is not None:  # what its handshake over UDP has lost is sent again
            self._coming.expire(now)
        if self._is_due(current, now):
            self.rotate_soon()
            current.rotated_at = now  # a rotation that fails is tried again a period later

    def _all(self) -> list[ClientTunnel]:
        return [tunnel for tunnel in (self.current, *self._old) if tunnel is not None]

    def _is_due(self, tunnel: ClientTunnel, now: float) -> bool:
        """Return whether this tunnel's keys have been used long enough, or often enough."""
        every = tunnel.params.rekey_s or self._rekey_s
        if self._rekey_s:
            every = min(every, self._rekey_s)
        path = tunnel.peer.dtls
        used_up = path is not None and path.sealer.records_left < RECORDS_LEFT
        return used_up or bool(every and now - tunnel.rotated_at >= every)

    # new keys

    def rotate_soon(self) -> None:
        """The server asks for new keys, these were used long enough, or nothing comes back."""
        if self._rotation is None or self._rotation.done():
            self._rotation = asyncio.create_task(self._rotate())

    async def rotate(self) -> Rotated:
        """Change the keys, unless that is under way; return what became of it."""
        self.rotate_soon()
        assert self._rotation is not None
        rotation = self._rotation
        await asyncio.wait({rotation})
        if rotation.cancelled():
            return Rotated(False, "the connection was lost", 0)
        return rotation.result()

    async def _end_rotation(self, lost: ClientTunnel) -> None:
        """Give new keys a moment: some servers end the old tunnel once there is a new one.

        Not more than that, or what cannot succeed would delay the reconnect.
        """
        rotation = self._rotation
        if rotation is None or rotation.done():
            return
        wait = UNREACHABLE_WAIT if lost.unreachable else SUPERSEDED_WAIT
        await asyncio.wait({rotation}, timeout=wait)
        if not rotation.done():
            rotation.cancel()
            await asyncio.wait({rotation})

    async def _rotate(self) -> Rotated:
        """Make a second tunnel of the same session, move over to it, let the first go."""
        old = self.living()
        if old is None:
            return Rotated(False, "not connected", 0)
        try:
            new = await self._another(old)
        except (VpnError, OSError) as exc:
            return Rotated(False, str(exc) or "no answer in time", old.status().keys_age_s)
        self._coming = new
        try:
            await _wait_as_good(new, old)
        except asyncio.CancelledError:
            new.connection.close()
            new.abandon()
            raise
        finally:
            self._coming = None
        if new.connection.lost.done():
            new.abandon()
            return Rotated(False, new.connection.lost.result(), old.status().keys_age_s)
        self._move(old, new)
        log.event("session keys changed", channel=new.status().channel)
        return Rotated(True, "", new.status().keys_age_s)

    def _move(self, old: ClientTunnel, new: ClientTunnel) -> None:
        new.take_over(old)
        new.ask_tls()  # the server follows our first packet, and we may have no other
        self.current = new
        self._peers.gateway = new.peer
        self._old.add(old)
        asyncio.get_running_loop().call_later(OVERLAP, self._let_go, old)
        if old.connection.lost.done():  # it went while we were making the new one
            self._let_go(old)

    def _let_go(self, old: ClientTunnel) -> None:
        if old in self._old:
            self._old.discard(old)
            old.close("keys changed", code=cstp.RECONNECTING)


async def _wait_as_good(new: ClientTunnel, old: ClientTunnel) -> None:
    """Wait for DTLS on the new tunnel if the old one has it; TLS will do after a while."""
    if new.datagrams is None or not old.peer.dtls_active:
        return
    if old.peer.liveness.is_way_lost(time.monotonic()):
        return
    active = asyncio.ensure_future(new.datagrams.active.wait())
    ends: set[asyncio.Future[Any]] = {active, old.connection.lost, new.connection.lost}
    await asyncio.wait(ends, timeout=DTLS_WAIT, return_when=asyncio.FIRST_COMPLETED)
    active.cancel()
