"""The client's channel: against our server's, and against servers as others wrote them."""

from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.protocol.client_channel import (
    EVENT_STEPS,
    MAX_REQUESTS,
    TRANSITIONS,
    ClientChannel,
    ClientEvent,
    ConnectOptions,
    FormAsked,
    LoggedIn,
    LoginRefused,
    NewConnectionNeeded,
    Redirected,
    State,
    Step,
    TunnelOpened,
    TunnelRefused,
)
from vpnd.protocol.client_login import MAX_FORMS, MAX_REASON
from vpnd.protocol.events import LoginStep, TunnelRequested
from vpnd.protocol.server_channel import ServerChannel
from vpnd.wire import cstp
from vpnd.wire.auth_messages import AuthForm, Input, encode_success
from vpnd.wire.params_client import ServerParams
from vpnd.wire.tunnel_params import TunnelParams

HOST, PORT = "vpn.example.org", 55555
COOKIE = "A" * 43
PARAMS = TunnelParams(address4=IPv4Address("10.8.0.2"), mtu=1400, base_mtu=1500)
USERNAME = Input("username", "text", "Username:")
PASSWORD = Input("password", "password", "Password:")
FORM = AuthForm("Who?", None, (USERNAME, PASSWORD))
ANSWER = {"username": "alice", "password": "s3cret"}


def starting(path: str = "/") -> ClientChannel:
    client = ClientChannel(HOST, PORT)
    client.start(path)
    return client


def answer(
    body: bytes = b"", status: str = "200 OK", headers: Sequence[str] = (), *, framed: bool = True
) -> bytes:
    """Return an HTTP answer of a server that is not ours."""
    fields = [*headers, f"Content-Length: {len(body)}"] if framed else [*headers]
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode("latin-1") + body


def form(*inputs: str, message: str = "", error: str = "", action: str = "/auth") -> bytes:
    """Return the body of a form in ocserv's manner; an input is "type name"."""
    lines = "".join(
        '<input type="{}" name="{}" label="{}:"/>'.format(*line.split(), line.split()[1])
        for line in inputs
    )
    error = f"<error>{error}</error>" if error else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<config-auth client="vpn" type="auth-request">'
        f'<auth id="main"><message>{message}</message>{error}'
        f'<form method="post" action="{action}">{lines}</form></auth></config-auth>'
    ).encode()


ASK_USER = form("text username", message="Please enter your username.")
ASK_PASSWORD = form("password password", message="Please enter your password.")
ASK_AGAIN = form("password password", message="Login failed.\nPlease enter your password.")
SUCCESS = answer(encode_success(), headers=[f"Set-Cookie: webvpn={COOKIE}; Secure"])


def only(events: list[ClientEvent]) -> ClientEvent:
    (event,) = events
    return event


def asked(events: list[ClientEvent]) -> FormAsked:
    event = only(events)
    assert isinstance(event, FormAsked)
    return event


def names(event: FormAsked) -> list[str]:
    return [line.name for line in event.inputs]


def test_a_login_and_a_tunnel_at_our_own_server() -> None:
    """One form, a wrong password, the right one, packets: both halves as they are."""
    client, server = starting(), ServerChannel()
    step = server.receive(client.data_to_send())
    assert isinstance(step, LoginStep)
    assert step.restart
    server.login_form(FORM, "L" * 43)
    event = asked(client.receive(server.data_to_send()))
    assert (event.message, event.error, names(event)) == ("Who?", "", ["username", "password"])
    client.answer({"username": "alice", "password": "wrong"})
    step = server.receive(client.data_to_send())
    assert isinstance(step, LoginStep)
    assert (step.login_cookie, dict(step.fields)["password"]) == ("L" * 43, "wrong")
    server.login_form(AuthForm("Who?", "Login failed.", FORM.inputs), "L" * 43)
    assert asked(client.receive(server.data_to_send())).error == "Login failed."
    assert not client.needs_new_connection
    client.answer(ANSWER)
    step = server.receive(client.data_to_send())
    assert isinstance(step, LoginStep)
    assert dict(step.fields) == ANSWER
    server.login_accepted(COOKIE)
    assert only(client.receive(server.data_to_send())) == LoggedIn(COOKIE)
    client.connect(ConnectOptions(hostname="laptop"), COOKIE)
    requested = server.receive(client.data_to_send())
    assert isinstance(requested, TunnelRequested)
    assert (requested.connect.cookie, requested.connect.hostname) == (COOKIE, "laptop")
    server.tunnel_opened(PARAMS)
    event = only(client.receive(server.data_to_send()))
    assert isinstance(event, TunnelOpened)
    assert event.params.address4 == PARAMS.address4
    assert client.is_open
    assert client.reader.receive(cstp.encode(0, b"packet")) == [(0, b"packet")]


