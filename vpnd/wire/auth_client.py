"""The login's bodies as the client sees them: our questions out, the server's `config-auth` in.

The server is not trusted before it is known, and what it says ends on a terminal: no DTD, no
entities, bounds on elements and lengths, no control characters in what is shown, only the
elements that a login needs.  Texts that are too long are cut, everything else beyond a bound is
Malformed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal
from xml.etree.ElementTree import Element, tostring
from xml.sax.saxutils import escape

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.wire.auth_messages import CONTROL, FIELD_NAME, PROLOG

MAX_MARKUP = 4096  # "<" characters; a form with a hundred groups has 300
MAX_INPUTS = 16  # a form has two
MAX_OPTIONS = 256  # of one choice
MAX_OPAQUE = 8 * 1024  # bytes that the server has us carry for it
MAX_OPAQUE_ELEMENTS = 64  # writing them recurses; Cisco's have 4
MAX_VALUE = 1024  # characters of a hidden value, of an answer, of a path
MAX_MESSAGE = 1000  # characters of a text that is worth showing
MAX_LABEL = 80
PAD = 64  # a body and its X-Pad are a multiple of this: hides how long a password is

CLIENT_VERSION = '<version who="vpn">v9.01</version><device-id>linux-64</device-id>'
RENAMED = {"answer": "password", "whichpin": "password", "new_password": "password"}
OMITTED = frozenset({"verify_pin", "verify_password"})  # the server never gets a repetition
GROUP_LIST = "group_list"
TOKEN = re.compile(r"[A-Za-z0-9._~@+/=-]{1,1024}")
PATH = re.compile(r"[!-~]{1,1024}")


@dataclass(frozen=True, slots=True)
class AskedInput:
    """One line that the user fills in; `label` is the prompt."""

    name: str
    type: Literal["text", "password"]
    label: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several: `options` are (value, label), the server's own choice first."""

    name: str
    label: str
    options: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AskForm:
    """The server asks.  `action` is where the answer is posted, `opaque` goes back as it is."""

    message: str
    error: str
    banner: str
    inputs: tuple[AskedInput, ...]
    choices: tuple[Choice, ...] = ()
    hidden: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    action: str = "/"
    opaque: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The login is complete; the session's token stands here or in a cookie."""

    session_token: str | None = field(repr=False)
    banner: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The login has failed, and there is nothing to fill in."""

    text: str


@dataclass(frozen=True, slots=True)
class CertificateAsked:
    """The server wants a certificate in the TLS handshake; say so, or that there is none."""


Reply = AskForm | LoggedIn | Refused | CertificateAsked


def encode_init(url: str, *, certificate_failed: bool = False) -> bytes:
    """Return the body that begins a login; `url` is the address that was asked to connect to."""
    content = f"<group-access>{_escaped(url)}</group-access>"
    if certificate_failed:
        content += "<client-cert-fail/>"
    return _document("init", content)


def encode_reply(form: AskForm, values: Mapping[str, str]) -> bytes:
    """Return the body that answers `form`: `values` by input name, choices by their value.

    A choice without an answer takes its first option.  Raises LocalProtocolError for an answer
    that is missing, too long, or that XML cannot hold.
    """
    answers = dict(form.hidden)
    answers.update({c.name: values.get(c.name, c.options[0][0]) for c in form.choices})
    for line in form.inputs:
        if line.name not in values:
            raise LocalProtocolError(f"no answer for {line.name}")
        answers[line.name] = values[line.name]
    group = answers.pop(GROUP_LIST, "")
    auth = "".join(
        f"<{RENAMED.get(name, name)}>{_escaped(value)}</{RENAMED.get(name, name)}>"
        for name, value in answers.items()
        if name not in OMITTED
    )
    select = f"<group-select>{_escaped(group)}</group-select>" if group else ""
    return _document("auth-reply", f"{form.opaque}<auth>{auth}</auth>{select}")


def pad(body: bytes) -> str:
    """Return the value of X-Pad for a body: 1 to 64 zeros."""
    return "0" * (PAD - len(body) % PAD)


def _document(kind: str, content: str) -> bytes:
    # ocserv takes a body without the prolog for a urlencoded form
    return (
        f'{PROLOG}<config-auth client="vpn" type="{kind}" aggregate-auth-version="2">'
        f"{CLIENT_VERSION}{content}</config-auth>\n"
    ).encode()


def _escaped(text: str) -> str:
    if len(text) > MAX_VALUE or CONTROL.search(text):
        raise LocalProtocolError("an answer is too long or has characters that cannot be sent")
    return escape(text)


def parse_reply(body: bytes) -> Reply:
    """Return what the server says to our step of the login.

    Raises Malformed for what is no XML of a VPN server's login, or beyond the bounds above.
    """
    root = _parse(body)
    auth = root if root.tag == "auth" else root.find("auth")
    if auth is None:
        if root.find("client-cert-request") is not None:
            return CertificateAsked()
        error = _text(root, "error")
        if error:
            return Refused(error)
        raise Malformed("a login answer without an auth element")
    if auth.get("id") == "success":
        token = (root.findtext("session-token") or "").strip()
        return LoggedIn(token if TOKEN.fullmatch(token) else None, _text(auth, "banner"))
    form = auth.find("form")
    if form is None:
        if root.find("client-cert-request") is not None:
            return CertificateAsked()
        text = _text(auth, "error") or _text(auth, "message") or _text(root, "error")
        return Refused(text or "the server gave no reason")
    return _ask(root, auth, form)


def _parse(body: bytes) -> Element:
    try:
        text = body.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise Malformed("a login answer that is not UTF-8") from None
    if text.count("<") > MAX_MARKUP:
        raise Malformed("a login answer of too many elements")
    try:
        # a str, not bytes: expat then ignores the encoding that the prolog claims
        root = fromstring(text, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    except DefusedXmlException:
        raise Malformed("a login answer with a DTD or an entity") from None
    except (ParseError, ValueError):
        raise Malformed("a login answer that is not well-formed XML") from None
    if root.tag not in {"config-auth", "auth"}:
        raise Malformed("XML, but not of a VPN server's login")
    return root


def _ask(root: Element, auth: Element, form: Element) -> AskForm | Refused:
    if (form.get("method") or "post").lower() != "post":
        raise Malformed("a form that is not to be posted")
    action = form.get("action") or "/"
    if not PATH.fullmatch(action):
        raise Malformed("a form with a strange action")
    if any(element.get("type") == "sso" for element in form.iter("input")):
        return Refused("the server wants a login in a browser, which this client cannot do")
    inputs = tuple(_inputs(form))
    choices = tuple(_choices(form))
    hidden = tuple(_hidden(form))
    names = [*(i.name for i in inputs), *(c.name for c in choices), *(name for name, _ in hidden)]
    if len(names) > MAX_INPUTS or len(set(names)) != len(names):
        raise Malformed("a form with too many inputs, or with one of them twice")
    return AskForm(
        message=_text(auth, "message"),
        error=_text(auth, "error") or _text(form, "error"),
        banner=_text(auth, "banner"),
        inputs=inputs,
        choices=choices,
        hidden=hidden,
        action=action,
        opaque=_opaque(root),
    )


def _named(form: Element, tag: str, *kinds: str) -> Iterator[tuple[str, Element]]:
    """Yield the elements of that tag, and of these types where some are given, by their name."""
    for element in form.iter(tag):
        if kinds and element.get("type") not in kinds:
            continue  # submit, reset and what is not known
        name = element.get("name") or ""
        if not FIELD_NAME.fullmatch(name):
            raise Malformed("a form with an input of a strange name")
        yield name, element


def _inputs(form: Element) -> Iterator[AskedInput]:
    for name, element in _named(form, "input", "text", "password"):
        label = one_line(element.get("label") or name, MAX_LABEL)
        yield AskedInput(name, "text" if element.get("type") == "text" else "password", label)


def _hidden(form: Element) -> Iterator[tuple[str, str]]:
    for name, element in _named(form, "input", "hidden"):
        yield name, _sendable(element.get("value") or "")


def _sendable(value: str) -> str:
    if len(value) > MAX_VALUE or CONTROL.search(value):
        raise Malformed("a form with a value that cannot be sent back")
    return value


def _choices(form: Element) -> Iterator[Choice]:
    for name, select in _named(form, "select"):
        options: list[tuple[str, str]] = []
        for option in select.iter("option"):
            value = _sendable(option.get("value") or (option.text or "").strip())
            line = (value, one_line(option.text or value, MAX_LABEL))
            is_first = option.get("selected") is not None
            options.insert(0 if is_first else len(options), line)
        if not 1 <= len(options) <= MAX_OPTIONS:
            raise Malformed(f"a choice without options, or of more than {MAX_OPTIONS}")
        label = one_line(select.get("label") or name, MAX_LABEL)
        yield Choice(name, label, tuple(options))


def _opaque(root: Element) -> str:
    """Return the opaque element as it came, which a server uses to keep its state with us."""
    element = root.find("opaque")
    if element is None:
        return ""
    if sum(1 for _ in element.iter()) > MAX_OPAQUE_ELEMENTS:
        raise Malformed(f"an opaque element of more than {MAX_OPAQUE_ELEMENTS} elements")
    element.tail = None
    text = tostring(element, encoding="unicode")
    if len(text) > MAX_OPAQUE:
        raise Malformed(f"an opaque element of more than {MAX_OPAQUE} characters")
    return text


def _text(parent: Element, tag: str) -> str:
    """Return the text of a child as it may be shown: "%s" filled in, control characters gone."""
    element = parent.find(tag)
    if element is None:
        return ""
    text = element.text or ""
    for name in ("param1", "param2"):
        text = text.replace("%s", element.get(name) or "", 1)
    return shown(text)


def shown(text: str) -> str:
    """Return text of a stranger as a terminal may show it: printable, bounded, lines kept."""
    text = text[: 4 * MAX_MESSAGE].replace("\r\n", "\n").replace("\t", " ")
    lines = ("".join(c for c in line if c.isprintable()) for line in text.split("\n"))
    return "\n".join(lines).strip()[:MAX_MESSAGE]


def one_line(text: str, limit: int) -> str:
    """Return text of a stranger as one printable line of at most `limit` characters."""
    return " ".join(shown(text).split())[:limit]
