"""Sessions: who may have a tunnel, with which addresses, and what happens when it ends.

A session begins with a login and has a cookie; a *tunnel* is one connection of it.  A
client that comes back with its cookie gets a new tunnel and the same addresses.  Sessions
and leases are in the store, so that they outlive this process; tunnels are not.

A client of our own that changes its keys opens its next tunnel while it has one.  The next
one is *coming* until the worker says that the client uses it; then it serves the session.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from vpnd import log
from vpnd.auth.cookies import cookie_hash, new_cookie, new_session_id
from vpnd.auth.login import LoginAccepted
from vpnd.auth.standing import resume_refusal
from vpnd.config.model import ServerConfig
from vpnd.errors import StoreError, VpnError
from vpnd.policy.leases import Lease, Pool, client_lease_key, user_lease_key
from vpnd.server.grant import granted
from vpnd.server.retention import Retention
from vpnd.server.standing import StandingWatch
from vpnd.store.contract import Session, Store
from vpnd.store.leasing import KeysInUse, take_lease, touch_lease
from vpnd.worker.messages import (
    OpenQuery,
    OpenReply,
    TunnelEnded,
    TunnelProved,
    TunnelTakesOver,
)

EndTunnel = Callable[[int, str], None]
"""(tunnel number, reason): tell the worker to end it and the client not to come back."""


@dataclass(slots=True)
class LiveTunnel:
    """A tunnel that a worker serves now."""

    number: int
    session: Session
    address4: str
    address6: str
    outer: str
    user_agent: str
    hostname: str
    opened_at: float
    is_own: bool = False
    """The client is one of our own, and can change its keys without a break."""
    keyed_at: float = 0.0
    """When its TLS handshake was made."""


@dataclass(frozen=True, slots=True)
class Change:
    """What has happened to a session."""

    session: str
    reason: str
    serving: bool = False
    """Another tunnel serves it now, with other keys; otherwise it got none, or is over."""
    overlapped: bool = False
    """The earlier tunnel served it until then."""


class Sessions:
    """All sessions of this server."""

    config: ServerConfig
    """For what begins from now on; tunnels that are open keep what they were told."""

    def __init__(
        self, config: ServerConfig, store: Store, pool: Pool, end_tunnel: EndTunnel
    ) -> None:
        self.config = config
        self._store = store
        self._pool = pool
        self._end_tunnel = end_tunnel
        self._next_tunnel = secrets.randbelow(1 << 16) + 1
        self.live: dict[int, LiveTunnel] = {}
        self.coming: dict[int, LiveTunnel] = {}
        """Tunnels that are to take the place of a live one of their session."""
        self._standing = StandingWatch(store)
        self._retention = Retention(store)
        self.on_change: Callable[[Change], None] = lambda _: None

    def serving(self, session_id: str) -> LiveTunnel | None:
        """Return the tunnel that serves a session, None where it is not connected."""
        return next((t for t in self.live.values() if t.session.id == session_id), None)

    def recover(self, now: float) -> int:
        """Take over the sessions of an earlier run; return how many may come back.

        Their clients have as long to return as after any other broken connection.
        """
        for session in self._store.sessions.all():
            if session.disconnected_at is None:
                self._store.sessions.put(replace(session, disconnected_at=now))
        self.expire(now)
        return len(self._store.sessions.all())

    def begin(self, login: LoginAccepted, now: float) -> str:
        """Make a session for a login that has succeeded; return its cookie.

        Raises PoolExhausted or StoreError.
        """
        timeout = self.config.session.session_timeout_s
        lease_key = (
            client_lease_key(login.user, login.client)
            if login.client is not None
            else user_lease_key(login.user, KeysInUse(self._store.sessions))
        )
        if login.client is not None:
            self._forget_others(lease_key, "")
        cookie = new_cookie()
        self._store.sessions.put(
            Session(
                id=new_session_id(),
                cookie_hash=cookie_hash(cookie),
                user=login.user,
                client=login.client,
                lease_key=lease_key,
                method=login.method,
                serial=login.serial,
                created=now,
                expires_at=now + timeout if timeout else None,
                disconnected_at=now,  # until its tunnel is open the cookie may run out
            )
        )
        return cookie

    def open(self, query: OpenQuery, now: float) -> OpenReply:
        """Decide about a CONNECT.  A refusal says 401: log in again, or 503: try later."""
        shown = cookie_hash(query.cookie)
        session = self._store.sessions.by_cookie(shown)
        reason = self._refusal(session, query, now)
        if session is None or reason:
            user = session.user if session else _claimed(query)
            log.warning("tunnel refused", user=user, address=query.address, reason=reason)
            if session is not None:
                self.on_change(Change(session.id, reason))
            return OpenReply(refused=401, reason="Cookie is not acceptable")
        if not self._has_address_for(query):
            reason = "the client takes no kind of address that this server gives"
            log.warning("tunnel refused", user=session.user, address=query.address, reason=reason)
            return OpenReply(refused=503, reason="No address of a kind that the client takes")
        try:
            lease = take_lease(
                self._store.leases,
                self._pool,
                session.lease_key,
                in_use=KeysInUse(self._store.sessions),
                now=now,
            )
            cookie = new_cookie() if query.rekey else ""
            session = self._store.sessions.put(
                replace(
                    session,
                    disconnected_at=None,
                    cookie_hash=shown,  # a client that has its next one needs no other
                    next_cookie_hash=cookie_hash(cookie) if cookie else None,
                )
            )
        except VpnError as exc:
            log.error("tunnel refused", user=session.user, address=query.address, reason=str(exc))
            return OpenReply(refused=503, reason="No address is free, try again later")
        earlier = self.serving(session.id) if query.rekey else None
        if earlier is not None:
            self._forget_coming(session.id)
        else:
            self._replace_others(session)
        return replace(self._open(session, lease, query, now, earlier), cookie=cookie)

    def _has_address_for(self, query: OpenQuery) -> bool:
        pool = self._pool
        has4 = pool.ipv4 is not None and query.wants_ipv4
        return has4 or (pool.ipv6 is not None and query.wants_ipv6)

    def _refusal(self, session: Session | None, query: OpenQuery, now: float) -> str:
        if session is None:
            return "unknown cookie"
        timeout = self.config.session.cookie_timeout_s
        if not session.is_valid(now, cookie_timeout_s=timeout):
            return "cookie has expired"
        if session.client and query.rekey and query.certificate is None:
            return "no certificate was shown"
        return resume_refusal(self._store, session, query.certificate, now) or ""

    def _replace_others(self, session: Session) -> None:
        """End what this tunnel takes the place of: one lease, one session, one tunnel."""
        for tunnel in [*self.live.values(), *self.coming.values()]:
            other = tunnel.session
            if other.id == session.id:
                self._drop(tunnel, "the client connected again")
            elif other.lease_key == session.lease_key:
                self._drop(tunnel, "the client logged in again")
        if session.client is not None:
            self._forget_others(session.lease_key, session.id)

    def _forget_others(self, lease_key: str, session_id: str) -> None:
        """Drop resumable sessions of the same device: their cookies would evict the new one."""
        live = {tunnel.session.id for tunnel in self.live.values()}
        for other in self._store.sessions.all():
            if other.lease_key == lease_key and other.id not in live | {session_id}:
                self._store.sessions.delete(other.id)

    def _drop(self, tunnel: LiveTunnel, reason: str) -> None:
        self.live.pop(tunnel.number, None)
        self.coming.pop(tunnel.number, None)
        self._end_tunnel(tunnel.number, reason)

    def _forget_coming(self, session_id: str) -> None:
        """The client tries again to change its keys: the worker ends what is left of the try."""
        for tunnel in [t for t in self.coming.values() if t.session.id == session_id]:
            del self.coming[tunnel.number]

    def _drop_session(self, session_id: str, reason: str) -> None:
        tunnels = [*self.live.values(), *self.coming.values()]
        for tunnel in [t for t in tunnels if t.session.id == session_id]:
            self._drop(tunnel, reason)
        self.on_change(Change(session_id, reason))

    def _open(
        self,
        session: Session,
        lease: Lease,
        query: OpenQuery,
        now: float,
        earlier: LiveTunnel | None,
    ) -> OpenReply:
        address4, address6 = self._pool.addresses(lease.index)
        number = self._next_tunnel
        self._next_tunnel += 1
        shown4 = str(address4) if address4 and query.wants_ipv4 else ""
        shown6 = str(address6) if address6 and query.wants_ipv6 else ""
        tunnel = LiveTunnel(
            number,
            session,
            shown4,
            shown6,
            query.address,
            query.user_agent,
            query.hostname,
            earlier.opened_at if earlier else now,
            query.is_own,
            now,
        )
        if earlier is None:
            self.live[number] = tunnel
        else:
            self.coming[number] = tunnel
        log.event(
            "tunnel with new keys opened" if earlier else "session opened",
            user=session.user,
            client=session.client,
            session=session.id,
            address=query.address,
            inner=" ".join(filter(None, (shown4, shown6))),
            method=session.method,
        )
        if earlier is None:
            self.on_change(Change(session.id, "", serving=True))
        reply = granted(self.config, self._pool, session, now, is_own=query.is_own)
        beside = earlier.number if earlier else 0
        return replace(reply, tunnel=number, address4=shown4, address6=shown6, beside=beside)

    def take_over(self, report: TunnelTakesOver) -> None:
        """A worker says that a client uses its coming tunnel: it serves the session now."""
        tunnel = self.coming.pop(report.tunnel, None)
        if tunnel is None:
            return
        earlier = self.serving(tunnel.session.id)
        if earlier is not None:
            del self.live[earlier.number]  # the worker ends it
        self.live[tunnel.number] = tunnel
        overlapped = earlier is not None
        self.on_change(Change(tunnel.session.id, "", serving=True, overlapped=overlapped))

    def proved(self, report: TunnelProved) -> None:
        """A worker says that a client uses its new tunnel: so it has its next cookie."""
        tunnel = self.live.get(report.tunnel) or self.coming.get(report.tunnel)
        if tunnel is None or tunnel.session.next_cookie_hash is None:
            return
        try:
            stored = self._store.sessions.get(tunnel.session.id)
            if stored and stored.next_cookie_hash == tunnel.session.next_cookie_hash:
                fresh = stored.next_cookie_hash
                self._store.sessions.put(replace(stored, cookie_hash=fresh, next_cookie_hash=None))
        except StoreError as exc:  # both cookies stay good
            log.error("cookie not changed", session=tunnel.session.id, error=str(exc))

    def ended(self, report: TunnelEnded, now: float) -> None:
        """A worker says that a tunnel is gone.  One that was replaced is not news."""
        if self.coming.pop(report.tunnel, None) is not None:
            self.on_change(Change(report.session, report.reason))
        tunnel = self.live.pop(report.tunnel, None)
        if tunnel is None:
            return
        session = tunnel.session
        if report.final:
            self._drop_session(session.id, report.reason)
        for coming in [t for t in self.coming.values() if t.session.id == session.id]:
            self.take_over(TunnelTakesOver(coming.number, session.id))
            return
        log.event(
            "session closed" if report.final else "tunnel closed, session may resume",
            user=session.user,
            client=session.client,
            session=session.id,
            address=tunnel.outer,
            reason=report.reason,
            rx_bytes=report.rx_bytes,
            tx_bytes=report.tx_bytes,
        )
        self._settle(session.id, final=report.final, now=now)

    def _settle(self, session_id: str, *, final: bool, now: float) -> None:
        try:
            stored = self._store.sessions.get(session_id)
            if stored is None:
                return
            touch_lease(self._store.leases, stored.lease_key, now=now)
            if final:
                self._store.sessions.delete(session_id)
            else:
                self._store.sessions.put(replace(stored, disconnected_at=now))
        except StoreError as exc:
            log.error("session not recorded", session=session_id, error=str(exc))

    def workers_gone(self, now: float) -> None:
        """The worker died: all its tunnels are gone, their clients will come back."""
        tunnels, self.live = list(self.live.values()), {}
        self.coming = {}
        for tunnel in tunnels:
            self._settle(tunnel.session.id, final=False, now=now)

    def end_client(self, user: str, client: str | None, reason: str) -> int:
        """End all sessions of a client for good; return how many there were.

        None stands for the user's logins by password.
        """
        ended = 0
        for tunnel in list(self.live.values()):
            if (tunnel.session.user, tunnel.session.client) == (user, client):
                self._drop_session(tunnel.session.id, reason)
        for session in self._store.sessions.all():
            if (session.user, session.client) == (user, client):
                self._store.sessions.delete(session.id)
                ended += 1
        return ended

    def log_out(self, cookie: str, address: str) -> None:
        """The client is done: its cookie opens nothing any more."""
        session = self._store.sessions.by_cookie(cookie_hash(cookie))
        if session is None:
            return
        self._store.sessions.delete(session.id)
        self._drop_session(session.id, "the client logged out")
        log.event(
            "logged out",
            user=session.user,
            client=session.client,
            session=session.id,
            address=address,
        )

    def expire(self, now: float) -> None:
        """Forget sessions whose time is over, and those who are not welcome any more."""
        live = {tunnel.session.id: tunnel.session for tunnel in self.live.values()}
        for session, reason in self._standing.refused(live.values(), now):
            log.warning(
                "session ended",
                user=session.user,
                client=session.client,
                session=session.id,
                reason=reason,
            )
            self._store.sessions.delete(session.id)
            touch_lease(self._store.leases, session.lease_key, now=now)
            self._drop_session(session.id, reason)
        for session in self._store.sessions.expire(
            now, cookie_timeout_s=self.config.session.cookie_timeout_s
        ):
            touch_lease(self._store.leases, session.lease_key, now=now)
            self._drop_session(session.id, "session timeout")
        self._retention.forget(now, self.config.log.keep_s)


def _claimed(query: OpenQuery) -> str | None:
    """Return the user that the certificate beside an unknown cookie names, None if none does."""
    return query.certificate.user if query.certificate is not None else None