def test_a_cookie_from_before_needs_no_login() -> None:
    """A reconnect asks for the tunnel at once."""
    client, server = ClientChannel(HOST, PORT), ServerChannel()
    client.connect(ConnectOptions(), COOKIE)
    assert isinstance(server.receive(client.data_to_send()), TunnelRequested)
    server.tunnel_refused(401, "Cookie is not acceptable")
    event = only(client.receive(server.data_to_send()))
    assert event == TunnelRefused(
        401, "the server answers 401 Cookie is not acceptable", cookie_refused=True
    )
    assert client.state is State.ENDED


def test_a_tunnel_that_may_be_had_later_is_no_refused_cookie() -> None:
    """The server's own reason is told, in one printable line."""
    client = ClientChannel(HOST, PORT)
    client.connect(ConnectOptions(), COOKIE)
    event = only(
        client.receive(answer(status="503 No", headers=["X-Reason: full \u009b31m house"]))
    )
    assert isinstance(event, TunnelRefused)
    assert (event.cookie_refused, event.reason) == (False, "the server answers 503 full 31m house")


@pytest.mark.parametrize(
    "head",
    ["X-CSTP-MTU: 1400", "X-CSTP-Address: 127.0.0.1", "X-CSTP-Address: 10.0.0.2\r\nX-CSTP-DPD: x"],
)
def test_a_tunnel_that_we_cannot_accept_is_refused_with_the_reason(head: str) -> None:
    """By us, that is; the cookie may be good."""
    client = ClientChannel(HOST, PORT)
    client.connect(ConnectOptions(), COOKIE)
    event = only(client.receive(answer(headers=[head], framed=False)))
    assert isinstance(event, TunnelRefused)
    assert event.reason
    assert not event.cookie_refused
    assert not client.is_open


def test_packets_in_the_record_of_the_answer_are_not_lost() -> None:
    """Some servers are quick."""
    client = ClientChannel(HOST, PORT)
    client.connect(ConnectOptions(), COOKIE)
    head = answer(headers=["X-CSTP-Address: 10.0.0.2", "X-CSTP-MTU: 1400"], framed=False)
    early = cstp.encode(7) + cstp.encode(0, b"half a packet")
    event = only(client.receive(head + early[:-4]))
    assert isinstance(event, TunnelOpened)
    assert isinstance(event.params, ServerParams)
    assert event.packets == ((7, b""),)
    assert client.reader.receive(early[-4:]) == [(0, b"half a packet")]


def test_junk_behind_the_answer_is_no_tunnel() -> None:
    """What follows must be packets."""
    client = ClientChannel(HOST, PORT)
    client.connect(ConnectOptions(), COOKIE)
    head = answer(headers=["X-CSTP-Address: 10.0.0.2"], framed=False)
    assert isinstance(only(client.receive(head + b"<html></html>")), TunnelRefused)


def wrong_password_at_ocserv(client: ClientChannel) -> FormAsked:
    """Go through a login in two forms until the server says that the password was wrong."""
    context = ["Set-Cookie: webvpncontext=abc; Max-Age=300"]
    assert names(asked(client.receive(answer(ASK_USER)))) == ["username"]
    client.answer({"username": "alice"})
    assert names(asked(client.receive(answer(ASK_PASSWORD, headers=context)))) == ["password"]
    client.answer({"password": "wrong"})
    assert b"webvpncontext=abc" in client.data_to_send()
    return asked(client.receive(answer(ASK_AGAIN)))


