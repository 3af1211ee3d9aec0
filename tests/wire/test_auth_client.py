"""The login as the client sees it, against servers that want to be believed."""

from contextlib import suppress
from xml.etree import ElementTree as ET  # our own output

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.wire import auth_messages
from vpnd.wire.auth_client import (
    MAX_INPUTS,
    MAX_LABEL,
    MAX_MARKUP,
    MAX_MESSAGE,
    MAX_OPAQUE,
    MAX_OPTIONS,
    MAX_VALUE,
    PAD,
    AskedInput,
    AskForm,
    CertificateAsked,
    Choice,
    LoggedIn,
    Refused,
    encode_init,
    encode_reply,
    one_line,
    pad,
    parse_reply,
    shown,
)

# as ocserv 1.1.6 sends it
FORM = """<?xml version="1.0" encoding="UTF-8"?>
<config-auth client="vpn" type="auth-request">
<version who="sg">0.1(1)</version>
<auth id="main">
<message>Please enter your username.</message>
<form method="post" action="/auth">
<input type="text" name="username" label="Username:" />
</form></auth></config-auth>"""
SUCCESS = """<?xml version="1.0" encoding="UTF-8"?>
<config-auth client="vpn" type="complete"><version who="sg">0.1(1)</version>
<auth id="success"><banner>Be &amp; good</banner><title>SSL VPN Service</title></auth>
</config-auth>"""


def ask(form: str, *, root: str = "", auth: str = "") -> AskForm:
    found = parse_reply(document(form, root=root, auth=auth))
    assert isinstance(found, AskForm)
    return found


def document(form: str, *, root: str = "", auth: str = "") -> bytes:
    return (
        f'<config-auth type="auth-request">{root}<auth id="main">{auth}{form}</auth></config-auth>'
    ).encode()


def test_the_form_of_a_stock_server_is_read() -> None:
    """What the user sees, and where the answer goes."""
    assert parse_reply(FORM.encode()) == AskForm(
        message="Please enter your username.",
        error="",
        banner="",
        inputs=(AskedInput("username", "text", "Username:"),),
        action="/auth",
    )


def test_our_own_servers_answers_are_read() -> None:
    """Both halves were written from the same notes, by different readers."""
    form = auth_messages.AuthForm(
        "Who?", "Wrong <it> is", (auth_messages.Input("password", "password", "Secret & so"),)
    )
    found = parse_reply(auth_messages.encode_form(form))
    assert isinstance(found, AskForm)
    assert (found.message, found.error, found.action) == ("Who?", "Wrong <it> is", "/auth")
    assert found.inputs == (AskedInput("password", "password", "Secret & so"),)
    assert parse_reply(auth_messages.encode_success()) == LoggedIn(None)
    assert parse_reply(auth_messages.encode_refusal("Locked")) == Refused("Locked")


def test_success_is_read_with_and_without_a_token() -> None:
    """Most servers set a cookie instead."""
    assert parse_reply(SUCCESS.encode()) == LoggedIn(None, "Be & good")
    small = b'<?xml version="1.0"?><config-auth><auth id="success"/></config-auth>'
    assert parse_reply(small) == LoggedIn(None)
    token = b'<config-auth><session-token>a1+/=</session-token><auth id="success"/></config-auth>'
    assert parse_reply(token) == LoggedIn("a1+/=")
    strange = token.replace(b"a1+/=", b"a; b")
    assert parse_reply(strange) == LoggedIn(None)
    assert "a1" not in repr(parse_reply(token))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"<config-auth><error>Go away</error></config-auth>", "Go away"),
        (b'<config-auth><auth id="main"><error>No</error></auth></config-auth>', "No"),
        (b'<auth id="main"><message>No</message></auth>', "No"),
        (b'<auth id="main"/>', "the server gave no reason"),
        (
            b'<auth id="main"><error param1="alice" param2="b">%s: %s</error></auth>',
            "alice: b",
        ),
    ],
)
def test_an_answer_without_a_form_is_a_refusal(body: bytes, text: str) -> None:
    """There is nothing to try."""
    assert parse_reply(body) == Refused(text)


