"""The TLS channel of a client: every transition, and what a peer gets that goes another way."""

from contextlib import suppress
from ipaddress import IPv4Address
from xml.etree import ElementTree as ET  # our own output

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.protocol.events import LoginStep, LogoutRequested, TunnelRequested
from vpnd.protocol.server_channel import (
    MAX_PATH,
    TRANSITIONS,
    ServerChannel,
    State,
    Step,
)
from vpnd.wire import cstp
from vpnd.wire.auth_messages import AuthForm, Input
from vpnd.wire.http import MAX_REQUESTS
from vpnd.wire.tunnel_params import TunnelParams

COOKIE = "A" * 43
PARAMS = TunnelParams(address4=IPv4Address("10.8.0.2"), mtu=1400, base_mtu=1500)
FORM = AuthForm(
    "Who?",
    None,
    (Input("username", "text", "Username:"), Input("password", "password", "Password:")),
)
PROLOG = b'<?xml version="1.0" encoding="UTF-8"?>\n'
INIT = (
    PROLOG + b'<config-auth client="vpn" type="init"><version who="vpn">v9</version></config-auth>'
)
REPLY = (
    PROLOG + b'<config-auth client="vpn" type="auth-reply">'
    b"<auth><username>alice</username><password>s3cret</password></auth></config-auth>"
)


def post(body: bytes = INIT, path: str = "/", cookie: str = "") -> bytes:
    fields = f"Host: vpn\r\nContent-Length: {len(body)}\r\n"
    if cookie:
        fields += f"Cookie: {cookie}\r\n"
    return f"POST {path} HTTP/1.1\r\n{fields}\r\n".encode() + body


def connect(cookie: str = f"webvpn={COOKIE}", target: str = "/CSCOSSLC/tunnel") -> bytes:
    fields = f"Cookie: {cookie}\r\n" if cookie else ""
    return f"CONNECT {target} HTTP/1.1\r\nHost: vpn\r\n{fields}\r\n".encode()


def answer(channel: ServerChannel) -> tuple[str, dict[str, str], bytes]:
    """Return status line, fields (several cookies joined) and body of the waiting answer."""
    head, _, body = channel.data_to_send().partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        fields[name] = f"{fields[name]} | {value}" if name in fields else value
    return status, fields, body


def in_state(state: State) -> ServerChannel:
    """Bring a channel into a state by what a client would send."""
    channel = ServerChannel()
    if state is State.LOGIN:
        channel.receive(post())
    elif state is State.CONNECT:
        channel.receive(connect())
    elif state is State.OPEN:
        channel.receive(connect())
        channel.tunnel_opened(PARAMS)
    elif state is State.CLOSING:
        channel.close()
    channel.data_to_send()
    assert channel.state is state
    return channel


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Step)
def test_every_step_is_in_the_table_or_our_own_mistake(state: State, step: Step) -> None:
    """The table is the machine: a step that it does not name must not pass unnoticed."""
    channel = in_state(state)
    if step in TRANSITIONS[state]:
        channel._move(step)
        assert channel.state is TRANSITIONS[state][step]
    else:
        with pytest.raises(LocalProtocolError, match=step.value):
            channel._move(step)
        assert channel.state is state


def test_every_state_can_be_closed() -> None:
    """A connection may be lost at any time."""
    for state in State:
        channel = in_state(state)
        channel.close()
        assert channel.state is State.CLOSING


def test_a_login_runs_through_form_answer_and_connect_on_one_connection() -> None:
    """As a stock client with a password does it."""
    channel = ServerChannel()
    event = channel.receive(post())
    assert event == LoginStep({}, None, None, restart=True)
    assert channel.state is State.LOGIN
    channel.login_form(FORM, "L" * 43)
    status, fields, body = answer(channel)
    assert (status, channel.state) == ("HTTP/1.1 200 OK", State.HTTP)
    assert fields["Set-Cookie"].startswith(f"webvpncontext={'L' * 43};")
    assert {"Secure", "HttpOnly"} <= set(fields["Set-Cookie"].split("; "))
    assert int(fields["Content-Length"]) == len(body)
    assert fields["Content-Type"].startswith("text/xml")
    auth = ET.fromstring(body).find("auth")
    assert auth is not None
    assert auth.get("id")
    assert [i.get("name") for i in auth.iter("input")] == ["username", "password"]

    event = channel.receive(post(REPLY, "/auth", f"webvpncontext={'L' * 43}"))
    expected = {"username": "alice", "password": "s3cret"}
    assert event == LoginStep(expected, None, "L" * 43, restart=False)
    assert "s3cret" not in repr(event)
    channel.login_accepted(COOKIE)
    status, fields, body = answer(channel)
    assert status == "HTTP/1.1 200 OK"
    assert f"webvpn={COOKIE}; path=/; Secure; HttpOnly" in fields["Set-Cookie"]
    assert "webvpncontext=; Max-Age=0" in fields["Set-Cookie"]  # the login cookie is over
    success = ET.fromstring(body).find("auth")
    assert success is not None
    assert success.get("id") == "success"

    event = channel.receive(connect())
    assert isinstance(event, TunnelRequested)
    assert event.connect.cookie == COOKIE
    assert COOKIE not in repr(event)
    channel.tunnel_opened(PARAMS)
    status, fields, body = answer(channel)
    assert status == "HTTP/1.1 200 CONNECTED"
    assert fields["X-CSTP-Address"] == "10.8.0.2"
    assert fields["X-CSTP-MTU"] == "1400"
    assert "Content-Length" not in fields
    assert body == b""
    assert channel.state is State.OPEN
    packets = channel.reader.receive(cstp.encode(0, b"packet"))
    assert [(kind, bytes(payload)) for kind, payload in packets] == [(0, b"packet")]


