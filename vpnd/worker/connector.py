"""The way to a tunnel: dial a server, log in unless a cookie is held, have the CONNECT granted.

A session belongs to the remote that gave it, and its cookie holds where that remote redirected us.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from vpnd.errors import ConfigError, LocalProtocolError
from vpnd.protocol.client_channel import (
    ConnectOptions,
    FormAsked,
    LoggedIn,
    LoginRefused,
    NewConnectionNeeded,
    Redirected,
    TunnelOpened,
    TunnelRefused,
)
from vpnd.wire.params_client import ServerParams
from vpnd.worker.client_renewal import ClientRenewal
from vpnd.worker.client_stream import ConnectionFailed, ServerConnection
from vpnd.worker.dialler import Dialler
from vpnd.worker.messages import (
    FormInput,
    HeldSession,
    Message,
    Prompt,
    PromptReply,
    RemoteEntry,
    StartClient,
)

MAX_BAD_ANSWERS = 3  # to one form, before they are sent
STEP_TIMEOUT = 30.0  # seconds for the server's answer to one step; it may hash a password
MAX_REDIRECTS = 5
MAX_LOGIN_STEPS = 20  # forms of one login, wrong answers included

Fatal = ConfigError
"""Raised where another try cannot help; the text is for the person."""


class SessionEnded(ConnectionFailed):
    """The server does not take the cookie any more; the next try logs in again."""


class Connector:
    """Makes connections with a granted CONNECT, and remembers the sessions."""

    def __init__(
        self,
        settings: StartClient,
        *,
        wants_dtls: bool,
        chacha_first: bool,
        ask: Callable[[Message], Awaitable[Message]],
        on_login: Callable[[], None],
        on_session: Callable[[HeldSession], None],
    ) -> None:
        self._settings = settings
        self._wants_dtls = wants_dtls
        self._ask = ask
        self._on_login = on_login
        self._on_session = on_session
        self._dialler = Dialler(settings, chacha_first=chacha_first)
        self.renewal = ClientRenewal(settings, ask)
        self._own: set[tuple[str, int]] = set()
        """Remotes that have shown to be pyvpn."""
        self._held: dict[tuple[str, int], HeldSession] = {}
        """Sessions by remote, the one used last at the end."""
        self._dialled: list[ServerConnection] = []
        """Connections of the attempt under way."""
        for held in settings.sessions:
            self._held[held.host, held.port] = held
            self._dialler.remember(held.at_host, held.outer)

    def has_session(self, remote: RemoteEntry) -> bool:
        """Return whether a cookie of this remote's is held."""
        return _key(remote) in self._held

    def in_order(self, remotes: Sequence[RemoteEntry]) -> list[RemoteEntry]:
        """Return where there is a session first, the last one before others, then the rest."""
        used = list(self._held)
        return sorted(
            remotes,
            key=lambda remote: -used.index(_key(remote)) if _key(remote) in used else 1,
        )

    async def reach(
        self, remote: RemoteEntry, *, rekey: bool = False
    ) -> tuple[ServerConnection, ServerParams]:
        """Log in if need be, and have the CONNECT granted.

        Raises Fatal where another try cannot help, else ConnectionFailed, ProtocolError (of which
        ServerNotTrusted), OSError or TimeoutError.
        """
        self._dialled.clear()
        held = self._held.get(_key(remote))
        where = (held.at_host, held.at_port) if held else _key(remote)
        connection = await self._dial(remote, *where)
        try:
            if held is None:
                connection, held = await self._log_in(connection, remote)
                self._held[_key(remote)] = held
            return await self._connect(connection, remote, held, rekey=rekey)
        except BaseException as exc:
            for dialled in self._dialled:
                dialled.close()
            if isinstance(exc, Fatal) and self.renewal.swap():
                self._dialler.show(self.renewal.shown_pem)
                raise ConnectionFailed(f"{exc}; trying with the other certificate") from exc
            raise

    async def _dial(self, remote: RemoteEntry, host: str, port: int) -> ServerConnection:
        connection = await self._dialler.dial(remote, host, port)
        self._dialled.append(connection)
        return connection

    async def _next(self, connection: ServerConnection) -> object:
        connection.send_requests()
        async with asyncio.timeout(STEP_TIMEOUT):
            return await connection.next_event()

    async def _log_in(
        self, connection: ServerConnection, remote: RemoteEntry
    ) -> tuple[ServerConnection, HeldSession]:
        """Go through the login; return the connection to go on with, and the session.

        Raises Fatal when the server refuses us for good or nobody answers its questions.
        """
        self._on_login()
        connection.channel.start(self._settings.path)
        redirects = 0
        for _ in range(MAX_LOGIN_STEPS):
            event = await self._next(connection)
            if isinstance(event, LoggedIn):
                at = connection.channel
                held = HeldSession(*_key(remote), at.host, at.port, event.cookie, "", "", [])
                return connection, held
            if isinstance(event, NewConnectionNeeded):
                connection = await self._fresh(connection, remote)
                continue
            if isinstance(event, LoginRefused):
                if event.final:
                    raise Fatal(f"login refused: {event.reason}")
                raise ConnectionFailed(event.reason)
            if isinstance(event, Redirected):
                redirects += 1
                if redirects > MAX_REDIRECTS:
                    raise ConnectionFailed("the server redirects without end")
                connection.close()
                connection = await self._dial(remote, event.host, event.port)
                connection.channel.start(event.path)
            elif isinstance(event, FormAsked):
                await self._answer(connection, event)
                if connection.channel.needs_new_connection or connection.lost.done():
                    connection = await self._fresh(connection, remote)
        raise ConnectionFailed("the server asks without end")

    async def _fresh(self, connection: ServerConnection, remote: RemoteEntry) -> ServerConnection:
        """Servers may close between two steps: the login goes on over another connection."""
        before = connection.channel
        fresh = await self._dial(remote, before.host, before.port)
        fresh.channel.resume(before)
        connection.close()
        return fresh

    async def _answer(self, connection: ServerConnection, asked: FormAsked) -> None:
        """Answer a form; ask again for what no server would take, such as a control character."""
        for _ in range(MAX_BAD_ANSWERS):
            values = await self._fill(asked)
            try:
                connection.channel.answer(values)
            except LocalProtocolError as exc:
                asked = replace(asked, error=str(exc))
            else:
                return
        raise Fatal("the answers to the server's questions cannot be sent")

    async def _fill(self, asked: FormAsked) -> dict[str, str]:
        """Return the answers to a form: the user's name is known, the rest a person says."""
        known = {}
        if self._settings.user and not asked.error:
            known = {i.name: self._settings.user for i in asked.inputs if i.name == "username"}
        missing = [
            *(FormInput(c.name, "choice", c.label, dict(c.options)) for c in asked.choices),
            *(FormInput(i.name, i.type, i.label) for i in asked.inputs if i.name not in known),
        ]
        if not missing:
            return known
        reply = await self._ask(Prompt(asked.message, asked.error or None, missing))
        if not isinstance(reply, PromptReply) or reply.cancelled:
            reason = reply.reason if isinstance(reply, PromptReply) else ""
            raise Fatal(reason or "the server asks for a login that nobody is there to answer")
        return known | reply.values

    async def _connect(
        self,
        connection: ServerConnection,
        remote: RemoteEntry,
        held: HeldSession,
        *,
        rekey: bool,
    ) -> tuple[ServerConnection, ServerParams]:
        if connection.lost.done() or connection.channel.needs_new_connection:
            connection.close()
            connection = await self._dial(remote, held.at_host, held.at_port)
        options = ConnectOptions(
            hostname=self._settings.hostname,
            wants_dtls=self._wants_dtls,
            rekey=rekey,
            renewal=self.renewal.request() if _key(remote) in self._own else b"",
            address4=IPv4Address(held.address4) if held.address4 else None,
            address6=IPv6Address(held.address6) if held.address6 else None,
        )
        connection.channel.connect(options, held.cookie)
        event = await self._next(connection)
        if isinstance(event, TunnelOpened):
            self._hold(held, event.params)
            if event.params.is_pyvpn:
                self._own.add(_key(remote))
            if await self.renewal.contact(event.params):
                self._dialler.show(self.renewal.shown_pem)
            return connection, event.params
        if isinstance(event, TunnelRefused) and event.cookie_refused and not rekey:
            del self._held[_key(remote)]  # the session is over: the next try logs in again
            self._on_session(replace(held, cookie=""))
            raise SessionEnded("the session has ended, a new login is needed")
        if isinstance(event, TunnelRefused):
            raise ConnectionFailed(f"tunnel refused: {event.status} {event.reason}")
        raise ConnectionFailed("the server answers a CONNECT with something else")

    def _hold(self, held: HeldSession, params: ServerParams) -> None:
        """Note what was given: the next CONNECT, of whichever worker, asks for the same."""
        key = held.host, held.port
        now = replace(
            held,
            cookie=params.cookie or held.cookie,
            address4=str(params.address4 or ""),
            address6=str(params.address6 or ""),
            outer=self._dialler.worked(held.at_host),
        )
        if now != held or next(reversed(self._held), None) != key:
            self._held.pop(key, None)
            self._held[key] = now
            self._on_session(now)


def _key(remote: RemoteEntry) -> tuple[str, int]:
    return remote.host, remote.port
