"""The login's request and answer bodies: `config-auth` XML, or a urlencoded form from old clients.

Requests come from strangers: no DTD, no entities, a bound on size, on elements, on fields and on
their length; only the few elements that a login needs are looked at.  Answers are written in the
shape that stock openconnect and ocserv use.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape, quoteattr

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from vpnd.errors import Malformed

MAX_BODY = 64 * 1024  # as vpnd.wire.http: what a client may post
MAX_MARKUP = 1024  # "<" characters; the longest known request has 80, and each costs time to parse
MAX_FIELDS = 16  # a form has two inputs
MAX_FIELD = 256  # characters of one value
FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]")  # also what XML cannot hold

PROLOG = '<?xml version="1.0" encoding="UTF-8"?>\n'
VERSION = '<version who="sg">0.1(1)</version>'


@dataclass(frozen=True, slots=True)
class AuthRequest:
    """What a client asks in one step of a login.

    `init` starts, or starts over; `auth-reply` answers a form, its `fields` are the inputs by
    name; `group` is the group that the client selected.
    """

    kind: Literal["init", "auth-reply", "logout"]
    fields: Mapping[str, str] = field(default_factory=dict, repr=False)  # passwords
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """One line of a form; the label is the prompt that the user sees."""

    name: str
    type: Literal["text", "password"]
    label: str


@dataclass(frozen=True, slots=True)
class AuthForm:
    """A question to the user; `action` is the path that the answer is posted to."""

    message: str
    error: str | None
    inputs: tuple[Input, ...]
    action: str = "/auth"


def parse_auth_request(body: bytes) -> AuthRequest:
    """Return what the body of a GET (empty) or POST asks for.

    Raises Malformed for what is neither well-formed XML without a DTD nor a urlencoded form, for
    a field given twice, with a control character, or beyond the bounds above.
    """
    if len(body) > MAX_BODY:
        raise Malformed(f"login request of more than {MAX_BODY} bytes", 413)
    try:
        text = body.decode("utf-8-sig").strip()
    except UnicodeDecodeError as exc:
        raise Malformed("login request that is not UTF-8") from exc
    if not text:
        return AuthRequest("init")
    return _parse_xml(text) if text.startswith("<") else _parse_form(text)


def _parse_xml(text: str) -> AuthRequest:
    if text.count("<") > MAX_MARKUP:
        raise Malformed("login request of too many elements", 413)
    try:
        # a str, not bytes: expat then ignores the encoding that the prolog claims
        root = fromstring(text, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    except DefusedXmlException:
        raise Malformed("login request with a DTD or an entity") from None
    except (ParseError, ValueError):
        raise Malformed("login request that is not well-formed XML") from None
    kind = root.get("type")
    if root.tag != "config-auth":
        raise Malformed("login request without config-auth")
    groups = [element.text or "" for element in root.iter("group-select")]
    group = _single_group(groups)
    if kind == "init":
        return AuthRequest("init", group=group)
    if kind == "logout":
        return AuthRequest("logout")
    if kind == "auth-reply":
        pairs = [
            (element.tag, element.text or "")
            for auth in root.findall("auth")
            for element in auth
            if element.tag != "group-select"
        ]
        return AuthRequest("auth-reply", _fields(pairs), group)
    raise Malformed("login request of an unknown type")


def _parse_form(text: str) -> AuthRequest:
    try:
        pairs = parse_qsl(
            text,
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError:
        raise Malformed("login request that is neither XML nor a urlencoded form") from None
    group = _single_group([value for name, value in pairs if name == "group_list"])
    return AuthRequest("auth-reply", _fields([p for p in pairs if p[0] != "group_list"]), group)


def _single_group(groups: list[str]) -> str | None:
    if len(groups) > 1:
        raise Malformed("login request with more than one group")
    for group in groups:
        _check_value(group)
    return groups[0] if groups and groups[0] else None


def _fields(pairs: list[tuple[str, str]]) -> Mapping[str, str]:
    if len(pairs) > MAX_FIELDS:
        raise Malformed(f"login request of more than {MAX_FIELDS} fields")
    fields: dict[str, str] = {}
    for name, value in pairs:
        if not FIELD_NAME.fullmatch(name) or name in fields:
            raise Malformed("login request with a field twice or a strange name")
        _check_value(value)
        fields[name] = value
    return fields


def _check_value(value: str) -> None:
    if len(value) > MAX_FIELD or CONTROL.search(value):
        raise Malformed(f"login field of more than {MAX_FIELD} or with unprintable characters")


def encode_form(form: AuthForm) -> bytes:
    """Return the body that asks the user to fill in `form`."""
    inputs = "".join(
        f"<input type={_attribute(line.type)} name={_attribute(line.name)}"
        f" label={_attribute(line.label)}/>"
        for line in form.inputs
    )
    error = _element("error", form.error) if form.error else ""
    ask = f'<form method="post" action={_attribute(form.action)}>{inputs}</form>'
    return _document("auth-request", "main", _element("message", form.message) + error + ask)


def encode_success() -> bytes:
    """Return the body that ends a login well; the session cookie goes into the HTTP head."""
    return _document("complete", "success", _element("title", "SSL VPN Service"))


def encode_refusal(error: str) -> bytes:
    """Return the body that ends a login badly: stock clients print `error` and give up.

    To be sent with status 200: without a form in it, it leaves nothing to try.
    """
    return _document("auth-request", "main", _element("error", error))


def _document(kind: str, auth_id: str, content: str) -> bytes:
    return (
        f'{PROLOG}<config-auth client="vpn" type="{kind}">{VERSION}'
        f'<auth id="{auth_id}">{content}</auth></config-auth>\n'
    ).encode()


def _element(name: str, text: str) -> str:
    return f"<{name}>{escape(_visible(text))}</{name}>"


def _attribute(text: str) -> str:
    return quoteattr(_visible(text))


def _visible(text: str) -> str:
    """Return the text with "?" for characters that XML cannot hold; line feeds stay."""
    return "\n".join(CONTROL.sub("?", line) for line in text.split("\n"))
