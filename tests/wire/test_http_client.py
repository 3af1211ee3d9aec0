"""HTTP as a client, against servers that are anything but one."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.wire.http import HttpServer
from vpnd.wire.http_client import (
    MAX_BODY,
    MAX_COOKIE,
    MAX_COOKIES,
    MAX_FIELDS,
    MAX_HEAD,
    MAX_INFORMATIONAL,
    MAX_TUNNEL_FIELDS,
    MAX_TUNNEL_HEAD,
    HttpClient,
    HttpRequest,
    Response,
)

POST = HttpRequest("POST", "/auth", (("Host", "vpn"), ("X-Pad", "0")), b"body")
CONNECT = HttpRequest("CONNECT", "/CSCOSSLC/tunnel", (("Host", "vpn"),))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def asking(request: HttpRequest = POST) -> HttpClient:
    client = HttpClient()
    client.request(request)
    return client


def feed(client: HttpClient, pieces: list[bytes]) -> None:
    for piece in pieces:
        client.receive(piece)


def answer(data: bytes, request: HttpRequest = POST) -> Response:
    response = asking(request).receive(data)
    assert response is not None
    return response


def test_our_server_understands_our_requests() -> None:
    """Names keep their spelling, the body its length."""
    server, client = HttpServer(), HttpClient()
    sent = client.request(POST)
    assert b"\r\nX-Pad: 0\r\n" in sent
    request = server.receive(sent)
    assert request is not None
    assert (request.method, request.target, request.body) == ("POST", "/auth", b"body")
    response = client.receive(server.respond(200, "OK", [("X-A", "b")], b"fine"))
    assert response is not None
    assert (response.status, response.header("x-a"), response.body) == (200, "b", b"fine")
    assert not client.must_close
    server.receive(client.request(POST))
    assert client.receive(server.respond(404, "Not found", [])) is not None


@pytest.mark.parametrize(
    "framed",
    [
        OK,
        CHUNKED + b"2\r\nbo\r\n2;x=y\r\ndy\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_framed_answer_is_found_however_it_is_cut(framed: bytes, step: int) -> None:
    """TLS records end where the server likes."""
    client = asking()
    pieces = [framed[at : at + step] for at in range(0, len(framed), step)]
    for piece in pieces[:-1]:
        assert client.receive(piece) is None
        assert client.is_waiting
    response = client.receive(pieces[-1])
    assert response is not None
    assert response.body == b"body"
    assert not client.must_close
    client.request(POST)


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"]
)
def test_a_body_may_end_with_the_connection(head: bytes) -> None:
    """Old and small servers do so."""
    client = asking()
    assert client.receive(head) is None
    assert client.receive(b"bo") is None
    assert client.receive(b"dy") is None
    response = client.eof()
    assert response is not None
    assert response.body == b"body"
    assert client.must_close


def test_a_server_that_closes_after_its_answer_takes_no_other_request() -> None:
    """It says so in the head."""
    client = asking()
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    assert client.receive(head) is not None
    assert client.must_close
    with pytest.raises(LocalProtocolError):
        client.request(POST)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 O", OK[:-1]])
def test_an_answer_that_is_cut_short_is_no_answer(data: bytes) -> None:
    """Half a cookie would be worse than none."""
    client = asking()
    assert client.receive(data) is None
    with pytest.raises(Malformed):
        client.eof()


def test_the_end_of_an_idle_connection_is_no_trouble() -> None:
    """Servers close what they have kept."""
    client = asking()
    client.receive(OK)
    assert client.eof() is None
    assert client.must_close


def test_what_follows_a_granted_connect_belongs_to_the_tunnel() -> None:
    """The first packets may come in the same record."""
    client = asking(CONNECT)
    response = client.receive(b"HTTP/1.1 200 CONNECTED\r\nX-CSTP-MTU: 1400\r\n\r\nSTF\x01early")
    assert response is not None
    assert response.header("X-CSTP-MTU") == "1400"
    assert client.is_tunnel
    assert client.trailing == b"STF\x01early"
    with pytest.raises(LocalProtocolError):
        client.receive(b"more")


def test_a_refused_connect_is_an_answer_like_others() -> None:
    """With a body or without."""
    response = answer(
        b"HTTP/1.1 401 Cookie is not acceptable\r\nContent-Length: 0\r\n\r\n", CONNECT
    )
    assert (response.status, response.reason) == (401, "Cookie is not acceptable")


@pytest.mark.parametrize(
    "data",
    [
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \x1b[2J\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nLocation: /a\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        OK + b"HTTP/1.1 200 OK\r\n",
        OK + OK,
    ],
)
def test_what_is_no_single_answer_is_refused(data: bytes) -> None:
    """A hostile server, a captive portal, or something else on that port."""
    client = asking()
    with pytest.raises(Malformed):
        client.receive(data)
    assert client.must_close
    assert client.eof() is None


def test_an_answer_to_nothing_is_refused() -> None:
    """It would be taken for the answer to the next request."""
    client = HttpClient()
    with pytest.raises(Malformed, match="nobody asked"):
        client.receive(OK)


@pytest.mark.parametrize("whole", [True, False])
def test_a_long_head_is_refused(*, whole: bool) -> None:
    """Also one that arrives at once, which the parser below would take."""
    head = b"HTTP/1.1 200 OK\r\nA: " + b"a" * MAX_HEAD + b"\r\n\r\n"
    client = asking()
    pieces = [head] if whole else [head[at : at + 4096] for at in range(0, len(head), 4096)]
    with pytest.raises(Malformed, match="more than 16384 bytes"):
        feed(client, pieces)


def test_a_flood_of_fields_is_refused() -> None:
    """Ten thousand of them cost more than they say."""
    head = b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n"
    with pytest.raises(Malformed, match="64 fields"):
        answer(head)


def test_an_answer_to_connect_may_name_many_routes_but_not_any_number() -> None:
    """Each is a field."""
    route = b"X-CSTP-Split-Include: 10.200.200.0/255.255.255.0\r\n"
    begin = b"HTTP/1.1 200 CONNECTED\r\n"
    assert len(answer(begin + route * 2100 + b"\r\n", CONNECT).headers) == 2100
    with pytest.raises(Malformed, match=f"{MAX_TUNNEL_HEAD} bytes"):
        answer(begin + route * 10_000 + b"\r\n", CONNECT)
    with pytest.raises(Malformed, match=f"{MAX_TUNNEL_FIELDS} fields"):
        answer(begin + b"A: b\r\n" * (MAX_TUNNEL_FIELDS + 1) + b"\r\n", CONNECT)


def test_a_large_body_is_refused_when_it_is_announced_or_has_come() -> None:
    """It would be kept whole."""
    with pytest.raises(Malformed, match="body of more"):
        answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1))
    client = asking()
    client.receive(CHUNKED)
    chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
    with pytest.raises(Malformed, match="body of more"):
        feed(client, [chunk] * (MAX_BODY // 0x4000 + 1))


def test_endless_informational_answers_are_refused() -> None:
    """Each begins anew."""
    with pytest.raises(Malformed, match="informational"):
        answer(b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INFORMATIONAL + 1))


def test_secrets_do_not_show() -> None:
    """A repr ends in a log; so does what an error says."""
    response = answer(b"HTTP/1.1 200 OK\r\nSet-Cookie: webvpn=SECRET\r\nContent-Length: 0\r\n\r\n")
    assert "SECRET" not in repr(response)
    assert "SECRET" not in repr(HttpRequest("POST", "/", (("Cookie", "SECRET"),), b"SECRET"))
    with pytest.raises(Malformed) as caught:
        answer(b"HTTP/1.1 200 OK\r\nSet-Cookie: SECRET\r\nbad\r\n\r\n")
    assert "SECRET" not in str(caught.value)


def with_cookies(*lines: str) -> Response:
    return Response(200, "OK", tuple(("set-cookie", line) for line in lines))


def test_cookies_are_read_as_servers_set_and_delete_them() -> None:
    """ocserv's own lines."""
    response = with_cookies(
        "webvpncontext=a+b/c=; Max-Age=300; Secure; HttpOnly",
        "webvpn=x; Secure",
        "webvpnc=; expires=Thu, 01 Jan 1970 22:00:00 GMT; path=/",
        "old=y; Max-Age=0",
    )
    assert response.cookies() == {
        "webvpncontext": "a+b/c=",
        "webvpn": "x",
        "webvpnc": "",
        "old": "",
    }