def test_after_a_wrong_password_a_login_in_two_forms_begins_again_elsewhere() -> None:
    """ocserv 1.1.6 takes no right one in the same login, nor over the same connection."""
    first = starting()
    event = wrong_password_at_ocserv(first)
    assert event.error.startswith("Login failed.")
    assert (event.message, names(event)) == ("", ["password"])
    assert first.needs_new_connection
    second = ClientChannel(HOST, PORT)
    second.resume(first)
    assert second.data_to_send() == b""
    assert not second.needs_new_connection
    second.answer({"password": "right"})
    init = second.data_to_send()
    assert b'type="init"' in init
    assert b"Cookie" not in init
    assert second.receive(answer(ASK_USER)) == []
    assert b"<username>alice</username>" in second.data_to_send()
    assert second.receive(answer(ASK_PASSWORD)) == []
    assert b"<password>right</password>" in second.data_to_send()
    assert only(second.receive(SUCCESS)) == LoggedIn(COOKIE)


def test_a_refusal_of_an_answer_is_a_question_too() -> None:
    """ocserv ends the login at a wrong one-time code: it is repeated with another."""
    first = starting()
    first.receive(answer(ASK_USER))
    first.answer({"username": "alice"})
    first.receive(answer(ASK_PASSWORD))
    first.answer({"password": "wrong"})
    event = asked(first.receive(answer(b"", status="401 Authentication failed")))
    assert "Authentication failed" in event.error
    assert (event.message, names(event)) == ("", ["password"])
    second = ClientChannel(HOST, PORT)
    first.answer({"password": "right"})
    second.resume(first)
    assert b'type="init"' in second.data_to_send()
    assert second.receive(answer(ASK_USER)) == []
    assert b"<username>alice</username>" in second.data_to_send()
    assert second.receive(answer(ASK_PASSWORD)) == []
    assert b"<password>right</password>" in second.data_to_send()
    assert only(second.receive(SUCCESS)) == LoggedIn(COOKIE)


def test_a_group_is_chosen_and_goes_with_the_name_when_a_login_is_repeated() -> None:
    """A choice of one is none, and what was chosen is not asked again."""
    groups = "".join(f"<option value='{g}'>The {g}</option>" for g in ("staff", "guests"))
    select = f'<select name="group_list" label="GROUP:">{groups}</select>'
    only_one = '<select name="realm" label="Realm:"><option value="a">A</option></select>'
    ask = ASK_USER.replace(b"</form>", f"{select}{only_one}</form>".encode())
    first = starting()
    event = asked(first.receive(answer(ask)))
    assert [choice.name for choice in event.choices] == ["group_list"]
    assert event.choices[0].options == (("staff", "The staff"), ("guests", "The guests"))
    first.answer({"username": "alice", "group_list": "guests"})
    assert b"<group-select>guests</group-select>" in first.data_to_send()
    first.receive(answer(ASK_PASSWORD))
    first.answer({"password": "wrong"})
    first.receive(answer(ASK_AGAIN))
    first.answer({"password": "right"})
    second = ClientChannel(HOST, PORT)
    second.resume(first)
    second.data_to_send()
    assert second.receive(answer(ask)) == []
    assert b"<group-select>guests</group-select>" in second.data_to_send()


def test_the_answer_may_also_be_given_before_the_connection_is_there() -> None:
    """It waits, and so does nothing else."""
    first = starting()
    wrong_password_at_ocserv(first)
    first.data_to_send()
    first.answer({"password": "right"})
    assert first.needs_new_connection
    assert first.data_to_send() == b""
    second = ClientChannel(HOST, PORT)
    second.resume(first)
    assert b'type="init"' in second.data_to_send()
    assert first.state is State.ENDED


def test_a_repeated_login_that_goes_another_way_asks_again() -> None:
    """Old answers must not go into new questions."""
    first = starting()
    wrong_password_at_ocserv(first)
    second = ClientChannel(HOST, PORT)
    second.resume(first)
    second.answer({"password": "right"})
    second.data_to_send()
    event = asked(second.receive(answer(form("text username", "password answer"))))
    assert names(event) == ["username", "answer"]
    assert second.data_to_send() == b""


