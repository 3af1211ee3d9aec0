"""The TLS channel of one client, server side: HTTP login, CONNECT, then the tunnel.

    HTTP ──login step──► LOGIN ──answered──► HTTP        a client may need several
     │                                                   connections for its login
     └──CONNECT──► CONNECT ──opened──► OPEN              packets from here on
    any ──refused, malformed, BYE──► CLOSING

No I/O: plaintext in, events and plaintext out.  While a step waits for its answer the
client has to wait too; whatever it sends before then is refused.
"""

from dataclasses import dataclass, field
from enum import Enum

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.protocol.events import Event, LoginStep, LogoutRequested, TunnelRequested
from vpnd.wire.auth_messages import (
    AuthForm,
    encode_form,
    encode_refusal,
    encode_success,
    parse_auth_request,
)
from vpnd.wire.cstp import CstpReader
from vpnd.wire.http import HttpServer, Request
from vpnd.wire.tunnel_params import TunnelParams, encode_params, parse_connect

TUNNEL_PATH = "/CSCOSSLC/tunnel"
LOGIN_COOKIE = "webvpncontext"
SESSION_COOKIE = "webvpn"
MAX_PATH = 64  # characters of a path that may be a login page (a group's name)
_XML = ("Content-Type", "text/xml; charset=utf-8")
_VERSION = ("X-Transcend-Version", "1")
_CLOSE = ("Connection", "close")
_COOKIE_FLAGS = "; path=/; Secure; HttpOnly"


class State(Enum):
    """Where the channel is."""

    HTTP = "waiting for a request"
    LOGIN = "waiting for the answer to a login step"
    CONNECT = "waiting for the answer to a CONNECT"
    OPEN = "tunnel"
    CLOSING = "closing"


class Step(Enum):
    """What moves it on."""

    LOGIN_STEP = "login step"
    ANSWERED = "login step answered"
    CONNECT = "tunnel requested"
    OPENED = "tunnel opened"
    END = "end"


TRANSITIONS = {
    State.HTTP: {
        Step.LOGIN_STEP: State.LOGIN,
        Step.CONNECT: State.CONNECT,
        Step.END: State.CLOSING,
    },
    State.LOGIN: {Step.ANSWERED: State.HTTP, Step.END: State.CLOSING},
    State.CONNECT: {Step.OPENED: State.OPEN, Step.END: State.CLOSING},
    State.OPEN: {Step.END: State.CLOSING},
    State.CLOSING: {Step.END: State.CLOSING},
}


