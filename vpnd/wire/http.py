"""The HTTP/1.1 that a VPN server speaks before a tunnel: few requests, small, one after the other.

h11 parses and writes; what it leaves open is bounded or refused here: a head that arrives whole, a
body, the number of requests, pipelining, Transfer-Encoding (no client needs it in a request, and
without it there is one way only to find the end of a body), folded lines, bare line feeds and
repeated fields that must be single.  After a CONNECT that was answered with 2xx nothing is parsed
any more: what the client sent early is in `trailing`.

    HEAD -> BODY -> ANSWER -> HEAD ...        any Malformed -> FAILED -> (refuse) -> CLOSED
                      `-> TUNNEL
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from http import HTTPStatus
from re import compile as regex

import h11

from vpnd.errors import LocalProtocolError, Malformed

MAX_HEAD = 16 * 1024  # a stock client's longest, its CONNECT, is 2 KiB
MAX_BODY = 64 * 1024  # a login answer is 1 KiB
MAX_REQUESTS = 16  # per connection, as ocserv
MAX_EARLY = 16 * 1024  # bytes behind a CONNECT that waits for its answer; clients send none

END_OF_HEAD = b"\r\n\r\n"
SINGLE = frozenset(  # two of these in a head would leave the choice to whoever reads it
    (
        b"authorization",
        b"content-length",
        b"content-type",
        b"cookie",
        b"host",
        b"transfer-encoding",
    )
)
OURS = frozenset({"content-length", "transfer-encoding"})  # framing is not the caller's to set
BAD_HEAD = regex(  # bare LF, bare CR, folded line (RFC 9112 section 5.2), control character
    rb"(?<!\r)\n|\r(?!\n)|\r\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)
LENGTH = regex(
    rb"[0-9]{1,20}"
)  # h11 gathers lists such as "3, 3"; 0.14 takes any number of digits
TOKEN = regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
TEXT = regex(r"[^\x00-\x1f\x7f\ud800-\udfff]*")  # also no half of a surrogate pair


@dataclass(frozen=True, slots=True)
class Request:
    """One whole request; names of header fields are in lower case, text is Latin-1."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)  # a cookie is a bearer token
    body: bytes = field(default=b"", repr=False)

    def header(self, name: str) -> str | None:
        """Return the value of the last field of that name, whatever its case, or None."""
        wanted = name.lower()
        return next((value for key, value in reversed(self.headers) if key == wanted), None)

    def cookie(self, name: str) -> str | None:
        """Return the value of one cookie, or None.  Raises Malformed if it is there twice."""
        pairs = [pair.strip().partition("=") for pair in (self.header("cookie") or "").split(";")]
        values = [value for key, _, value in pairs if key == name]
        if len(values) > 1:
            raise Malformed(f"two cookies named {name}")
        return values[0] if values else None


class _State(Enum):
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    TUNNEL = auto()
    FAILED = auto()
    CLOSED = auto()