def test_a_one_time_code_is_a_form_like_others() -> None:
    """Its input may be called password again; no complaint, so it is no second try."""
    client = starting()
    client.receive(answer(ASK_USER))
    client.answer({"username": "alice"})
    client.receive(answer(ASK_PASSWORD))
    client.answer({"password": "s3cret"})
    event = asked(client.receive(answer(form("password password", message="Enter the code."))))
    assert (event.message, event.error) == ("Enter the code.", "")
    client.data_to_send()
    client.answer({"password": "123456"})
    assert b"<password>123456</password>" in client.data_to_send()


def test_a_server_that_closes_between_two_steps_is_followed() -> None:
    """With its answer, or while a person types."""
    close = ["Connection: close"]
    first = starting()
    asked(first.receive(answer(ASK_USER, headers=close)))
    assert first.needs_new_connection
    second = ClientChannel(HOST, PORT)
    second.resume(first)
    second.answer({"username": "alice"})
    assert b"<username>alice" in second.data_to_send()
    asked(second.receive(answer(ASK_PASSWORD)))
    assert not second.needs_new_connection
    assert second.eof() == []
    assert second.needs_new_connection
    third = ClientChannel(HOST, PORT)
    third.resume(second)
    third.answer({"password": "s3cret"})
    third.data_to_send()
    assert only(third.receive(answer(encode_success(), headers=[
        *close, f"Set-Cookie: webvpn={COOKIE}"]))) == LoggedIn(COOKIE)  # fmt: skip
    assert third.needs_new_connection


def test_a_request_that_met_the_end_of_a_kept_connection_goes_over_another() -> None:
    """It was never read: the server had closed already."""
    first = starting()
    first.receive(answer(ASK_USER))
    first.answer({"username": "alice"})
    request = first.data_to_send()
    assert first.eof() == [NewConnectionNeeded()]
    second = ClientChannel(HOST, PORT)
    second.resume(first)
    assert second.data_to_send().endswith(b"</config-auth>\n")
    assert b"<username>alice" in request
    assert second.eof() == []  # the first request of a connection: this one is in trouble


def test_an_answer_that_ends_with_the_connection_counts() -> None:
    """HTTP of old."""
    client = starting()
    assert client.receive(answer(ASK_USER, headers=["Connection: close"], framed=False)) == []
    assert names(asked(client.eof())) == ["username"]
    assert client.needs_new_connection


def test_a_step_without_a_person_says_that_it_needs_a_connection() -> None:
    """Nobody else would notice."""
    hidden = b'<auth id="main"><form><input type="hidden" name="a" value="b"/></form></auth>'
    first = starting()
    assert first.receive(answer(hidden, headers=["Connection: close"])) == [NewConnectionNeeded()]
    second = ClientChannel(HOST, PORT)
    second.resume(first)
    assert b"<a>b</a>" in second.data_to_send()


def test_no_connection_carries_more_requests_than_servers_take() -> None:
    """ocserv cuts it at sixteen."""
    client = starting()
    for _ in range(MAX_REQUESTS - 1):
        asked(client.receive(answer(form("text question"))))
        assert not client.needs_new_connection
        client.answer({"question": "a"})
    asked(client.receive(answer(form("text question"))))
    assert client.needs_new_connection


@pytest.mark.parametrize("kind", ["text", "hidden"])
def test_a_server_cannot_ask_for_ever(kind: str) -> None:
    """Neither a person nor us."""
    body = f'<auth id="a"><form><input type="{kind}" name="q" value="v"/></form></auth>'.encode()
    client, count = starting(), 0
    while True:
        for event in client.receive(answer(body)):
            if isinstance(event, LoginRefused):
                assert count <= MAX_FORMS
                assert event.final
                return
            if isinstance(event, FormAsked):
                client.answer({"q": "a"})
        count += 1
        if client.needs_new_connection:
            client, before = ClientChannel(HOST, PORT), client
            client.resume(before)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://other.example.org/group", Redirected("other.example.org", 443, "/group")),
        ("https://[2001:db8::1]:444", Redirected("2001:db8::1", 444, "/")),
        ("/login", Redirected(HOST, PORT, "/login")),
        ("//other/x", Redirected("other", 443, "/x")),
    ],
)
def test_a_redirection_is_told(location: str, expected: Redirected) -> None:
    """The worker decides how often; each is another server to verify."""
    client = starting("/here")
    event = only(client.receive(answer(status="302 Found", headers=[f"Location: {location}"])))
    assert event == expected


