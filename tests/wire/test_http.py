"""The HTTP before a tunnel: bounded, one request after the other, nothing but Malformed."""

import itertools
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.wire.http import (
    MAX_BODY,
    MAX_EARLY,
    MAX_HEAD,
    MAX_REQUESTS,
    HttpServer,
    Request,
)

GET = b"GET / HTTP/1.1\r\nHost: vpn\r\n\r\n"
CONNECT = b"CONNECT /CSCOSSLC/tunnel HTTP/1.1\r\nHost: vpn\r\nCookie: webvpn=c\r\n\r\n"


def post(body: bytes, *fields: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"POST /auth HTTP/1.1", b"Host: vpn", *fields, length, b"", body])


def outcome(chunks: list[bytes]) -> Request | int | None:
    """Return the first request, or the status that the first trouble asks for."""
    server = HttpServer()
    try:
        requests = [r for r in (server.receive(chunk) for chunk in chunks) if r is not None]
    except Malformed as exc:
        return exc.status
    return requests[0] if requests else None


def refusal(data: bytes) -> Malformed:
    with pytest.raises(Malformed) as caught:
        HttpServer().receive(data)
    return caught.value


FRAGMENTS = st.lists(
    st.sampled_from(
        [
            b"GET", b"POST", b"CONNECT", b" ", b"/", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0",
            b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"Host: a", b"Content-Length: ", b"3", b"0", b"-1",
            b"9" * 5000, b"Transfer-Encoding: chunked", b"Connection: close", b"Cookie: a=b",
            b"\x00", b"\xff", b"Upgrade: x", b"Expect: 100-continue", b"abc",
        ]
    )
    | st.binary(max_size=8),
    max_size=24,
).map(b"".join)  # fmt: skip
REQUESTS = st.builds(
    lambda body, fields: post(body, *fields),
    st.binary(max_size=200),
    st.lists(st.sampled_from([b"X-Pad: 000", b"Cookie: a=b", b"User-Agent: x y", b"X: \xff"])),
)