def test_a_server_may_ask_for_a_certificate() -> None:
    """Beside an auth element or without."""
    for auth in ("", '<auth id="main"/>'):
        body = f"<config-auth><client-cert-request/>{auth}</config-auth>".encode()
        assert parse_reply(body) == CertificateAsked()


def test_what_is_not_asked_of_the_user_goes_back_by_itself() -> None:
    """Hidden values and opaque elements are the server's memory."""
    opaque = '<opaque is-for="sg"><state a="&lt;1&gt;">x &amp; y</state></opaque>'
    found = ask(
        '<form><input type="hidden" name="csrf" value="a&amp;b"/>'
        '<input type="password" name="answer"/><input type="submit" name="go"/>'
        '<input type="unknown" name="1 2"/></form>',
        root=opaque,
    )
    assert found.inputs == (AskedInput("answer", "password", "answer"),)
    body = encode_reply(found, {"answer": 'p<ss & "word"'})
    root = ET.fromstring(body.decode())
    assert root.get("type") == "auth-reply"
    kept = root.find("opaque")
    assert kept is not None
    assert (kept.findtext("state"), kept[0].get("a")) == ("x & y", "<1>")
    auth = root.find("auth")
    assert auth is not None
    assert {e.tag: e.text for e in auth} == {"csrf": "a&b", "password": 'p<ss & "word"'}
    assert "a&b" not in repr(found)


def test_a_repetition_is_never_sent() -> None:
    """Servers want the new password once."""
    found = ask(
        '<form><input type="password" name="new_password"/>'
        '<input type="password" name="verify_password"/></form>'
    )
    body = encode_reply(found, {"new_password": "a", "verify_password": "b"})
    assert b"<auth><password>a</password></auth>" in body


def test_a_choice_takes_the_servers_own_unless_told() -> None:
    """Groups are sent under the root, not with the other answers."""
    found = ask(
        '<form><input type="text" name="username"/><select name="group_list" label="Group:">'
        '<option value="all">Everybody</option><option selected="true">staff</option>'
        "</select></form>"
    )
    assert found.choices == (
        Choice("group_list", "Group:", (("staff", "staff"), ("all", "Everybody"))),
    )
    body = encode_reply(found, {"username": "alice"})
    assert b"<auth><username>alice</username></auth><group-select>staff</group-select>" in body
    body = encode_reply(found, {"username": "alice", "group_list": "all"})
    assert b"<group-select>all</group-select>" in body


def test_our_server_reads_what_we_send() -> None:
    """The prolog is what ocserv knows XML by."""
    init = encode_init("https://vpn.example.org/a&b")
    assert init.startswith(b"<?xml")
    assert auth_messages.parse_auth_request(init).kind == "init"
    failed = encode_init("https://vpn.example.org/", certificate_failed=True)
    assert b"<client-cert-fail/>" in failed
    found = ask('<form><input type="password" name="password"/></form>')
    request = auth_messages.parse_auth_request(encode_reply(found, {"password": "a<b>&"}))
    assert (request.kind, dict(request.fields)) == ("auth-reply", {"password": "a<b>&"})


@pytest.mark.parametrize("value", ["a\nb", "\x00", "\ud800", "x" * (MAX_VALUE + 1)])
def test_an_answer_that_xml_cannot_hold_is_not_sent(value: str) -> None:
    """And not repeated in the error: it is a password."""
    found = ask('<form><input type="password" name="password"/></form>')
    with pytest.raises(LocalProtocolError) as caught:
        encode_reply(found, {"password": value})
    assert value not in str(caught.value)
    with pytest.raises(LocalProtocolError):
        encode_reply(found, {})


