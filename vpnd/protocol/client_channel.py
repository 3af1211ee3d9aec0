"""The TLS channel to a server, client side: HTTP login, CONNECT, then the tunnel.

    IDLE ──start──► LOGIN ──form──► FORM ──answer──► LOGIN
     │                └──logged in──► READY ──connect──► CONNECT ──opened──► OPEN
     └──connect (with a cookie from before)─────────────►──┘
    LOGIN, CONNECT ──refused──► ENDED          LOGIN ──redirected──► ENDED

One channel for each connection, no I/O: plaintext in, events and plaintext out.  Servers may
close a connection between two steps, or with an answer: the next request then waits
(`needs_new_connection`) until the channel of another connection takes over by `resume`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.protocol.client_events import (
    ClientEvent,
    FormAsked,
    LoggedIn,
    LoginRefused,
    NewConnectionNeeded,
    Redirected,
    TunnelOpened,
    TunnelRefused,
)
from vpnd.protocol.client_login import ClientLogin, status_text
from vpnd.wire.cstp import CstpReader
from vpnd.wire.http_client import HttpClient, HttpRequest, Response
from vpnd.wire.params_client import (
    HTTPS,
    USER_AGENT,
    ConnectOptions,
    connect_fields,
    parse_params,
)
from vpnd.wire.tunnel_params import TUNNEL_TARGET

__all__ = [
    "ClientChannel",
    "ClientEvent",
    "ConnectOptions",
    "FormAsked",
    "LoggedIn",
    "LoginRefused",
    "NewConnectionNeeded",
    "Redirected",
    "State",
    "TunnelOpened",
    "TunnelRefused",
]

MAX_REQUESTS = 14  # on one connection: ocserv cuts it at 16


class State(Enum):
    """Where the channel is."""

    IDLE = "waiting to be used"
    LOGIN = "waiting for the server's next step of the login"
    FORM = "waiting for an answer to a form"
    READY = "logged in"
    CONNECT = "waiting for the answer to a CONNECT"
    OPEN = "tunnel"
    ENDED = "over"


class Step(Enum):
    """What moves it on."""

    START = "start of a login"
    FORM = "form"
    ANSWER = "answer to a form"
    LOGGED_IN = "login complete"
    CONNECT = "request of a tunnel"
    OPENED = "tunnel opened"
    END = "end"


TRANSITIONS = {
    State.IDLE: {Step.START: State.LOGIN, Step.CONNECT: State.CONNECT},
    State.LOGIN: {
        Step.FORM: State.FORM,
        Step.LOGGED_IN: State.READY,
        Step.END: State.ENDED,
    },
    State.FORM: {Step.ANSWER: State.LOGIN, Step.START: State.LOGIN},
    State.READY: {Step.CONNECT: State.CONNECT, Step.START: State.LOGIN},
    State.CONNECT: {Step.OPENED: State.OPEN, Step.END: State.ENDED},
    State.OPEN: {},
    State.ENDED: {},
}
EVENT_STEPS = {
    FormAsked: Step.FORM,
    LoggedIn: Step.LOGGED_IN,
    LoginRefused: Step.END,
    Redirected: Step.END,
}


@dataclass(slots=True)
class ClientChannel:
    """Our TLS channel over one connection.  Send `data_to_send()` after every call."""

    host: str
    """What was connected to, a DNS name or an address."""
    port: int = HTTPS
    user_agent: str = USER_AGENT
    state: State = State.IDLE
    reader: CstpReader = field(default_factory=CstpReader, repr=False)
    """Packets of the open tunnel; the worker feeds it directly."""
    _http: HttpClient = field(default_factory=HttpClient, repr=False)
    _out: list[bytes] = field(default_factory=list, repr=False)
    _login: ClientLogin | None = field(default=None, repr=False)
    _requests: int = 0
    _sent: HttpRequest | None = field(default=None, repr=False)
    """The request whose answer is due."""
    _waiting: HttpRequest | None = field(default=None, repr=False)
    """The request that needs another connection."""

    def _move(self, step: Step) -> None:
        try:
            self.state = TRANSITIONS[self.state][step]
        except KeyError:
            raise LocalProtocolError(f"{step.value} while {self.state.value}") from None

    @property
    def is_open(self) -> bool:
        """Say whether the tunnel is open: then feed `reader`."""
        return self.state is State.OPEN

    @property
    def needs_new_connection(self) -> bool:
        """Say whether the next request, waiting already or not, needs another connection."""
        if self.state in {State.OPEN, State.ENDED}:
            return False
        return self._waiting is not None or (not self._http.is_waiting and self._is_used_up())

    def _is_used_up(self) -> bool:
        wants_other = self._login is not None and self._login.wants_new_connection
        is_old = self._requests >= MAX_REQUESTS or (wants_other and self._requests > 0)
        return self._http.must_close or is_old

    def resume(self, before: "ClientChannel") -> None:
        """Go on where the channel of an earlier connection to this server stopped."""
        if self.state is not State.IDLE:
            raise LocalProtocolError("a channel in use cannot go on for another")
        self.state, self._login, request = before.hand_over()
        if request is not None:
            self._send(request)

    def hand_over(self) -> tuple[State, ClientLogin | None, HttpRequest | None]:
        """End here, and return what another channel needs to go on."""
        found = (self.state, self._login, self._waiting)
        self.state, self._login, self._waiting = State.ENDED, None, None
        return found

    def data_to_send(self) -> bytes:
        """Return plaintext that waits to be sent."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    # what the worker wants

    def start(self, path: str = "/") -> None:
        """Begin a login, or begin it over."""
        login = ClientLogin(self.host, self.port, path, self.user_agent)
        self._move(Step.START)
        self._login = login
        self._send(login.begin())

    def answer(self, values: Mapping[str, str]) -> None:
        """Answer the form that was asked; `values` by the names of its inputs.

        Raises LocalProtocolError for values that cannot be sent; then answer again.
        """
        if self.state is not State.FORM or self._login is None:
            raise LocalProtocolError(f"{Step.ANSWER.value} while {self.state.value}")
        is_used_up = self._is_used_up()
        request = self._login.answer(values)
        self._move(Step.ANSWER)
        if is_used_up:
            self._waiting = request
        else:
            self._send(request)

    def connect(self, options: ConnectOptions, cookie: str) -> None:
        """Ask for a tunnel with the cookie of a login, of this channel or from before."""
        fields = connect_fields(self.host, self.port, options, cookie)
        self._move(Step.CONNECT)
        self._send(HttpRequest("CONNECT", TUNNEL_TARGET, tuple(fields)))

    def _send(self, request: HttpRequest) -> None:
        if self._is_used_up():
            self._waiting = request
            return
        self._out.append(self._http.request(request))
        self._requests += 1
        self._sent = request

    # what the server says

    def receive(self, plaintext: bytes) -> list[ClientEvent]:
        """Take plaintext before the tunnel is open; return what it means.

        Raises Malformed for what is not HTTP within its bounds.
        """
        response = self._http.receive(plaintext)
        return [] if response is None else [*self._take(response)]

    def eof(self) -> list[ClientEvent]:
        """The connection has ended; return what that means for a login.  Never raises.

        A server may cut a connection that it had kept before: then the request goes over another.
        """
        was_waiting = self._http.is_waiting
        try:
            response = self._http.eof()
        except Malformed:
            response = None
        if response is not None:
            return self._take(response)
        if was_waiting and self._requests > 1 and self._sent is not None:
            self._waiting, self._sent = self._sent, None
            return [NewConnectionNeeded()]
        return []

    def _take(self, response: Response) -> list[ClientEvent]:
        self._sent = None
        if self.state is State.CONNECT:
            return [self._take_tunnel(response)]
        assert self._login is not None  # an answer came, so a login had asked
        found = self._login.receive(response)
        if isinstance(found, HttpRequest):
            self._send(found)
            return [] if self._waiting is None else [NewConnectionNeeded()]
        self._move(EVENT_STEPS[type(found)])
        if not isinstance(found, FormAsked):
            self._login = None  # and with it the passwords
        return [found]

    def _take_tunnel(self, response: Response) -> ClientEvent:
        if not 200 <= response.status < 300:
            self._move(Step.END)
            cookie_refused = response.status == 401
            return TunnelRefused(response.status, status_text(response), cookie_refused)
        try:
            params = parse_params(response)
            packets = tuple(self.reader.receive(self._http.trailing))
        except Malformed as exc:
            self._move(Step.END)
            return TunnelRefused(response.status, str(exc), cookie_refused=False)
        self._move(Step.OPENED)
        return TunnelOpened(params, packets)