@pytest.mark.parametrize("path", ["/", "/auth", "/staff", "/+webvpn+/index.html"])
def test_an_init_restarts_the_login_at_any_path(path: str) -> None:
    """Stock clients repeat it at the form's action to choose a group."""
    body = INIT.replace(b"</config-auth>", b"<group-select>staff</group-select></config-auth>")
    event = ServerChannel().receive(post(body, path, "webvpncontext=abc"))
    assert event == LoginStep({}, "staff", "abc", restart=True)


def test_an_old_client_gets_by_with_get_and_urlencoded_answers() -> None:
    """The retry of a stock client after an answer that it did not understand."""
    channel = ServerChannel()
    event = channel.receive(b"GET / HTTP/1.1\r\nHost: vpn\r\n\r\n")
    assert event == LoginStep({}, None, None, restart=True)
    channel.login_form(FORM, "abc")
    event = channel.receive(post(b"username=alice&password=x%26y", "/auth"))
    assert event == LoginStep({"username": "alice", "password": "x&y"}, None, None, restart=False)


@pytest.mark.parametrize(
    "head",
    [
        "GET /favicon.ico",
        "GET /a/b",
        "GET /" + "x" * MAX_PATH,
        "HEAD /",
        "PUT /",
        "DELETE /auth",
        "CONNECT vpn:443",
        "CONNECT /CSCOSSLC/tunnel/",
        "CONNECT /",
    ],
)
def test_other_pages_and_methods_are_not_found(head: str) -> None:
    """As the stock server answers them; the connection ends."""
    channel = ServerChannel()
    cookie = f"Cookie: webvpn={COOKIE}\r\n"
    assert channel.receive(f"{head} HTTP/1.1\r\nHost: vpn\r\n{cookie}\r\n".encode()) is None
    status, fields, _ = answer(channel)
    assert status.startswith("HTTP/1.1 404 ")
    assert fields["Connection"] == "close"
    assert channel.state is State.CLOSING


@pytest.mark.parametrize(
    "cookie",
    ["", "webvpncontext=" + COOKIE, "webvpn=", "webvpn=" + "A" * 300, "webvpn=a b", "Webvpn=abc"],
)
def test_a_connect_without_a_session_cookie_is_told_to_log_in(cookie: str) -> None:
    """A login cookie is not one, even with the same value."""
    channel = ServerChannel()
    with pytest.raises(Malformed):
        channel.receive(connect(cookie))
    assert answer(channel)[0].startswith("HTTP/1.1 401 ")
    assert channel.state is State.CLOSING


def test_two_session_cookies_are_refused() -> None:
    """Which of them counts would be anybody's choice."""
    channel = ServerChannel()
    with pytest.raises(Malformed):
        channel.receive(connect("webvpn=a; webvpn=b"))
    assert channel.state is State.CLOSING


def test_a_cookie_that_does_not_hold_is_401_and_trouble_of_ours_is_503() -> None:
    """Stock clients log in anew after the one and show the reason of the other."""
    for status, reason in ((401, "Cookie is not acceptable"), (503, "No address is free")):
        channel = in_state(State.CONNECT)
        channel.tunnel_refused(status, reason)
        line, fields, _ = answer(channel)
        assert line == f"HTTP/1.1 {status} {reason}"
        assert fields["X-Reason"] == reason
        assert fields["Connection"] == "close"
        assert fields["Content-Length"] == "0"
        assert channel.state is State.CLOSING


def test_a_login_refused_for_good_is_a_page_that_stock_clients_print() -> None:
    """A 401 would make them say something about Basic authentication."""
    channel = in_state(State.LOGIN)
    channel.login_refused("Login failed.")
    line, fields, body = answer(channel)
    assert line == "HTTP/1.1 200 OK"
    assert fields["Connection"] == "close"
    root = ET.fromstring(body)
    auth = root.find("auth")
    assert auth is not None
    assert auth.get("id") == "main"
    assert root.find(".//form") is None
    assert root.findtext(".//error") == "Login failed."
    assert channel.state is State.CLOSING