@pytest.mark.parametrize(
    "line",
    ["", "=a", "a b=c", "a=b c", 'a="b"', "a=\u00e9", "a=b,c", "a=" + "x" * (MAX_COOKIE + 1)],
)
def test_a_cookie_that_cannot_be_sent_back_is_left_out(line: str) -> None:
    """It would break the next request, or inject into it."""
    assert with_cookies(line).cookies() == {}


def test_only_so_many_cookies_are_kept() -> None:
    """All of them go into each request."""
    assert len(with_cookies(*(f"a{n}=b" for n in range(100))).cookies()) == MAX_COOKIES


@pytest.mark.parametrize(
    "request_",
    [
        HttpRequest("POST", "/a b", (("Host", "vpn"),)),
        HttpRequest("POST", "/a\r\nX: y", (("Host", "vpn"),)),
        HttpRequest("POST", "/", (("Host", "vpn\r\nX: y"),)),
        HttpRequest("POST", "/", (("Host", "vpn"), ("Cookie", "a\nb"))),
        HttpRequest("POST", "/", (("Host", "vpn"), ("Content-Length", "3"))),
        HttpRequest("PO ST", "/", (("Host", "vpn"),)),
        HttpRequest("POST", "/", ()),
    ],
)
def test_a_request_cannot_be_split(request_: HttpRequest) -> None:
    """Paths and cookies come from servers."""
    with pytest.raises(LocalProtocolError):
        HttpClient().request(request_)


def test_one_request_at_a_time() -> None:
    """A second would be pipelining."""
    with pytest.raises(LocalProtocolError):
        asking().request(POST)


BEGINNINGS = st.sampled_from(
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n",
        b"HTTP/1.0 302 Found\r\nLocation: ",
    ]
)


@given(BEGINNINGS, st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_raise_nothing_but_malformed(
    begin: bytes, data: bytes, is_connect: bool
) -> None:
    """Whatever a stranger sends, and wherever it ends."""
    client = asking(CONNECT if is_connect else POST)
    with suppress(Malformed):
        if client.receive(begin + data) is None:
            client.eof()


@given(BEGINNINGS, st.binary(max_size=60), st.integers(1, 9))
def test_byte_at_a_time_equals_all_at_once(begin: bytes, data: bytes, step: int) -> None:
    """Refusals and answers alike."""

    def outcome(pieces: list[bytes]) -> object:
        client = asking()
        try:
            for piece in pieces:
                if client.is_waiting:
                    found = client.receive(piece)
                    if found is not None:
                        return found.status, found.headers, found.body
        except Malformed:
            return "malformed"
        return "more"

    whole = begin + data
    cut = outcome([whole[at : at + step] for at in range(0, len(whole), step)])
    once = outcome([whole])
    # what follows a whole answer is seen only when it comes along
    assert once in (cut, "malformed")
