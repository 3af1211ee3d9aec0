"""One login at a server: decides what to answer to each step.  No I/O, no connection.

Servers ask in one form or in several.  ocserv 1.1.6 takes no password after a wrong one in the
same login, nor a new login over the same connection, and answers a wrong one-time code with 401
(seen live).  So where a server asked in several forms, or refuses without asking again, the whole
login is repeated over another connection, with the last answer replaced.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.protocol.client_events import (
    FormAsked,
    LoggedIn,
    LoginEvent,
    LoginRefused,
    Redirected,
)
from vpnd.wire import auth_client
from vpnd.wire.auth_client import AskForm, Choice, encode_init, encode_reply, one_line, parse_reply
from vpnd.wire.http_client import MAX_COOKIES, HttpRequest, Response
from vpnd.wire.params_client import HTTPS, USER_AGENT, host_field
from vpnd.wire.tunnel_params import SESSION_COOKIE

MAX_FORMS = 32  # answered in one login; a person with a second factor needs a handful
MAX_REASON = 200  # characters of a refusal that reach log and status
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FAILED = re.compile(r"fail|incorrect|wrong|invalid|denied|try again", re.IGNORECASE)
_HTML = re.compile(rb"\s*(<!doctype\s+html|<html)", re.IGNORECASE)
_PATH = re.compile(r"/[!-~]{0,1023}")
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")


@dataclass(slots=True)
class ClientLogin:
    """What one server has us remember while we log in, and what was answered so far."""

    host: str
    port: int
    path: str
    user_agent: str = USER_AGENT
    _cookies: dict[str, str] = field(default_factory=dict, repr=False)
    _form: AskForm | None = field(default=None, repr=False)
    _forms: int = 0
    _answered: list[dict[str, str]] = field(default_factory=list, repr=False)
    """The values of each form so far, so that a login can be repeated; they hold passwords."""
    _repeated: list[dict[str, str]] = field(default_factory=list, repr=False)
    """Values that answer the next forms without asking."""
    _asked_last: AskForm | None = field(default=None, repr=False)
    """The form of the last answer."""
    _is_over: bool = False
    """The server has refused the last answer, and ended the login with that."""
    _failed: bool = False
    """The form at hand says that the last answer was wrong."""
    _certificate_asked: bool = False

    def __post_init__(self) -> None:
        if not _PATH.fullmatch(self.path):
            raise LocalProtocolError("the path of a server's address is not one visible word")

    def begin(self, *, certificate_failed: bool = False) -> HttpRequest:
        """Return the request that begins the login."""
        body = encode_init(self._url, certificate_failed=certificate_failed)
        return self._post(self.path, body)

    @property
    def wants_new_connection(self) -> bool:
        """Say whether the answer to the form at hand begins the login again, see above."""
        return self._is_over or (self._failed and len(self._answered) > 1)

    def answer(self, values: Mapping[str, str]) -> HttpRequest:
        """Return the request that answers the form that was asked.

        Raises LocalProtocolError for values that cannot be sent; then answer again.
        """
        form = self._form
        if form is None:
            raise LocalProtocolError("an answer, but no form was asked")
        body, given = encode_reply(form, values), dict(values)
        self._form, self._asked_last = None, form
        if self.wants_new_connection:
            self._repeated = [*self._answered[:-1], given]
            self._answered.clear()
            self._cookies.clear()
            self._failed = self._is_over = False
            return self.begin()
        if self._failed:
            self._answered.clear()
        self._answered.append(given)
        return self._post(urlsplit(urljoin(self.path, form.action)).path or "/", body)

    def receive(self, response: Response) -> LoginEvent | HttpRequest:
        """Return what the server's answer means, or the next request where nobody is asked."""
        for name, value in response.cookies().items():
            self._cookies.pop(name, None)
            if value and len(self._cookies) < MAX_COOKIES:
                self._cookies[name] = value
        if response.status in REDIRECTS:
            return self._redirect(response)
        if response.status == 401 and self._answered and self._asked_last is not None:
            return self._ask_again(self._asked_last, status_text(response))
        if response.status != 200:
            return _refused(status_text(response), final=response.status in {401, 403})
        try:
            reply = parse_reply(response.body)
        except Malformed as exc:
            what = "a web page (a captive portal?)" if _HTML.match(response.body) else str(exc)
            return _refused(f"no VPN server answers here: {what}", final=False)
        if isinstance(reply, auth_client.LoggedIn):
            return self._logged_in(reply)
        if isinstance(reply, auth_client.CertificateAsked):
            return self._without_certificate()
        if isinstance(reply, auth_client.Refused):
            return _refused(reply.text, final=True)
        return self._asked(reply)

    @property
    def _url(self) -> str:
        return f"https://{host_field(self.host, self.port)}{self.path}"

    def _post(self, path: str, body: bytes) -> HttpRequest:
        headers = [
            ("Host", host_field(self.host, self.port)),
            ("User-Agent", self.user_agent),
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
            ("X-Transcend-Version", "1"),
            ("X-Aggregate-Auth", "1"),
            ("X-Pyvpn-Version", "1"),
            ("X-Pad", auth_client.pad(body)),
            ("Content-Type", "application/xml; charset=utf-8"),
        ]
        if self._cookies:
            pairs = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
            headers.append(("Cookie", pairs))
        return HttpRequest("POST", path, tuple(headers), body)

    def _asked(self, form: AskForm) -> LoginEvent | HttpRequest:
        """Ask the user, unless this form can be answered by what is known already."""
        self._forms += 1
        if self._forms > MAX_FORMS:
            return _TOO_MANY
        if not self._is_ours(form.action):
            return _refused("the server wants the answer sent elsewhere", final=True)
        self._form = form
        complaint = form.error or (form.message if _FAILED.search(form.message) else "")
        self._failed = bool(self._answered) and bool(complaint)
        if self._failed:
            self._repeated.clear()
        known = self._repeated.pop(0) if self._repeated else {}
        names = [*(line.name for line in form.inputs), *(each.name for each in _choices(form))]
        if self._failed and not names:
            return _refused(complaint, final=True)
        if all(name in known for name in names):
            return self.answer({name: known[name] for name in names})
        self._repeated.clear()  # the login goes another way than last time
        error = complaint if self._failed else form.error
        message = "" if error == form.message else form.message
        return FormAsked(message, error, form.inputs, _choices(form))

    def _ask_again(self, form: AskForm, complaint: str) -> LoginEvent:
        """The last answer was wrong, and the server does not ask: we do."""
        self._forms += 1
        if self._forms > MAX_FORMS:
            return _TOO_MANY
        if not form.inputs:
            return _refused(complaint, final=True)
        self._form, self._failed, self._is_over = form, True, True
        self._repeated.clear()
        return FormAsked("", complaint, form.inputs, _choices(form))

    def _without_certificate(self) -> LoginEvent | HttpRequest:
        if self._certificate_asked:
            return _refused("the server demands a client certificate", final=True)
        self._certificate_asked = True
        return self.begin(certificate_failed=True)

    def _logged_in(self, reply: auth_client.LoggedIn) -> LoginEvent:
        cookie = self._cookies.get(SESSION_COOKIE) or reply.session_token or ""
        if not auth_client.TOKEN.fullmatch(cookie):
            return _refused("the server gave no usable cookie for the tunnel", final=False)
        return LoggedIn(cookie, reply.banner)

    def _redirect(self, response: Response) -> LoginEvent:
        try:
            parts = urlsplit(urljoin(self._url, response.header("Location") or ""))
            host, port = parts.hostname or "", parts.port or HTTPS
        except ValueError:
            return _refused("the server redirects to a strange address", final=True)
        if parts.scheme != "https" or parts.username is not None:
            return _refused("the server redirects to something other than https", final=True)
        path = parts.path or "/"
        if not _HOST.fullmatch(host) or not _PATH.fullmatch(path):
            return _refused("the server redirects to a strange address", final=True)
        return Redirected(host, port, path)

    def _is_ours(self, action: str) -> bool:
        """Say whether a form's answer goes back to where the form came from."""
        try:
            parts = urlsplit(urljoin(self._url, action))
            place = (parts.scheme, parts.hostname, parts.port or HTTPS)
        except ValueError:
            return False
        is_same = place == ("https", self.host.strip("[]").lower(), self.port)
        return is_same and parts.username is None and bool(_PATH.fullmatch(parts.path or "/"))


def _choices(form: AskForm) -> tuple[Choice, ...]:
    """Return what there is to choose: one option is none."""
    return tuple(choice for choice in form.choices if len(choice.options) > 1)


def _refused(reason: str, *, final: bool) -> LoginRefused:
    return LoginRefused(one_line(reason, MAX_REASON), final)


_TOO_MANY = _refused(f"the server asked more than {MAX_FORMS} times", final=True)


def status_text(response: Response) -> str:
    """Return one line on an answer that refuses, with the server's own reason if it gave one."""
    own = response.header("X-Reason") or response.reason
    return one_line(f"the server answers {response.status} {own}", MAX_REASON)