@given(FRAGMENTS | st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_malformed_and_can_be_refused(data: bytes) -> None:
    """A stranger's bytes must not find an exception that nobody catches."""
    server = HttpServer()
    problem = None
    try:
        server.receive(data)
    except Malformed as exc:
        problem = exc
    if problem is not None:
        assert server.refuse(problem).startswith(b"HTTP/1.1 %d " % problem.status)
        assert server.must_close


@given(REQUESTS | FRAGMENTS, st.lists(st.integers(0, 400), max_size=8))
def test_pieces_give_what_the_whole_gives(data: bytes, cuts: list[int]) -> None:
    """TLS records cut a request anywhere."""
    whole = outcome([data])
    bytewise = outcome([data[i : i + 1] for i in range(len(data))])
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = outcome([data[a:b] for a, b in itertools.pairwise(at)])
    assert bytewise == pieces == whole


@pytest.mark.parametrize("beginning", [b"\r\n", b"\x16\x03\x01", b" "])
def test_what_is_not_http_is_called_so_however_long_it_is(beginning: bytes) -> None:
    """The first byte tells, before the head's length is looked at."""
    data = beginning + b"9" * MAX_HEAD
    assert outcome([data]) == outcome([data[:1], data[1:]]) == 400


@given(st.binary(max_size=3000))
def test_a_body_arrives_unchanged(body: bytes) -> None:
    """Passwords hold any byte, line endings too."""
    request = HttpServer().receive(post(body))
    assert request is not None
    assert (request.method, request.target, request.body) == ("POST", "/auth", body)


def test_names_of_fields_are_found_whatever_their_case() -> None:
    """HTTP field names have no case; of several the last one counts."""
    request = HttpServer().receive(
        post(b"", b"x-CSTP-address: 10.0.0.1", b"X-CSTP-Address: fd::1")
    )
    assert request is not None
    assert request.header("X-Cstp-Address") == "fd::1"
    assert request.header("absent") is None


def test_cookies_are_told_apart_and_never_shown() -> None:
    """A log that shows a request must not give its session away."""
    secret = b"Cookie: webvpncontext=half; webvpn=SECRET=="
    request = HttpServer().receive(post(b"PASSWORD", secret, b"Authorization: Basic U0VDUkVU"))
    assert request is not None
    assert request.cookie("webvpn") == "SECRET=="
    assert request.cookie("webvpncontext") == "half"
    assert request.cookie("other") is None
    assert not any(word in repr(request) for word in ("SECRET", "PASSWORD", "U0VD", "half"))


def test_a_cookie_twice_is_refused() -> None:
    """Which of the two counts must not depend on the reader."""
    request = HttpServer().receive(post(b"", b"Cookie: webvpn=a; webvpn=b"))
    assert request is not None
    with pytest.raises(Malformed):
        request.cookie("webvpn")


@pytest.mark.parametrize("field", [b"Cookie: webvpn=SECRET\x01", b"Cookie SECRET"])
def test_an_error_does_not_quote_the_head(field: bytes) -> None:
    """Errors are logged, and heads hold cookies."""
    problem = refusal(b"GET / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n\r\n")
    assert "SECRET" not in "".join(traceback.format_exception(problem))


def head_of(size: int) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: a\r\nX-Pad: " + b"0" * (size - 36) + b"\r\n\r\n"


def test_a_head_may_have_the_limit_and_not_one_byte_more() -> None:
    """The bound holds also for a head that arrives whole, where h11 has none."""
    assert len(head_of(MAX_HEAD)) == MAX_HEAD
    assert HttpServer().receive(head_of(MAX_HEAD)) is not None
    assert refusal(head_of(MAX_HEAD + 1)).status == 431


def test_a_head_without_end_is_refused_at_the_limit() -> None:
    """A slow sender must not make the buffer grow for ever."""
    server = HttpServer()
    assert server.receive(b"GET / HTTP/1.1\r\nX: " + b"a" * (MAX_HEAD - 19)) is None
    with pytest.raises(Malformed) as caught:
        server.receive(b"a")
    assert caught.value.status == 431


def test_a_body_over_the_limit_is_refused_before_it_comes() -> None:
    """What is announced too large need not be read."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    assert HttpServer().receive(head % MAX_BODY) is None
    assert refusal(head % (MAX_BODY + 1)).status == 413


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Content-Length: 3\r\nContent-Length: 3", 400),
        (b"Content-Length: 3\r\nContent-Length: 4", 400),
        (b"Content-Length: 3, 4", 400),
        (b"Content-Length: 3, 3", 400),
        (b"Content-Length:", 400),
        (b"Content-Length: +3", 400),
        (b"Content-Length: -3", 400),
        (b"Content-Length: 0x3", 400),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3", 400),
        (b"Transfer-Encoding: chunked", 411),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        (b"Content-Length : 3", 400),
        (b"Cookie: a=b\r\nCookie: a=c", 400),
        (b"Host: b", 400),
        (b"X: a\r\n folded", 400),
        (b"X: a\r\n\tfolded", 400),
        (b"X: a\nContent-Length: 3", 400),
        (b"X: a\rContent-Length: 3", 400),
        (b"X: a\x00", 400),
        (b"X: \x1b[31m", 400),
        (b": a", 400),
        (b"no colon", 400),
    ],
)
def test_a_head_that_two_readers_could_read_differently_is_refused(
    fields: bytes, status: int
) -> None:
    """Request smuggling lives on lenient parsers."""
    problem = refusal(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n\r\n")
    assert problem.status == status


@pytest.mark.parametrize("digits", [21, 5000])
def test_a_length_of_many_digits_is_refused(digits: int) -> None:
    """Python's int() raises ValueError beyond 4300 digits, and h11 0.14 lets it through."""
    length = b"9" * digits
    problem = refusal(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + length + b"\r\n\r\n")
    assert problem.status in {400, 413}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00", 400),
        (b"\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", 400),
    ],
)
def test_what_is_not_a_request_is_refused(data: bytes, status: int) -> None:
    """Scanners and TLS inside TLS end here."""
    assert refusal(data).status == status


def test_a_pipelined_request_is_refused_in_one_piece_and_in_two() -> None:
    """A request in one record with another has been a way around checks elsewhere."""
    assert refusal(GET + GET).status == 400
    server = HttpServer()
    assert server.receive(GET) is not None
    with pytest.raises(Malformed):
        server.receive(b"G")
    assert server.must_close


def test_requests_follow_each_other_up_to_the_limit() -> None:
    """The last answer says that it is the last."""
    server = HttpServer()
    for number in range(1, MAX_REQUESTS + 1):
        assert server.receive(post(b"%d" % number)) is not None
        answer = server.respond(200, "OK", [("Connection", "Keep-Alive")], b"hello")
        assert (b"Connection: close" in answer) == (number == MAX_REQUESTS) == server.must_close
        assert (b"Keep-Alive" in answer) == (number < MAX_REQUESTS)
    with pytest.raises(Malformed):
        server.receive(GET)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ],
)
def test_a_client_that_wants_one_answer_gets_one(data: bytes) -> None:
    """Its end of the body may be the end of the connection."""
    server = HttpServer()
    server.receive(data)
    assert server.respond(200, "OK", [], b"x").endswith(b"\r\nConnection: close\r\n\r\nx")
    assert server.must_close


@pytest.mark.parametrize(
    "field", [b"Upgrade: h2c\r\nConnection: Upgrade", b"Expect: 100-continue"]
)
def test_offers_are_answered_as_plain_requests(field: bytes) -> None:
    """A browser or curl may send them; nothing here switches or waits."""
    server = HttpServer()
    assert server.receive(post(b"body", field)) is not None
    assert server.respond(200, "OK", [], b"x").endswith(b"Content-Length: 1\r\n\r\nx")
    assert server.receive(GET) is not None


