"""The HTTP/1.1 that a VPN client speaks before its tunnel: one request, one answer, in turn.

h11 parses and writes.  The server may be anybody, a captive portal for one, so what h11 leaves
open is bounded or refused here: a head that arrives whole, the number of fields, the body, folded
lines and bare line feeds, encodings that were not asked for, answers to nothing.

    READY -> HEAD -> BODY -> READY ...        `Connection: close`, HTTP/1.0 -> CLOSED
                `-> TUNNEL                    any Malformed -> CLOSED
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

import h11

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.wire.http import BAD_HEAD, END_OF_HEAD, LENGTH, TEXT, TOKEN, header_fields

MAX_HEAD = 16 * 1024  # of an answer to a login; servers send 1 KiB
MAX_FIELDS = 64
MAX_TUNNEL_HEAD = 256 * 1024  # of an answer to CONNECT, which holds a field for each route
MAX_TUNNEL_FIELDS = 4096  # more than the routes that are taken, so that those are named as cause
MAX_BODY = 256 * 1024  # a login form has 1 KiB, with a list of groups 20
MAX_INFORMATIONAL = 4  # 1xx heads before an answer; servers send none
MAX_COOKIES = 16
MAX_COOKIE = 1024  # characters of one value; ocserv's has 44
MAX_REASON = 128  # characters of a status line's text that are worth a log line
_SINGLE = (b"content-length", b"transfer-encoding", b"location", b"content-encoding")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, which may be sent again; field names are sent exactly as spelled."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """One whole answer; names of header fields are in lower case, text is Latin-1."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)  # a cookie is a bearer token
    body: bytes = field(default=b"", repr=False)

    def header(self, name: str) -> str | None:
        """Return the value of the last field of that name, whatever its case, or None."""
        values = self.values(name)
        return values[-1] if values else None

    def values(self, name: str) -> list[str]:
        """Return the values of all fields of that name, whatever its case, in their order."""
        wanted = name.lower()
        return [value for key, value in self.headers if key == wanted]

    def cookies(self) -> Mapping[str, str]:
        """Return what Set-Cookie fields set, by name; "" means: forget it.

        At most MAX_COOKIES; one with a name or value that cannot be sent back is left out.
        """
        found: dict[str, str] = {}
        for line in self.values("set-cookie"):
            pair, *attributes = line.split(";")
            name, _, value = (part.strip() for part in pair.partition("="))
            is_new = name not in found
            if not _is_cookie(name, value) or (is_new and len(found) >= MAX_COOKIES):
                continue
            expired = any(a.replace(" ", "").lower() == "max-age=0" for a in attributes)
            found[name] = "" if expired else value
        return found


def _is_cookie(name: str, value: str) -> bool:
    """Say whether this may stand in a Cookie field (RFC 6265 section 4.1.1)."""
    return (
        TOKEN.fullmatch(name) is not None
        and len(name) <= MAX_COOKIE >= len(value)
        and all("!" <= c <= "~" and c not in '";,\\' for c in value)
    )


class _State(Enum):
    READY = auto()
    HEAD = auto()
    BODY = auto()
    TUNNEL = auto()
    CLOSED = auto()