LOGOUT = b'<?xml version="1.0"?><config-auth client="vpn" type="logout"/>'


@pytest.mark.parametrize("cookie", ["", COOKIE])
def test_a_logout_hands_over_the_cookie_and_closes(cookie: str) -> None:
    """It begins no login, with a session or without one."""
    channel = ServerChannel()
    event = channel.receive(post(LOGOUT, cookie=f"webvpn={cookie}" if cookie else ""))
    assert event == LogoutRequested(cookie or None)
    assert COOKIE not in repr(event)
    channel.logged_out()
    line, fields, body = answer(channel)
    assert line == "HTTP/1.1 200 OK"
    assert fields["Set-Cookie"].startswith("webvpn=; Max-Age=0")
    assert body == b""
    assert channel.state is State.CLOSING


def test_too_many_logins_are_503_with_a_time_to_come_back() -> None:
    """Not a refusal: nothing was decided."""
    channel = in_state(State.LOGIN)
    channel.login_busy()
    line, fields, _ = answer(channel)
    assert line.startswith("HTTP/1.1 503 ")
    assert int(fields["Retry-After"]) > 0
    assert channel.state is State.CLOSING


@pytest.mark.parametrize("second", [post(), connect(), b"G", b"\x00"])
def test_who_does_not_wait_for_the_answer_is_refused(second: bytes) -> None:
    """Pipelined requests: in one record, and while the answer is being made."""
    together = ServerChannel()
    with pytest.raises(Malformed):
        together.receive(post() + second)
    assert together.state is State.CLOSING
    for state in (State.LOGIN, State.CONNECT):
        channel = in_state(state)
        with pytest.raises(Malformed):
            channel.receive(second)
        assert answer(channel)[0].startswith("HTTP/1.1 400 ")
        assert channel.state is State.CLOSING


def test_packets_before_the_answer_to_a_connect_are_refused() -> None:
    """Nobody knows yet whether there is a tunnel for them."""
    channel = ServerChannel()
    with pytest.raises(Malformed):
        channel.receive(connect() + cstp.encode(0, b"early"))
    assert channel.state is State.CLOSING


def test_a_connection_carries_sixteen_requests() -> None:
    """Then it ends with its last answer, as with the stock server."""
    channel = ServerChannel()
    for number in range(1, MAX_REQUESTS + 1):
        assert channel.receive(post()) is not None
        channel.login_form(FORM, "abc")
        _, fields, _ = answer(channel)
        assert (fields.get("Connection") == "close") is (number == MAX_REQUESTS)
    assert channel.state is State.CLOSING
    assert channel.receive(post()) is None
    assert channel.data_to_send() == b""


def test_a_closing_channel_is_deaf_and_mute() -> None:
    """What still arrives was on its way."""
    channel = in_state(State.CLOSING)
    assert channel.receive(post()) is None
    assert channel.data_to_send() == b""


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01", 400),
        (b"GET / HTTP/3.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 20000, 431),
        (post(b"<!DOCTYPE x><config-auth/>"), 400),
        (b"POST / HTTP/1.1\r\nHost: v\r\nContent-Length: 999999\r\n\r\n", 413),
    ],
)
def test_malformed_input_gets_its_status_and_the_end(data: bytes, status: int) -> None:
    """One line of HTTP, so that a person with curl sees why."""
    channel = ServerChannel()
    with pytest.raises(Malformed):
        channel.receive(data)
    line, fields, _ = answer(channel)
    assert line.startswith(f"HTTP/1.1 {status} ")
    assert fields["Connection"] == "close"
    assert channel.state is State.CLOSING


@settings(deadline=None)
@given(
    st.lists(
        st.binary(max_size=60)
        | st.sampled_from(
            [post(), post(REPLY), connect(), connect(""), b"GET /", b" HTTP/1.1\r\n\r\n"]
        ),
        max_size=5,
    )
)
def test_arbitrary_plaintext_raises_only_malformed_alike_in_any_cut(pieces: list[bytes]) -> None:
    """Byte by byte ends in the same state, and what is not refused means the same."""
    data, seen = b"".join(pieces), []
    for chunks in ([data], [data[i : i + 1] for i in range(len(data))]):
        channel, event = ServerChannel(), None
        with suppress(Malformed):
            for chunk in chunks:
                event = channel.receive(chunk) or event
        is_closing = channel.state is State.CLOSING
        seen.append((channel.state, None if is_closing else (event, channel.data_to_send())))
    assert seen[0] == seen[1]