def test_an_answer_is_spelled_as_given() -> None:
    """Stock clients compare X-CSTP names with their case."""
    server = HttpServer()
    server.receive(CONNECT)
    fields = [("X-CSTP-MTU", "1400"), ("X-DTLS-App-ID", "00ff"), ("x-lower", "ü")]
    expected = b"X-CSTP-MTU: 1400\r\nX-DTLS-App-ID: 00ff\r\nx-lower: \xc3\xbc\r\n\r\n"
    assert server.respond(200, "CONNECTED", fields) == b"HTTP/1.1 200 CONNECTED\r\n" + expected


def test_what_comes_behind_a_connect_is_kept_for_the_tunnel() -> None:
    """The parser must not eat the first packets."""
    server = HttpServer()
    assert server.receive(CONNECT + b"STF\x01") is not None
    assert server.receive(b"\x00\x00\x07\x00") is None
    server.respond(200, "CONNECTED", [])
    assert server.is_tunnel
    assert not server.must_close
    assert server.trailing == b"STF\x01\x00\x00\x07\x00"
    with pytest.raises(LocalProtocolError):
        server.receive(b"more")


def test_what_comes_behind_a_connect_is_bounded() -> None:
    """The answer may take a while, the buffer must not grow with it."""
    server = HttpServer()
    server.receive(CONNECT + b"a" * MAX_EARLY)
    with pytest.raises(Malformed) as caught:
        server.receive(b"a")
    assert server.refuse(caught.value).startswith(b"HTTP/1.1 413 ")


def test_a_refused_connect_leaves_the_connection_usable_unless_bytes_followed() -> None:
    """Bytes meant for a tunnel are no request."""
    server = HttpServer()
    server.receive(CONNECT)
    server.respond(401, "Cookie is not acceptable", [])
    assert not server.must_close
    assert server.receive(GET) is not None
    server = HttpServer()
    server.receive(CONNECT + GET)
    assert b"Connection: close" in server.respond(401, "Cookie is not acceptable", [])
    assert server.must_close


@pytest.mark.parametrize(
    ("status", "reason", "field"),
    [
        (200, "OK\r\nSet-Cookie: a", ("A", "b")),
        (200, "OK\n", ("A", "b")),
        (200, "OK", ("A\r\nB", "c")),
        (200, "OK", ("A", "b\r\nC: d")),
        (200, "OK", ("A", "b\nC: d")),
        (200, "OK", ("A", "b\x00")),
        (200, "OK", ("A", "\ud800")),
        (200, "OK", ("A", " b")),
        (200, "OK", ("", "b")),
        (200, "OK", ("A B", "c")),
        (200, "OK", ("Content-Length", "0")),
        (200, "OK", ("Transfer-Encoding", "chunked")),
        (101, "Switching", ("A", "b")),
        (99, "Odd", ("A", "b")),
    ],
)
def test_an_answer_cannot_be_split(status: int, reason: str, field: tuple[str, str]) -> None:
    """Banner and host names come from elsewhere; the next answer still works."""
    server = HttpServer()
    server.receive(GET)
    with pytest.raises(LocalProtocolError):
        server.respond(status, reason, [field])
    assert server.respond(500, "Internal Server Error", []).startswith(b"HTTP/1.1 500 ")


def test_an_error_does_not_repeat_the_value_of_a_field() -> None:
    """It may be a Set-Cookie."""
    server = HttpServer()
    server.receive(GET)
    with pytest.raises(LocalProtocolError) as caught:
        server.respond(200, "OK", [("Set-Cookie", "SECRET\n")])
    assert "SECRET" not in str(caught.value)


def test_answers_without_a_question_and_tunnels_with_a_body_are_our_fault() -> None:
    """The caller learns it at once."""
    server = HttpServer()
    with pytest.raises(LocalProtocolError):
        server.respond(200, "OK", [])
    assert server.refuse(Malformed("too early")) == b""
    server.receive(CONNECT)
    with pytest.raises(LocalProtocolError):
        server.respond(200, "CONNECTED", [], b"body")


def test_a_head_request_gets_no_body() -> None:
    """Its length is still told."""
    server = HttpServer()
    server.receive(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = server.respond(404, "Not found", [], b"body")
    assert answer.endswith(b"Content-Length: 4\r\n\r\n")


def test_a_request_that_reads_badly_is_refused_before_it_is_answered() -> None:
    """Malformed may also come from a decoder that was given the request."""
    server = HttpServer()
    server.receive(CONNECT)
    expected = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    assert server.refuse(Malformed("path", 404)) == expected
    assert server.refuse(Malformed("path", 404)) == b""
