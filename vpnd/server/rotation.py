"""Changing a session's keys, on request and once a day: who is asked how, and how it went.

Clients of our own are asked to open another tunnel beside the one they have, and no packet is
lost.  All others lose their connection and come back by their cookie with new keys; that they
do within seconds, and keep their addresses.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from vpnd import log
from vpnd.ipc import api
from vpnd.server.sessions import Change, LiveTunnel, Sessions
from vpnd.worker.messages import AskRekey, EndTunnel, Message

TIMEOUT_S = 20.0  # for a client to be on new keys; stock ones try again after 10 s
AT_ONCE = 64  # sessions being rotated: each costs a TLS handshake, and logins go on meanwhile
MAX_KEYS_AGE_S = 24 * 3600  # then a full TLS handshake, and a look at the certificate
LENIENCE_S = 600  # for clients that keep the time by themselves
REASON = "keys are being changed"


class Rotation:
    """Rotates sessions one by one; any number of calls may wait at once."""

    def __init__(
        self,
        sessions: Sessions,
        tell_worker: Callable[[Message], None],
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._sessions = sessions
        self._tell_worker = tell_worker
        self._timeout_s = timeout_s
        self._waiting: dict[str, asyncio.Future[Change]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._renewing: dict[str, asyncio.Task[None]] = {}
        sessions.on_change = self._on_change

    async def rotate(self, session: str) -> api.KeyRotation:
        """Give a session new keys; return when it has them, or why it has not.

        Raises api.NotFound when no such session is connected.
        """
        async with self._places:
            tunnel = self._sessions.serving(session)
            if tunnel is None:
                raise api.NotFound(kind="session", name=session)
            return await self._rotate(tunnel)

    def renew_old(self, now: float) -> None:
        """Change keys that are a day old, whatever the client thinks of it."""
        for tunnel in self._sessions.live.values():
            session = tunnel.session.id
            is_old = now - tunnel.keyed_at >= MAX_KEYS_AGE_S + LENIENCE_S
            if is_old and session not in self._renewing:
                self._renewing[session] = asyncio.create_task(self._renew(session, tunnel))

    async def _renew(self, session: str, tunnel: LiveTunnel) -> None:
        with suppress(api.NotFound):
            await self.rotate(session)
        if self._sessions.serving(session) is tunnel:  # asked in vain
            self._tell_worker(EndTunnel(tunnel.number, REASON, bye=False))
        del self._renewing[session]

    async def _rotate(self, tunnel: LiveTunnel) -> api.KeyRotation:
        loop = asyncio.get_running_loop()
        began = loop.time()
        session = tunnel.session
        change = await self._change(tunnel)
        took_ms = round((loop.time() - began) * 1000)
        log.event(
            "keys changed" if change.serving else "keys not changed",
            user=session.user,
            client=session.client,
            session=session.id,
            reason=change.reason,
        )
        return api.KeyRotation(
            session=session.id,
            user=session.user,
            client=session.client,
            rotated=change.serving,
            overlapped=change.overlapped,
            reason="" if change.serving else change.reason,
            took_ms=took_ms,
        )

    async def _change(self, tunnel: LiveTunnel) -> Change:
        """Ask for new keys, unless somebody else has, and wait for what becomes of it."""
        waiting = self._waiting.get(tunnel.session.id)
        if waiting is None:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting[tunnel.session.id] = waiting
            self._ask(tunnel)
        try:
            return await asyncio.wait_for(asyncio.shield(waiting), self._timeout_s)
        except TimeoutError:
            asked = f"it did not answer within {self._timeout_s:.0f} s"
            gone = f"it did not come back within {self._timeout_s:.0f} s; its cookie still holds"
            return Change(tunnel.session.id, asked if tunnel.is_own else gone)
        finally:
            if self._waiting.get(tunnel.session.id) is waiting:
                del self._waiting[tunnel.session.id]

    def _ask(self, tunnel: LiveTunnel) -> None:
        if tunnel.is_own:
            self._tell_worker(AskRekey(tunnel.number))
        else:
            self._tell_worker(EndTunnel(tunnel.number, REASON, bye=False))

    def _on_change(self, change: Change) -> None:
        waiting = self._waiting.get(change.session)
        if waiting is not None and not waiting.done():
            waiting.set_result(change)