@pytest.mark.parametrize(
    "location",
    [
        "http://other.example.org/",
        "ftp://a/",
        "file:///etc/passwd",
        "https://alice:secret@other.example.org/",
        "https://a b/",
        "https://[::1",
        "https://a:99999/",
        "https://a/\u00e9",
        "https://a$(reboot)/",
    ],
)
def test_a_redirection_to_what_is_no_https_server_is_refused(location: str) -> None:
    """Nothing of ours goes out in clear."""
    client = starting()
    event = only(client.receive(answer(status="302 Found", headers=[f"Location: {location}"])))
    assert isinstance(event, LoginRefused)
    assert event.final
    event = only(starting().receive(answer(status="302 Found")))
    assert isinstance(event, Redirected | LoginRefused)


@pytest.mark.parametrize(
    "action",
    ["http://vpn.example.org/", "https://evil.example/auth", "//evil/", "https://[", "\\x"],
)
def test_an_answer_goes_to_the_server_that_asked_only(action: str) -> None:
    """It may be a password."""
    event = only(starting().receive(answer(form("password password", action=action))))
    if isinstance(event, FormAsked):
        assert action == "\\x"  # a path, if a strange one
        return
    assert isinstance(event, LoginRefused)
    assert event.final


def test_an_absolute_action_of_the_same_server_is_a_path() -> None:
    """Some servers write it so."""
    client = starting("/group")
    url = f"https://{HOST}:{PORT}/next"
    asked(client.receive(answer(form("text a", action=url))))
    client.data_to_send()
    client.answer({"a": "b"})
    assert client.data_to_send().startswith(b"POST /next HTTP/1.1\r\n")


def test_a_captive_portal_is_recognised() -> None:
    """It may go away: no final word."""
    page = b"<!DOCTYPE html><html><body>Welcome to the hotel</body></html>"
    event = only(starting().receive(answer(page)))
    assert isinstance(event, LoginRefused)
    assert "captive portal" in event.reason
    assert not event.final


@pytest.mark.parametrize(
    ("status", "final"), [("401 No", True), ("403 No", True), ("404 No", False), ("503 No", False)]
)
def test_a_refusal_says_whether_trying_again_may_help(status: str, *, final: bool) -> None:
    """A full server may have room later; a refused login has not."""
    event = only(starting().receive(answer(status=status)))
    assert event == LoginRefused(f"the server answers {status}", final=final)


def test_a_refusal_is_one_printable_line() -> None:
    """It goes into log and status."""
    body = f'<auth id="main"><error>a\n\u202eb{"x" * 2000}</error></auth>'.encode()
    event = only(starting().receive(answer(body)))
    assert isinstance(event, LoginRefused)
    assert event.reason.startswith("a b")
    assert event.reason.isprintable()
    assert len(event.reason) <= MAX_REASON


def test_a_login_without_a_usable_cookie_is_none() -> None:
    """Sending it would be a request of the server's making."""
    for cookie in ("", "webvpn=a;b", "webvpn=", "webvpn=(null)", "other=a"):
        headers = [f"Set-Cookie: {cookie}"] if cookie else []
        event = only(starting().receive(answer(encode_success(), headers=headers)))
        if cookie == "webvpn=a;b":  # an attribute follows
            assert event == LoggedIn("a")
        else:
            assert isinstance(event, LoginRefused)