class HttpServer:
    """The server's side of one connection: bytes in, at most one request out, bytes back."""

    __slots__ = ("_body", "_count", "_early", "_h11", "_head", "_request", "_state", "_wanted")

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._state = _State.HEAD
        self._head = bytearray()
        self._body = bytearray()
        self._early = bytearray()
        self._request: Request | None = None
        self._wanted = 0
        self._count = 0

    @property
    def must_close(self) -> bool:
        """Say whether the connection ends once everything is sent."""
        return self._state in {_State.FAILED, _State.CLOSED}

    @property
    def is_tunnel(self) -> bool:
        """Say whether a CONNECT was granted."""
        return self._state is _State.TUNNEL

    @property
    def trailing(self) -> bytes:
        """What the client sent behind its CONNECT before it had the answer."""
        return bytes(self._early)

    def receive(self, data: bytes) -> Request | None:
        """Return the request that `data` completes, or None when more is needed.

        Raises Malformed, with the HTTP status that says why, for whatever is not one request
        after the other within the bounds above; then only `refuse` is left.
        """
        if self._state is _State.TUNNEL:
            raise LocalProtocolError("bytes of a tunnel given to the HTTP parser")
        try:
            return self._advance(data) if data else None
        except Malformed:
            if self._state is not _State.CLOSED:
                self._state = _State.FAILED
            raise

    def _advance(self, data: bytes) -> Request | None:
        if self._state is _State.HEAD:
            return self._receive_head(data)
        if self._state is _State.BODY:
            return self._receive_body(data)
        if self._state is _State.ANSWER:
            self._receive_early(data)
            return None
        raise Malformed("bytes behind the last request")

    def _receive_head(self, data: bytes) -> Request | None:
        searched = max(0, len(self._head) - len(END_OF_HEAD) + 1)
        self._head += data
        self._check_beginning()
        end = self._head.find(END_OF_HEAD, searched) + len(END_OF_HEAD)
        found = end >= len(END_OF_HEAD)
        if (end if found else len(self._head)) > MAX_HEAD:
            raise Malformed(f"HTTP head of more than {MAX_HEAD} bytes", 431)
        if not found:
            return None
        head, rest = bytes(self._head[:end]), bytes(self._head[end:])
        self._head.clear()
        self._count += 1
        self._request = self._parse_head(head)
        self._wanted = _content_length(self._request)
        self._state = _State.BODY
        return self._receive_body(rest)

    def _check_beginning(self) -> None:
        """Refuse early what can never become a request line, such as TLS inside TLS."""
        if not 0x21 <= self._head[0] <= 0x7E:
            raise Malformed("not HTTP")

    def _parse_head(self, head: bytes) -> Request:
        _check_lines(head)
        try:
            self._h11.receive_data(head)
            event = self._h11.next_event()
        except h11.RemoteProtocolError as exc:
            status = exc.error_status_hint
            # the text and the cause quote the head, and with it cookies
            raise Malformed("not an HTTP/1.1 request head", status) from None
        if not isinstance(event, h11.Request):
            raise Malformed("not an HTTP/1.1 request head")
        if event.http_version not in {b"1.0", b"1.1"}:
            raise Malformed("an HTTP version other than 1.0 and 1.1", 505)
        fields = tuple((_text(name).lower(), _text(value)) for name, value in event.headers)
        return Request(_text(event.method), _text(event.target), fields)

    def _receive_body(self, data: bytes) -> Request | None:
        missing = self._wanted - len(self._body)
        self._body += data[:missing]
        if len(self._body) < self._wanted:
            return None
        return self._finish_request(data[missing:])

    def _finish_request(self, rest: bytes) -> Request:
        assert self._request is not None
        request = replace(self._request, body=bytes(self._body))
        if self._body:
            self._h11.receive_data(bytes(self._body))
            self._body.clear()
        while isinstance(self._h11.next_event(), h11.Data):
            pass
        self._request = request
        self._state = _State.ANSWER
        self._receive_early(rest)
        return request

    def _receive_early(self, data: bytes) -> None:
        """Keep what comes before the answer, which nothing but a CONNECT may have."""
        assert self._request is not None
        if data and self._request.method != "CONNECT":
            raise Malformed("a request before the last one was answered")
        if len(self._early) + len(data) > MAX_EARLY:
            raise Malformed(f"more than {MAX_EARLY} bytes before the answer", 413)
        self._early += data

    def respond(
        self, status: int, reason: str, headers: Sequence[tuple[str, str]], body: bytes = b""
    ) -> bytes:
        """Return the bytes that answer the request; field names are sent exactly as spelled.

        Content-Length is added, and Connection: close where the connection ends.  Raises
        LocalProtocolError when no request waits, for a field or reason that would not be one line
        of visible text, for framing fields, and for a body behind a granted CONNECT; after such
        an error another answer may be tried.
        """
        if self._state is not _State.ANSWER or self._request is None:
            raise LocalProtocolError("an answer, but no request waits for one")
        if self._request.method == "CONNECT" and 200 <= status < 300:
            return self._grant_tunnel(status, reason, headers, body)
        is_last = bool(self._early) or self._count >= MAX_REQUESTS
        answer = self._answer(status, reason, headers, body, is_last=is_last)
        self._request = None
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            self._state = _State.HEAD
        else:
            self._state = _State.CLOSED
        return answer

    def refuse(self, problem: Malformed) -> bytes:
        """Return an empty answer with the status of `problem`, the last on this connection.

        Empty when the moment for an answer has passed.
        """
        if self._state not in {_State.ANSWER, _State.FAILED}:
            return b""
        try:
            reason = HTTPStatus(problem.status).phrase
        except ValueError:
            reason = "Refused"
        answer = self._answer(problem.status, reason, (), b"", is_last=True)
        self._state = _State.CLOSED
        return answer

    def _grant_tunnel(
        self, status: int, reason: str, headers: Sequence[tuple[str, str]], body: bytes
    ) -> bytes:
        if body:
            raise LocalProtocolError("a granted CONNECT has no body")
        answer = self._h11.send(_response(status, reason, header_fields(headers)))
        self._state = _State.TUNNEL
        return answer

    def _answer(
        self,
        status: int,
        reason: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        *,
        is_last: bool,
    ) -> bytes:
        fields = header_fields(headers)
        if is_last:
            fields = [field for field in fields if field[0].lower() != b"connection"]
            fields.append((b"Connection", b"close"))
        fields.append((b"Content-Length", b"%d" % len(body)))
        parts = [self._h11.send(_response(status, reason, fields))]
        is_head = self._request is not None and self._request.method == "HEAD"
        if body and not is_head:
            parts.append(self._h11.send(h11.Data(data=body)))
        parts.append(self._h11.send(h11.EndOfMessage()))
        return b"".join(parts)


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")


