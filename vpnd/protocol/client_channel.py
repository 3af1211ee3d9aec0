"""The TLS channel to a server, client side: HTTP login, CONNECT, then the tunnel.

    IDLE ──start──► LOGIN ──form──► FORM ──answer──► LOGIN      perhaps over several
     │                │                                          connections
     │                └──logged in──► READY ──connect──► CONNECT ──opened──► OPEN
     └──connect (a cookie from before)──────────────────►─┘
    LOGIN, CONNECT ──refused──► ENDED ──start──► LOGIN

No I/O: plaintext in, events and plaintext out.  The channel outlives connections: where a server
closes one between two steps, or after its answer, the next request waits (`needs_new_connection`)
until the worker has another and calls `new_connection`.

Servers ask in one form or in several.  ocserv 1.1.6 takes no password after a wrong one in the
same login, so there the answers are repeated in a fresh login, with the last one replaced.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urljoin, urlsplit

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
from vpnd.wire import auth_client
from vpnd.wire.auth_client import (
    AskForm,
    CertificateAsked,
    Refused,
    encode_init,
    encode_reply,
    one_line,
    parse_reply,
)
from vpnd.wire.cstp import CstpReader
from vpnd.wire.http_client import MAX_COOKIES, HttpClient, Response
from vpnd.wire.params_client import (
    USER_AGENT,
    ConnectOptions,
    connect_fields,
    host_field,
    parse_params,
)
from vpnd.wire.tunnel_params import SESSION_COOKIE, TUNNEL_TARGET

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

MAX_REDIRECTS = 5
MAX_FORMS = 32  # answered in one login; a person with a second factor needs a handful
MAX_REQUESTS = 14  # on one connection: ocserv cuts it at 16
MAX_REASON = 200  # characters of a refusal that reach log and status
REDIRECTS = frozenset({301, 302, 303, 307, 308})
HTTPS = 443
_FAILED = re.compile(r"fail|incorrect|wrong|invalid|denied|try again", re.IGNORECASE)
_HTML = re.compile(rb"\s*(<!doctype\s+html|<html)", re.IGNORECASE)
_PATH = re.compile(r"/[!-~]{0,1023}")
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")


class State(Enum):
    """Where the channel is."""

    IDLE = "waiting to be used"
    LOGIN = "waiting for the server's next step of the login"
    FORM = "waiting for an answer to a form"
    READY = "logged in"
    CONNECT = "waiting for the answer to a CONNECT"
    OPEN = "tunnel"
    ENDED = "refused"


class Step(Enum):
    """What moves it on."""

    START = "start of a login"
    FORM = "form"
    ANSWER = "answer to a form"
    LOGGED_IN = "login complete"
    CONNECT = "request of a tunnel"
    OPENED = "tunnel opened"
    REDIRECTED = "redirection"
    REFUSED = "refusal"


TRANSITIONS = {
    State.IDLE: {Step.START: State.LOGIN, Step.CONNECT: State.CONNECT},
    State.LOGIN: {
        Step.FORM: State.FORM,
        Step.LOGGED_IN: State.READY,
        Step.REDIRECTED: State.IDLE,
        Step.REFUSED: State.ENDED,
    },
    State.FORM: {Step.ANSWER: State.LOGIN, Step.START: State.LOGIN, Step.REFUSED: State.ENDED},
    State.READY: {Step.CONNECT: State.CONNECT, Step.START: State.LOGIN},
    State.CONNECT: {Step.OPENED: State.OPEN, Step.REFUSED: State.ENDED},
    State.OPEN: {},
    State.ENDED: {Step.START: State.LOGIN, Step.CONNECT: State.CONNECT},
}


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that can be sent again on another connection."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(slots=True)
class _Login:
    """One login: what the server has us remember, and what was answered so far."""

    host: str
    port: int
    path: str
    cookies: dict[str, str] = field(default_factory=dict, repr=False)
    form: AskForm | None = field(default=None, repr=False)
    answered: list[dict[str, str]] = field(default_factory=list, repr=False)
    """The values of each form so far, so that a login can be repeated; they hold passwords."""
    repeated: list[dict[str, str]] = field(default_factory=list, repr=False)
    """Values that answer the next forms without asking."""
    failed: bool = False
    """The form at hand says that the last answer was wrong."""
    certificate_asked: bool = False


@dataclass(slots=True)
class ClientChannel:
    """Our TLS channel.  Send `data_to_send()` after every call.

    `user` answers an input named "username", `group` a choice of groups (by label or value); the
    worker is asked for everything else.
    """

    user: str = ""
    group: str = ""
    user_agent: str = USER_AGENT
    state: State = State.IDLE
    reader: CstpReader = field(default_factory=CstpReader, repr=False)
    """Packets of the open tunnel; the worker feeds it directly."""
    _http: HttpClient = field(default_factory=HttpClient, repr=False)
    _out: list[bytes] = field(default_factory=list, repr=False)
    _login: _Login | None = field(default=None, repr=False)
    _redirects: int = 0
    _forms: int = 0
    _sent: _Request | None = field(default=None, repr=False)
    """The request whose answer is due."""
    _waiting: _Request | None = field(default=None, repr=False)
    """The request that needs another connection."""
    _requests: int = 0

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
        """Say whether the next step, waiting already or not, needs another connection."""
        if self.state in {State.OPEN, State.ENDED}:
            return self._waiting is not None
        return self._waiting is not None or self._is_used_up()

    def _is_used_up(self) -> bool:
        return self._http.must_close or self._requests >= MAX_REQUESTS

    def new_connection(self) -> None:
        """Go on over another connection, whose TLS handshake may still be under way."""
        self._http = HttpClient()
        self._requests = 0
        self._out.clear()
        request, self._waiting = self._waiting, None
        if request is not None:
            self._send(request)

    def data_to_send(self) -> bytes:
        """Return plaintext that waits to be sent."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    # what the worker wants

    def start(self, host: str, path: str = "/", *, port: int = HTTPS) -> None:
        """Begin a login at this server, or begin it over; cookies of another are forgotten."""
        if not _PATH.fullmatch(path):
            raise LocalProtocolError("the path of a server's address is not one visible word")
        self._move(Step.START)
        self._login = _Login(host, port, path)
        self._forms = 0
        self._init()

    def answer(self, values: Mapping[str, str]) -> None:
        """Answer the form that was asked; `values` by the names of its inputs.

        Raises LocalProtocolError for values that cannot be sent; then answer again.
        """
        login = self._login
        if self.state is not State.FORM or login is None or login.form is None:
            raise LocalProtocolError("an answer, but no form was asked")
        given = {**self._known(login.form), **values}
        encode_reply(login.form, given)  # raises before anything has changed
        self._move(Step.ANSWER)
        self._reply(login, given)

    def connect(self, options: ConnectOptions, cookie: str) -> None:
        """Ask for a tunnel with the cookie of a login, of this channel or from before."""
        request = _Request("CONNECT", TUNNEL_TARGET, tuple(connect_fields(options, cookie)))
        self._move(Step.CONNECT)
        self._login = None
        self._send(request)

    # what the server says

    def receive(self, plaintext: bytes) -> list[ClientEvent]:
        """Take plaintext before the tunnel is open; return what it means.

        Raises Malformed for what is not HTTP within its bounds.
        """
        response = self._http.receive(plaintext)
        return [] if response is None else self._take(response)

    def eof(self) -> list[ClientEvent]:
        """The connection has ended; return what that means for a login; never raises.

        A server may close a connection that it had kept: then the request goes over another.
        """
        is_waiting, is_fresh = self._http.is_waiting, self._requests <= 1
        try:
            response = self._http.eof()
        except Malformed:
            response = None
        if response is not None:
            return self._take(response)
        if is_waiting and not is_fresh and self._sent is not None:
            self._waiting, self._sent = self._sent, None
            return [NewConnectionNeeded()]
        return []

    def _take(self, response: Response) -> list[ClientEvent]:
        self._sent = None
        if self.state is State.CONNECT:
            return [self._tunnel_answer(response)]
        events = self._login_answer(response)
        return events if self._waiting is None else [*events, NewConnectionNeeded()]

    # login

    def _init(self, *, certificate_failed: bool = False) -> None:
        login = self._login
        assert login is not None
        url = f"https://{host_field(login.host, login.port)}{login.path}"
        body = encode_init(url, group=self.group, certificate_failed=certificate_failed)
        self._post(login, login.path, body)

    def _reply(self, login: _Login, values: dict[str, str]) -> None:
        """Send an answer, or repeat the whole login with it where the server needs that."""
        form, login.form = login.form, None
        assert form is not None
        if login.failed:
            login.failed = False
            before = login.answered[:-1]
            login.answered.clear()
            if before:  # asked in several forms: the server may take no second try, see above
                login.repeated = [*before, values]
                login.cookies.clear()
                self._init()
                return
        login.answered.append(values)
        self._post(
            login, urlsplit(urljoin(login.path, form.action)).path, encode_reply(form, values)
        )

    def _post(self, login: _Login, path: str, body: bytes) -> None:
        headers = [
            ("Host", host_field(login.host, login.port)),
            ("User-Agent", self.user_agent),
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
            ("X-Transcend-Version", "1"),
            ("X-Aggregate-Auth", "1"),
            ("X-Pyvpn-Version", "1"),
            ("X-Pad", auth_client.pad(body)),
            ("Content-Type", "application/xml; charset=utf-8"),
        ]
        if login.cookies:
            pairs = "; ".join(f"{name}={value}" for name, value in login.cookies.items())
            headers.append(("Cookie", pairs))
        self._send(_Request("POST", path, tuple(headers), body))

    def _send(self, request: _Request) -> None:
        if self._is_used_up():
            self._waiting = request
            return
        self._requests += 1
        self._sent = request
        self._out.append(
            self._http.request(request.method, request.target, request.headers, request.body)
        )

    def _login_answer(self, response: Response) -> list[ClientEvent]:
        login = self._login
        assert login is not None
        for name, value in response.cookies().items():
            login.cookies.pop(name, None)
            if value and len(login.cookies) < MAX_COOKIES:
                login.cookies[name] = value
        if response.status in REDIRECTS:
            return [self._redirect(login, response)]
        if response.status != 200:
            return [self._refused(_status(response), final=response.status in {401, 403})]
        try:
            reply = parse_reply(response.body)
        except Malformed as exc:
            portal = " (a captive portal?)" if _HTML.match(response.body) else ""
            return [self._refused(f"no VPN server answers here{portal}: {exc}", final=False)]
        if isinstance(reply, auth_client.LoggedIn):
            return [self._logged_in(login, reply)]
        if isinstance(reply, CertificateAsked):
            return self._without_certificate(login)
        if isinstance(reply, Refused):
            return [self._refused(reply.text, final=True)]
        return self._asked(login, reply)

    def _asked(self, login: _Login, form: AskForm) -> list[ClientEvent]:
        """Answer a form as far as that can be done without the user."""
        self._forms += 1
        if self._forms > MAX_FORMS:
            return [self._refused(f"the server asked more than {MAX_FORMS} times", final=True)]
        if not _on_this_server(login, form.action):
            return [self._refused("the server wants the answer sent elsewhere", final=True)]
        self._move(Step.FORM)
        login.form = form
        has_answered = bool(login.answered)
        error = form.error or (form.message if _FAILED.search(form.message) else "")
        login.failed = has_answered and bool(error)
        known = self._known(form)
        if login.failed:
            login.repeated.clear()
        elif login.repeated:
            known |= login.repeated.pop(0)
        missing = tuple(line for line in form.inputs if line.name not in known)
        if not missing and not login.failed:
            self._move(Step.ANSWER)
            self._reply(login, known)
            return []
        if not missing:  # nothing of what was wrong is the user's to change
            return [self._refused(error, final=True)]
        message = "" if error == form.message else form.message
        return [FormAsked(message, error if has_answered else form.error, missing)]

    def _known(self, form: AskForm) -> dict[str, str]:
        """Return the answers that need no question."""
        known = {}
        for line in form.inputs:
            if line.name == "username" and self.user:
                known[line.name] = self.user
        for choice in form.choices:
            for value, label in choice.options:
                if self.group and self.group.lower() in {value.lower(), label.lower()}:
                    known[choice.name] = value
        return known

    def _without_certificate(self, login: _Login) -> list[ClientEvent]:
        if login.certificate_asked:
            return [self._refused("the server demands a client certificate", final=True)]
        login.certificate_asked = True
        self._init(certificate_failed=True)
        return []

    def _logged_in(self, login: _Login, reply: auth_client.LoggedIn) -> ClientEvent:
        cookie = login.cookies.get(SESSION_COOKIE) or reply.session_token or ""
        if not auth_client.TOKEN.fullmatch(cookie):
            return self._refused("the server gave no usable cookie for the tunnel", final=False)
        self._move(Step.LOGGED_IN)
        self._login = None  # and with it the passwords
        self._redirects = 0
        return LoggedIn(cookie, reply.banner)

    def _refused(self, reason: str, *, final: bool) -> LoginRefused:
        self._move(Step.REFUSED)
        self._login = None
        return LoginRefused(one_line(reason, MAX_REASON), final)

    def _redirect(self, login: _Login, response: Response) -> ClientEvent:
        self._redirects += 1
        if self._redirects > MAX_REDIRECTS:
            return self._refused(
                f"the server redirects more than {MAX_REDIRECTS} times", final=True
            )
        base = f"https://{host_field(login.host, login.port)}{login.path}"
        try:
            parts = urlsplit(urljoin(base, response.header("Location") or ""))
            host, port = parts.hostname or "", parts.port or HTTPS
        except ValueError:
            host, port = "", 0
        path = parts.path or "/" if host else ""
        if parts.scheme != "https" or parts.username is not None:
            return self._refused("the server redirects to something other than https", final=True)
        if not _HOST.fullmatch(host) or not _PATH.fullmatch(path):
            return self._refused("the server redirects to a strange address", final=True)
        self._move(Step.REDIRECTED)
        self._login = None
        return Redirected(host, port, path)

    # tunnel

    def _tunnel_answer(self, response: Response) -> ClientEvent:
        if not 200 <= response.status < 300:
            self._move(Step.REFUSED)
            reason = one_line(_status(response), MAX_REASON)
            return TunnelRefused(response.status, reason, cookie_refused=response.status == 401)
        try:
            params = parse_params(response)
            packets = tuple(self.reader.receive(self._http.trailing))
        except Malformed as exc:
            self._move(Step.REFUSED)
            return TunnelRefused(response.status, str(exc), cookie_refused=False)
        self._move(Step.OPENED)
        return TunnelOpened(params, packets)


def _status(response: Response) -> str:
    """Return what a refusal says, its own reason first."""
    own = response.header("X-Reason") or ""
    return f"the server answers {response.status} {own or response.reason}"


def _on_this_server(login: _Login, action: str) -> bool:
    """Say whether a form's answer goes back to where the form came from."""
    base = f"https://{host_field(login.host, login.port)}{login.path}"
    try:
        parts = urlsplit(urljoin(base, action))
        port = parts.port or HTTPS
    except ValueError:
        return False
    host = login.host.strip("[]").lower()
    is_same = (parts.scheme, parts.hostname, port) == ("https", host, login.port)
    return is_same and parts.username is None and _PATH.fullmatch(parts.path or "/") is not None