@given(st.binary(max_size=300))
def test_a_body_and_its_padding_hide_the_length(body: bytes) -> None:
    """A password of 8 characters looks like one of 20."""
    zeros = pad(body)
    assert set(zeros) == {"0"}
    assert len(zeros) <= PAD
    assert (len(body) + len(zeros)) % PAD == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b"<html><body>Log in to the hotel</body></html>",
        b"<!DOCTYPE html><html></html>",
        b"<config-auth/>",
        b"<config-auth>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><config-auth><auth id="main">&b;</auth></config-auth>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><config-auth/>',
        b"<config-auth>" + b"<a/>" * MAX_MARKUP + b"</config-auth>",
        document('<form method="get"/>'),
        document('<form action="/a b"/>'),
        document('<form action="/&#10;"/>'),
        document('<form><input type="text" name=""/></form>'),
        document('<form><input type="text" name="a b"/></form>'),
        document('<form><input type="text" name="a&gt;&lt;b"/></form>'),
        document('<form><input type="text"/></form>'),
        document('<form><input type="text" name="a"/><input type="text" name="a"/></form>'),
        document(
            "<form>"
            + "".join(f'<input type="text" name="a{n}"/>' for n in range(MAX_INPUTS + 1))
            + "</form>"
        ),
        document('<form><input type="hidden" name="a" value="%s"/></form>' % ("x" * 2000)),
        document('<form><select name="a"/></form>'),
        document(
            '<form><select name="a">'
            + "<option>b</option>" * (MAX_OPTIONS + 1)
            + "</select></form>"
        ),
        document("<form/>", root=f"<opaque>{'x' * MAX_OPAQUE}</opaque>"),
        document("<form/>", root=f"<opaque>{'<a>' * 1500}{'</a>' * 1500}</opaque>"),
    ],
)
def test_what_is_no_login_is_refused(body: bytes) -> None:
    """A captive portal, a bomb, or an attempt at our parser."""
    with pytest.raises(Malformed):
        parse_reply(body)


def test_a_login_in_a_browser_is_refused_with_the_reason() -> None:
    """The user should learn it, not wait."""
    body = document('<form><input type="sso" name="sso-token"/></form>')
    found = parse_reply(body)
    assert isinstance(found, Refused)
    assert "browser" in found.text


def test_what_is_shown_cannot_disturb_a_terminal() -> None:
    """Escape sequences, overwriting, right-to-left tricks, walls of text."""
    found = ask(
        '<form><input type="text" name="a" label="One&#10;two&#x9b;31m&#x202e;three'
        + "x" * 500
        + '"/></form>',
        auth="<message>a&#13;&#10;b&#x202e;&#x85;c" + "y" * 9000 + "</message>",
    )
    assert found.message.startswith("a\nbc")
    assert len(found.message) <= MAX_MESSAGE
    (line,) = found.inputs
    assert line.label.startswith("One two31mthree")
    assert len(line.label) <= MAX_LABEL


@given(st.text(max_size=400))
def test_text_of_strangers_becomes_printable(text: str) -> None:
    """Lines stay lines; one line is one."""
    assert all(line.isprintable() for line in shown(text).split("\n"))
    assert one_line(text, 40).isprintable()
    assert len(one_line(text, 40)) <= 40


NAMES = st.text(alphabet="ab<>&\"' \u202e", max_size=6)


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"<config-auth>", b'<auth id="main"><form>'])
)
def test_arbitrary_bytes_raise_nothing_but_malformed(data: bytes, begin: bytes) -> None:
    """Whoever answers."""
    with suppress(Malformed):
        parse_reply(begin + data)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["input", "select", "opaque", "message", "error"]),
            st.sampled_from(["text", "password", "hidden", "submit", ""]),
            NAMES,
            NAMES,
        ),
        max_size=6,
    )
)
def test_any_form_can_be_answered_or_is_malformed(parts: list[tuple[str, str, str, str]]) -> None:
    """And what we send then is what our own server can read."""
    form, beside = ET.Element("form"), ET.Element("config-auth", type="auth-request")
    auth = ET.SubElement(beside, "auth", id="main")
    for tag, kind, name, value in parts:
        attributes = {"type": kind, "name": name, "label": value, "value": value}
        element = ET.Element(tag, attributes)
        element.text = value
        {"input": form, "select": form, "opaque": beside}.get(tag, auth).append(element)
        if tag == "select":
            ET.SubElement(element, "option").text = value
    auth.append(form)
    with suppress(Malformed):
        found = parse_reply(ET.tostring(beside))
        assert isinstance(found, AskForm)
        body = encode_reply(found, {line.name: "x" for line in found.inputs})
        assert ET.fromstring(body.decode()).get("type") == "auth-reply"