def _check_lines(head: bytes) -> None:
    """Refuse, before h11 tidies it up, what two readers could read differently."""
    if BAD_HEAD.search(head):
        raise Malformed("HTTP head with a folded line, a bare line ending or a control character")
    lines = [line.partition(b":") for line in head[: -len(END_OF_HEAD)].split(b"\r\n")[1:]]
    fields = [(name.lower(), value.strip()) for name, _, value in lines]
    names = [name for name, _ in fields]
    if any(names.count(name) > 1 for name in SINGLE):
        raise Malformed("an HTTP field twice that must be single")
    if b"transfer-encoding" in names:
        beside = b"content-length" in names  # request smuggling, RFC 9112 section 11.2
        raise Malformed("Transfer-Encoding in a request", 400 if beside else 411)
    length = dict(fields).get(b"content-length")
    if length is not None and not LENGTH.fullmatch(length):
        raise Malformed("Content-Length that is not a number")


def _content_length(request: Request) -> int:
    """Return the size of the body, which is the whole of its framing here."""
    size = int(request.header("content-length") or 0)
    if size > MAX_BODY:
        raise Malformed(f"HTTP body of more than {MAX_BODY} bytes", 413)
    if size and request.method == "CONNECT":
        raise Malformed("a CONNECT with a body")
    return size


def header_fields(headers: Sequence[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Return header fields as bytes; raise LocalProtocolError for what would not be one line."""
    for name, value in headers:
        if not TOKEN.fullmatch(name) or name.lower() in OURS:
            raise LocalProtocolError(f"{name!r} cannot be the name of a header field here")
        # the value may be a secret: the text does not repeat it
        if not TEXT.fullmatch(value) or value != value.strip():
            raise LocalProtocolError(f"the value of {name} is not one line of visible text")
    return [(name.encode("ascii"), value.encode()) for name, value in headers]


def _response(status: int, reason: str, fields: list[tuple[bytes, bytes]]) -> h11.Response:
    if not TEXT.fullmatch(reason) or not reason.isascii():
        raise LocalProtocolError("the reason is not one line of visible text")
    try:
        return h11.Response(status_code=status, reason=reason.encode(), headers=fields)
    except h11.LocalProtocolError:
        raise LocalProtocolError(f"no HTTP answer can be made with status {status}") from None