@dataclass(slots=True)
class ServerChannel:
    """One client's TLS channel.  Send `data_to_send()` after every call."""

    state: State = State.HTTP
    reader: CstpReader = field(default_factory=CstpReader)
    """Packets of the open tunnel; the worker feeds it directly."""
    _http: HttpServer = field(default_factory=HttpServer)
    _out: list[bytes] = field(default_factory=list)

    def _move(self, step: Step) -> None:
        try:
            self.state = TRANSITIONS[self.state][step]
        except KeyError:
            raise LocalProtocolError(f"{step.value} while {self.state.value}") from None

    def data_to_send(self) -> bytes:
        """Return plaintext that waits to be sent."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def receive(self, plaintext: bytes) -> Event | None:
        """Take plaintext before the tunnel is open; return what the client asks for.

        Malformed input is answered as HTTP and raises Malformed: close after sending.
        """
        try:
            return self._receive(plaintext)
        except Malformed as exc:
            self._out.append(self._http.refuse(exc))
            self._move(Step.END)
            raise

    def _receive(self, plaintext: bytes) -> Event | None:
        if self.state is State.CLOSING:
            return None
        if self.state is not State.HTTP:
            raise Malformed("the client did not wait for the answer")
        request = self._http.receive(plaintext)
        if request is None:
            return None
        if request.method == "CONNECT":
            return self._connect(request)
        if request.method not in {"GET", "POST"} or not _is_login_page(request):
            self._respond(404, "Not found", [_CLOSE])
            self._move(Step.END)
            return None
        return self._login(request)

    def _login(self, request: Request) -> Event:
        asked = parse_auth_request(request.body)
        if asked.kind == "logout":
            cookie = request.cookie(SESSION_COOKIE)
            self._move(Step.LOGIN_STEP)
            return LogoutRequested(cookie)
        step = LoginStep(
            fields=asked.fields,
            group=asked.group,
            login_cookie=request.cookie(LOGIN_COOKIE),
            restart=asked.kind != "auth-reply",
        )
        self._move(Step.LOGIN_STEP)
        return step

    def _connect(self, request: Request) -> Event | None:
        if request.target != TUNNEL_PATH:
            self._respond(404, "Not found", [_CLOSE])
            self._move(Step.END)
            return None
        if self._http.trailing:
            raise Malformed("packets before the answer to CONNECT")
        connect = parse_connect(request)
        self._move(Step.CONNECT)
        return TunnelRequested(connect)

    def _answered(self) -> None:
        """Wait for the next request, unless this was the last the connection may carry."""
        self._move(Step.END if self._http.must_close else Step.ANSWERED)

    def login_form(self, form: AuthForm, login_cookie: str) -> None:
        """Ask the client for more."""
        set_cookie = ("Set-Cookie", f"{LOGIN_COOKIE}={login_cookie}{_COOKIE_FLAGS}")
        self._respond(200, "OK", [_XML, _VERSION, set_cookie], encode_form(form))
        self._answered()

    def login_accepted(self, session_cookie: str) -> None:
        """The client may open its tunnel with this cookie."""
        headers = [
            _XML,
            _VERSION,
            ("Set-Cookie", f"{LOGIN_COOKIE}=; Max-Age=0{_COOKIE_FLAGS}"),
            ("Set-Cookie", f"{SESSION_COOKIE}={session_cookie}{_COOKIE_FLAGS}"),
        ]
        self._respond(200, "OK", headers, encode_success())
        self._answered()

    def login_refused(self, message: str) -> None:
        """Tell the client that this login has failed for good, and close."""
        self._respond(200, "OK", [_XML, _VERSION, _CLOSE], encode_refusal(message))
        self._move(Step.END)

    def logged_out(self) -> None:
        """The session, if there was one, is over: its cookie is forgotten here and there."""
        headers = [
            ("Set-Cookie", f"{SESSION_COOKIE}=; Max-Age=0{_COOKIE_FLAGS}"),
            _VERSION,
            _CLOSE,
        ]
        self._respond(200, "OK", headers)
        self._move(Step.END)

    def login_busy(self) -> None:
        """Too many logins wait already."""
        self._respond(503, "Service unavailable", [("Retry-After", "5"), _CLOSE])
        self._move(Step.END)

    def tunnel_opened(self, params: TunnelParams) -> None:
        """Answer the CONNECT; from now on the channel carries packets."""
        self._respond(200, "CONNECTED", encode_params(params))
        self._move(Step.OPENED)

    def tunnel_refused(self, status: int, reason: str) -> None:
        """Refuse the CONNECT: 401 for a cookie that does not hold, 503 for what may pass."""
        self._respond(status, reason, [("X-Reason", reason), _CLOSE])
        self._move(Step.END)

    def close(self) -> None:
        """Nothing more is expected of this channel."""
        self._move(Step.END)

    def _respond(
        self, status: int, reason: str, headers: list[tuple[str, str]], body: bytes = b""
    ) -> None:
        self._out.append(self._http.respond(status, reason, headers, body))


def _is_login_page(request: Request) -> bool:
    """Any single-level path may be a group's login page; a file never is."""
    path = request.target.partition("?")[0]
    return (
        request.method == "POST"
        or (path.startswith("/") and "/" not in path[1:] and "." not in path)
    ) and len(path) <= MAX_PATH
