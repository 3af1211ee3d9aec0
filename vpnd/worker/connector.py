"""The way to a tunnel: dial a server, log in unless a cookie is held, have the CONNECT granted.

A cookie belongs to the remote that gave it, and holds where that remote redirected us.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from vpnd.errors import ConfigError, LocalProtocolError
from vpnd.protocol.client_channel import (
    ClientChannel,
    ConnectOptions,
    FormAsked,
    LoggedIn,
    LoginRefused,
    NewConnectionNeeded,
    Redirected,
    TunnelOpened,
    TunnelRefused,
)
from vpnd.protocol.tls_client import TlsClientStream, client_context
from vpnd.wire.params_client import ServerParams
from vpnd.worker.client_stream import ConnectionFailed, ServerConnection
from vpnd.worker.messages import FormInput, Message, Prompt, PromptReply, RemoteEntry, StartClient

MAX_BAD_ANSWERS = 3  # to one form, before they are sent
DIAL_TIMEOUT = 15.0  # seconds to resolve, race the addresses, and finish TLS
STEP_TIMEOUT = 30.0  # seconds for the server's answer to one step; it may hash a password
HAPPY_EYEBALLS_DELAY = 0.25  # seconds, RFC 8305 section 8
MAX_REDIRECTS = 5
MAX_LOGIN_STEPS = 20  # forms of one login, wrong answers included

Fatal = ConfigError
"""Raised where another try cannot help; the text is for the person."""


class SessionEnded(ConnectionFailed):
    """The server does not take the cookie any more; the next try logs in again."""


@dataclass(frozen=True, slots=True)
class _Cookie:
    """A session's cookie and the (host, port) it holds at."""

    value: str = field(repr=False)
    where: tuple[str, int]


class Connector:
    """Makes connections with a granted CONNECT, and remembers the cookies."""

    def __init__(
        self,
        settings: StartClient,
        *,
        wants_dtls: bool,
        chacha_first: bool,
        ask: Callable[[Message], Awaitable[Message]],
        on_login: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._wants_dtls = wants_dtls
        self._ask = ask
        self._on_login = on_login
        self._cookies: dict[tuple[str, int], _Cookie] = {}
        self._dialled: list[ServerConnection] = []
        """Connections of the attempt under way."""
        self._contexts = {
            remote.ca_pem: client_context(
                ca_pem=remote.ca_pem,
                certificate_pem=settings.certificate_pem,
                key_pem=settings.key_pem,
                allow_tls12=settings.allow_tls12,
                chacha_first=chacha_first,
            )
            for remote in settings.remotes
        }

    def has_session(self, remote: RemoteEntry) -> bool:
        """Return whether a cookie of this remote's is held."""
        return _key(remote) in self._cookies

    async def reach(
        self, remote: RemoteEntry, earlier: ServerParams | None, *, rekey: bool = False
    ) -> tuple[ServerConnection, ServerParams]:
        """Log in if need be, and have the CONNECT granted; `earlier` is what was given before.

        Raises Fatal where another try cannot help, else ConnectionFailed, ProtocolError (of which
        ServerNotTrusted), OSError or TimeoutError.
        """
        self._dialled.clear()
        held = self._cookies.get(_key(remote))
        where = held.where if held else (remote.host, remote.port)
        connection = await self._dial(remote, *where)
        try:
            if held is None:
                connection, held = await self._log_in(connection, remote)
                self._cookies[_key(remote)] = held
            return await self._connect(connection, remote, held, earlier, rekey=rekey)
        except BaseException:
            for dialled in self._dialled:
                dialled.close()
            raise

    async def _dial(self, remote: RemoteEntry, host: str, port: int) -> ServerConnection:
        """Return a connection whose TLS stands and whose server is the right one."""
        loop = asyncio.get_running_loop()

        def make() -> ServerConnection:
            tls = TlsClientStream(
                self._contexts[remote.ca_pem],
                server_name=remote.server_name or host,
                pins=remote.pins,
            )
            return ServerConnection(tls, ClientChannel(host, port))

        async with asyncio.timeout(DIAL_TIMEOUT):
            _, connection = await loop.create_connection(
                make, host, port, happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY, interleave=1
            )
            try:
                await connection.secured()
            except BaseException:
                connection.close()
                raise
        self._dialled.append(connection)
        return connection

    async def _next(self, connection: ServerConnection) -> object:
        connection.send_requests()
        async with asyncio.timeout(STEP_TIMEOUT):
            return await connection.next_event()

    async def _log_in(
        self, connection: ServerConnection, remote: RemoteEntry
    ) -> tuple[ServerConnection, _Cookie]:
        """Go through the login; return the connection to go on with, and the cookie.

        Raises Fatal when the server refuses us for good or nobody answers its questions.
        """
        self._on_login()
        connection.channel.start(self._settings.path)
        redirects = 0
        for _ in range(MAX_LOGIN_STEPS):
            event = await self._next(connection)
            if isinstance(event, LoggedIn):
                where = (connection.channel.host, connection.channel.port)
                return connection, _Cookie(event.cookie, where)
            if isinstance(event, NewConnectionNeeded):
                connection = await self._fresh(connection, remote)
                continue
            if isinstance(event, LoginRefused):
                if event.final:
                    raise Fatal(f"login refused: {event.reason}")
                raise ConnectionFailed(f"login refused: {event.reason}")
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
        missing = [FormInput(i.name, i.type, i.label) for i in asked.inputs if i.name not in known]
        if not missing:
            return known
        reply = await self._ask(Prompt(asked.message, asked.error or None, missing))
        if not isinstance(reply, PromptReply) or reply.cancelled:
            raise Fatal("the server asks for a login that nobody is there to answer")
        return known | reply.values

    async def _connect(
        self,
        connection: ServerConnection,
        remote: RemoteEntry,
        held: _Cookie,
        earlier: ServerParams | None,
        *,
        rekey: bool,
    ) -> tuple[ServerConnection, ServerParams]:
        if connection.lost.done() or connection.channel.needs_new_connection:
            connection.close()
            connection = await self._dial(remote, *held.where)
        options = ConnectOptions(
            hostname=self._settings.hostname,
            wants_dtls=self._wants_dtls,
            rekey=rekey,
            address4=earlier.address4 if earlier else None,
            address6=earlier.address6 if earlier else None,
        )
        connection.channel.connect(options, held.value)
        event = await self._next(connection)
        if isinstance(event, TunnelOpened):
            if event.params.cookie:
                self._cookies[_key(remote)] = replace(held, value=event.params.cookie)
            return connection, event.params
        if isinstance(event, TunnelRefused) and event.cookie_refused and not rekey:
            del self._cookies[_key(remote)]  # the session is over: the next try logs in again
            raise SessionEnded("the session has ended, a new login is needed")
        if isinstance(event, TunnelRefused):
            raise ConnectionFailed(f"tunnel refused: {event.status} {event.reason}")
        raise ConnectionFailed("the server answers a CONNECT with something else")


def _key(remote: RemoteEntry) -> tuple[str, int]:
    return remote.host, remote.port