class HttpClient:
    """The client's side of one connection: a request out, bytes in, its answer."""

    __slots__ = (
        "_body",
        "_early",
        "_h11",
        "_head",
        "_informational",
        "_is_connect",
        "_response",
        "_searched",
        "_state",
    )

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._state = _State.READY
        self._head = bytearray()
        self._searched = 0
        self._body = bytearray()
        self._early = b""
        self._informational = 0
        self._is_connect = False
        self._response: h11.Response | None = None

    @property
    def must_close(self) -> bool:
        """Say whether this connection takes no further request."""
        return self._state is _State.CLOSED

    @property
    def is_waiting(self) -> bool:
        """Say whether an answer is due."""
        return self._state in {_State.HEAD, _State.BODY}

    @property
    def is_tunnel(self) -> bool:
        """Say whether a CONNECT was granted."""
        return self._state is _State.TUNNEL

    @property
    def trailing(self) -> bytes:
        """What came behind the head that granted a CONNECT: the tunnel's first bytes."""
        return self._early

    def request(self, request: HttpRequest) -> bytes:
        """Return the bytes of a request.

        Content-Length is added where there is a body.  Raises LocalProtocolError while an answer
        is due, when the connection must close, and for what would not be one line of text.
        """
        if self._state is not _State.READY:
            raise LocalProtocolError("a request, but the connection is not ready for one")
        target, body = request.target, request.body
        if not TEXT.fullmatch(target) or not target.isascii() or " " in target:
            raise LocalProtocolError("the target of a request is not one visible word")
        fields = header_fields(request.headers)
        if body:
            fields.append((b"Content-Length", b"%d" % len(body)))
        try:
            head = h11.Request(method=request.method, target=target, headers=fields)
            parts = [self._h11.send(head)]
            if body:
                parts.append(self._h11.send(h11.Data(data=body)))
            parts.append(self._h11.send(h11.EndOfMessage()))
        except h11.LocalProtocolError:
            # its text and cause may quote a cookie
            raise LocalProtocolError("no HTTP request can be made of this") from None
        self._is_connect = request.method == "CONNECT"
        self._informational = 0
        self._state = _State.HEAD
        return b"".join(parts)

    def receive(self, data: bytes) -> Response | None:
        """Return the answer that `data` completes, or None when more is needed.

        Raises Malformed for whatever is not one answer within the bounds above; the connection
        is then of no more use.
        """
        if self._state is _State.TUNNEL:
            raise LocalProtocolError("bytes of a tunnel given to the HTTP parser")
        if not data:
            return None
        try:
            return self._advance(data)
        except Malformed:
            self._state = _State.CLOSED
            raise

    def eof(self) -> Response | None:
        """The connection has ended: return the answer that this completes, if any.

        Raises Malformed where it cuts an answer short.
        """
        state, self._state = self._state, _State.CLOSED
        if state is _State.HEAD:
            raise Malformed("the connection ended before the answer")
        if state is not _State.BODY:
            return None
        return self._receive_body(b"")

    def _advance(self, data: bytes) -> Response | None:
        if self._state is _State.HEAD:
            return self._receive_head(data)
        if self._state is _State.BODY:
            return self._receive_body(data)
        raise Malformed("an answer that nobody asked for")

    def _receive_head(self, data: bytes) -> Response | None:
        limit = MAX_TUNNEL_HEAD if self._is_connect else MAX_HEAD
        self._head += data
        if not b"HTTP/".startswith(self._head[:5]):
            raise Malformed("not HTTP")
        end = self._head.find(END_OF_HEAD, self._searched) + len(END_OF_HEAD)
        found = end >= len(END_OF_HEAD)
        self._searched = max(0, len(self._head) - len(END_OF_HEAD) + 1)
        if (end if found else len(self._head)) > limit:
            raise Malformed(f"HTTP head of more than {limit} bytes")
        if not found:
            return None
        head, rest = bytes(self._head[:end]), bytes(self._head[end:])
        self._head.clear()
        self._searched = 0
        return self._begin_answer(self._parse_head(head), rest)

    def _parse_head(self, head: bytes) -> h11.Response | h11.InformationalResponse:
        _check_lines(head, MAX_TUNNEL_FIELDS if self._is_connect else MAX_FIELDS)
        try:
            self._h11.receive_data(head)
            event = self._h11.next_event()
        except h11.RemoteProtocolError:
            # the text and the cause quote the head, and with it cookies
            raise Malformed("not an HTTP/1.1 answer") from None
        if not isinstance(event, h11.Response | h11.InformationalResponse):
            raise Malformed("not an HTTP/1.1 answer")
        if event.http_version not in {b"1.0", b"1.1"}:
            raise Malformed("an HTTP version other than 1.0 and 1.1")
        return event

    def _begin_answer(
        self, response: h11.Response | h11.InformationalResponse, rest: bytes
    ) -> Response | None:
        if isinstance(response, h11.InformationalResponse):
            self._informational += 1
            if response.status_code == 101 or self._informational > MAX_INFORMATIONAL:
                raise Malformed("an informational answer that was not asked for")
            return self._receive_head(rest) if rest else None
        self._response = response
        if self._is_connect and 200 <= response.status_code < 300:
            self._early = rest
            self._state = _State.TUNNEL
            return self._finished()
        self._state = _State.BODY
        return self._receive_body(rest) if rest else self._read_body()

    def _receive_body(self, data: bytes) -> Response | None:
        try:
            self._h11.receive_data(data)
        except (h11.RemoteProtocolError, RuntimeError):
            raise Malformed("bytes behind the last answer") from None
        return self._read_body()

    def _read_body(self) -> Response | None:
        try:
            while True:
                event = self._h11.next_event()
                if isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > MAX_BODY:
                        raise Malformed(f"HTTP body of more than {MAX_BODY} bytes")
                elif isinstance(event, h11.EndOfMessage):
                    return self._end_answer()
                else:
                    return None
        except h11.RemoteProtocolError:
            raise Malformed("an HTTP body that is not framed as its head says") from None

    def _end_answer(self) -> Response:
        if self._h11.trailing_data[0]:
            raise Malformed("bytes behind an answer")
        is_reusable = self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE
        if is_reusable and self._state is not _State.CLOSED:
            self._h11.start_next_cycle()
            self._state = _State.READY
        else:
            self._state = _State.CLOSED
        return self._finished()

    def _finished(self) -> Response:
        response, self._response = self._response, None
        assert response is not None
        body = bytes(self._body)
        self._body.clear()
        headers = tuple((_text(name).lower(), _text(value)) for name, value in response.headers)
        return Response(response.status_code, _visible(_text(response.reason)), headers, body)


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")


def _visible(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text[:MAX_REASON]).strip()


def _check_lines(head: bytes, limit: int) -> None:
    """Refuse, before h11 tidies it up, what two readers could read differently."""
    if BAD_HEAD.search(head):
        raise Malformed("HTTP head with a folded line, a bare line ending or a control character")
    lines = head[: -len(END_OF_HEAD)].split(b"\r\n")[1:]
    if len(lines) > limit:
        raise Malformed(f"HTTP head of more than {limit} fields")
    fields = [
        (name.lower(), value.strip()) for name, _, value in (li.partition(b":") for li in lines)
    ]
    names = [name for name, _ in fields]
    if any(names.count(name) > 1 for name in _SINGLE):
        raise Malformed("an HTTP field twice that must be single")
    found = dict(fields)
    if b"transfer-encoding" in found and b"content-length" in found:
        raise Malformed("Transfer-Encoding beside Content-Length")
    length = found.get(b"content-length")
    if length is not None and not LENGTH.fullmatch(length):
        raise Malformed("Content-Length that is not a number")
    if length is not None and int(length) > MAX_BODY:
        raise Malformed(f"HTTP body of more than {MAX_BODY} bytes")
    if found.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Malformed("an answer in an encoding that was not asked for")