def test_a_server_that_wants_a_certificate_is_told_once_that_there_is_none() -> None:
    """Then it may ask for a password."""
    body = b"<config-auth><client-cert-request/></config-auth>"
    client = starting()
    client.data_to_send()
    assert client.receive(answer(body)) == []
    assert b"<client-cert-fail/>" in client.data_to_send()
    event = only(client.receive(answer(body)))
    assert event == LoginRefused("the server demands a client certificate", final=True)


def test_secrets_do_not_show_and_do_not_stay() -> None:
    """A repr ends in logs; a password is needed until the login is over."""
    client = starting()
    client.receive(answer(form("text username", "password password")))
    client.answer(ANSWER)
    assert "s3cret" not in repr(client)
    event = only(client.receive(SUCCESS))
    assert COOKIE not in repr(event)
    assert COOKIE not in repr(client)
    assert client._login is None
    assert client._sent is None


def test_steps_in_the_wrong_order_are_our_fault() -> None:
    """The table knows every one of them."""
    assert set(TRANSITIONS) == set(State)
    assert {step for steps in TRANSITIONS.values() for step in steps} == set(Step)
    assert set(EVENT_STEPS) == {FormAsked, LoggedIn, LoginRefused, Redirected}
    client = starting()
    for wrong in (
        client.start,
        lambda: client.answer({}),
        lambda: client.connect(ConnectOptions(), COOKIE),
        lambda: client.resume(ClientChannel(HOST)),
    ):
        with pytest.raises(LocalProtocolError):
            wrong()
    with pytest.raises(LocalProtocolError):
        ClientChannel(HOST).start("no path")
    with pytest.raises(LocalProtocolError):
        ClientChannel(HOST).answer({"a": "b"})


def test_an_answer_that_cannot_be_sent_may_be_given_again() -> None:
    """A person pasted a line feed."""
    client = starting()
    client.receive(answer(form("password password")))
    for bad in ({"password": "a\nb"}, {}, {"other": "x"}):
        with pytest.raises(LocalProtocolError):
            client.answer(bad)
    client.answer({"password": "ok"})


BODIES = st.sampled_from(
    [
        b"",
        ASK_USER,
        ASK_PASSWORD,
        ASK_AGAIN,
        encode_success(),
        b"<html>",
        b"<config-auth><client-cert-request/></config-auth>",
        form("hidden a"),
    ]
)
STATUSES = st.sampled_from(["200 OK", "200 OK", "200 OK", "302 Found", "401 No", "503 No"])
HEADERS = st.sampled_from(
    [
        (),
        ("Connection: close",),
        (f"Set-Cookie: webvpn={COOKIE}",),
        ("Location: https://b/",),
        ("X-CSTP-Address: 10.0.0.2",),
    ]
)


@settings(deadline=None)
@given(st.lists(st.tuples(BODIES, STATUSES, HEADERS, st.booleans()), max_size=12))
def test_any_order_of_answers_ends_in_a_known_state(
    answers: list[tuple[bytes, str, tuple[str, ...], bool]],
) -> None:
    """The worker's loop, with a server that answers at random."""
    client = starting()
    for body, status, headers, ends in answers:
        if client.is_open or client.state is State.ENDED:
            break
        if client.needs_new_connection:
            before, client = client, ClientChannel(HOST, PORT)
            client.resume(before)
        if client.state is State.FORM and client._login is not None:
            inputs = client._login._form.inputs if client._login._form else ()
            client.answer({line.name: "x" for line in inputs})
        elif client.state is State.READY:
            client.connect(ConnectOptions(), COOKIE)
        if client.needs_new_connection:
            continue
        client.data_to_send()
        try:
            client.receive(answer(body, status, headers))
        except Malformed:
            break
        if ends:
            client.eof()


@given(st.binary(max_size=100), st.booleans())
def test_arbitrary_bytes_raise_nothing_but_malformed(data: bytes, is_connect: bool) -> None:
    """And the end of the connection never does."""
    client = ClientChannel(HOST, PORT)
    if is_connect:
        client.connect(ConnectOptions(), COOKIE)
    else:
        client.start()
    with suppress(Malformed):
        client.receive(b"HTTP/1.1 200 OK\r\n" + data)
    assert client.eof() is not None
