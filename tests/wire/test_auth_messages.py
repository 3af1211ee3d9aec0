"""Login bodies: what stock clients send is understood, all else is Malformed."""

from urllib.parse import urlencode
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.errors import Malformed
from vpnd.wire.auth_messages import (
    MAX_BODY,
    MAX_FIELD,
    MAX_FIELDS,
    MAX_MARKUP,
    AuthForm,
    AuthRequest,
    Input,
    encode_form,
    encode_refusal,
    encode_success,
    parse_auth_request,
)

# as stock openconnect 9.01 sends it, names and addresses changed
INIT = b"""<?xml version="1.0" encoding="UTF-8"?>
<config-auth client="vpn" type="init" aggregate-auth-version="2">\
<version who="vpn">v9.01-3</version><device-id>linux-64</device-id><capabilities>\
<auth-method>single-sign-on-v2</auth-method>\
<auth-method>single-sign-on-external-browser</auth-method></capabilities>\
<group-access>https://192.0.2.1</group-access></config-auth>"""
REPLY = b"""<?xml version="1.0" encoding="UTF-8"?>
<config-auth client="vpn" type="auth-reply" aggregate-auth-version="2">\
<version who="vpn">v9.01-3</version><device-id>linux-64</device-id>\
<opaque is-for="sg"><any>thing</any></opaque>\
<auth><username>alice</username><password>s&lt;&amp; 3\xc3\xa9</password></auth>\
<group-select>staff</group-select></config-auth>"""

FIELDS = st.dictionaries(
    st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,20}", fullmatch=True).filter(
        lambda name: name not in {"group-select", "group_list"}
    ),
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), max_size=MAX_FIELD),
    max_size=4,
)
MARKUP = st.lists(
    st.sampled_from(
        [
            b"<?xml version='1.0' encoding='", b"utf-16", b"'?>", b"<config-auth", b" type='init'",
            b" type='auth-reply'", b" type='logout'", b">", b"/>", b"<auth>", b"</auth>",
            b"<username>", b"</username>", b"</config-auth>", b"<!DOCTYPE a [", b"]>", b"&a;",
            b"<!ENTITY a 'b'>", b"<![CDATA[", b"]]>", b"<!--", b"-->", b"<group-select>", b"&#0;",
            b"</group-select>", b"&#xd800;", b"\xff", b"\x00", b"username=", b"%00", b"&", b"%ff",
        ]
    ),
    max_size=16,
).map(b"".join)  # fmt: skip


def reply(content: str) -> bytes:
    return f'<config-auth type="auth-reply"><auth>{content}</auth></config-auth>'.encode()


@given(MARKUP | st.binary(max_size=200) | st.binary(max_size=100).map(lambda b: b"<a>" + b))
def test_arbitrary_bytes_raise_only_malformed(body: bytes) -> None:
    """The first thing that a stranger can send."""
    try:
        request = parse_auth_request(body)
    except Malformed:
        return
    assert request.kind in {"init", "auth-reply", "logout"}


@given(FIELDS)
def test_fields_come_through_xml_and_urlencoding_unchanged(fields: dict[str, str]) -> None:
    """A password may hold anything that can be typed."""
    xml = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
    assert parse_auth_request(reply(xml)) == AuthRequest("auth-reply", fields)
    if fields:
        encoded = urlencode(fields).encode()
        assert parse_auth_request(encoded) == AuthRequest("auth-reply", fields)


def test_stock_clients_are_understood() -> None:
    """Both bodies were seen on the wire."""
    assert parse_auth_request(INIT) == AuthRequest("init")
    fields = {"username": "alice", "password": "s<& 3\u00e9"}
    assert parse_auth_request(REPLY) == AuthRequest("auth-reply", fields, "staff")
    legacy = parse_auth_request(b"username=alice&password=a+b%26c&group_list=staff")
    assert legacy == AuthRequest("auth-reply", {"username": "alice", "password": "a b&c"}, "staff")


@pytest.mark.parametrize("body", [b"", b"\r\n", b"\xef\xbb\xbf"])
def test_an_empty_body_starts_a_login(body: bytes) -> None:
    """A GET has none."""
    assert parse_auth_request(body) == AuthRequest("init")


@pytest.mark.parametrize(
    "prolog", ["", '\ufeff<?xml version="1.0"?>\n', '<?xml version="1.0" encoding="UTF-16"?>']
)
@pytest.mark.parametrize("place", ["{}", "<auth>{}</auth>"])
def test_a_group_may_come_with_the_first_request(prolog: str, place: str) -> None:
    """Clients start over with a group preselected; what the prolog claims does not matter."""
    group = place.format("<group-select>staff</group-select>")
    body = f'{prolog}<config-auth type="init">{group}</config-auth>\n'
    assert parse_auth_request(body.encode()) == AuthRequest("init", group="staff")


def test_a_logout_is_told_apart() -> None:
    """It ends a session, it does not start one."""
    assert parse_auth_request(b'<config-auth type="logout"/>').kind == "logout"


def test_secrets_are_not_shown() -> None:
    """A request may end in a log."""
    assert "s<&" not in repr(parse_auth_request(REPLY))


BOMB = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "ha"}">' for i in range(10))


@pytest.mark.parametrize(
    "body",
    [
        f'<!DOCTYPE b [{BOMB}]><config-auth type="init">&a9;</config-auth>'.encode(),
        b'<!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]><config-auth type="init"/>',
        b'<!DOCTYPE b SYSTEM "http://192.0.2.1/x.dtd"><config-auth type="init"/>',
        b'<!DOCTYPE b><config-auth type="init"/>',
        b'<config-auth type="init">&a;</config-auth>',
        b"<a>" * (MAX_BODY // 3),
        b"<a>" * MAX_MARKUP,
        b"<a " + b" ".join(b"a%d=''" % i for i in range(5000)) + b"/>",
        b"<config-auth",
        b"<config-auth/>",
        b'<config-auth type="complete"/>',
        b'<auth type="init"/>',
        b'<config-auth xmlns="urn:a" type="init"/>',
        b'<config-auth type="init"/><config-auth type="init"/>',
        '<config-auth type="init"/>'.encode("utf-16"),
        b"\xff",
        b"username",
        b"username=%ff",
        b"username=%00",
        b"username=a%0ab",
        b"username=a&username=b",
        b"user%20name=a",
        b"=a",
        b"group_list=a&group_list=b",
        b"group_list=" + b"a" * (MAX_FIELD + 1),
        b"a=" + b"x" * MAX_BODY,
        b"&" * 5000,
        "&".join(f"a{i}=" for i in range(MAX_FIELDS + 1)).encode(),
        reply("".join(f"<a{i}/>" for i in range(MAX_FIELDS + 1))),
        reply("<username>a</username><username>b</username>"),
        reply("<username>a\nb</username>"),
        reply("<username>a&#10;b</username>"),
        reply("<username>a&#x85;b</username>"),
        reply("<username>a&#0;</username>"),
        reply(f"<username>{'a' * (MAX_FIELD + 1)}</username>"),
        reply(f"<{'a' * 65}/>"),
        reply("<group-select>a</group-select><group-select>b</group-select>"),
        reply('<a xmlns="urn:a"/>'),
    ],
)
def test_bombs_and_doubtful_requests_are_refused(body: bytes) -> None:
    """A field twice, a line end in a name, an entity: no stock client sends it."""
    with pytest.raises(Malformed) as caught:
        parse_auth_request(body)
    assert "passwd" not in str(caught.value)


def test_a_request_of_many_elements_is_refused_before_it_is_parsed() -> None:
    """Well-formed or not: 64 KiB of elements would keep a worker busy for a while."""
    for body in (b"<a/>" * MAX_MARKUP, b"<a>" * MAX_MARKUP):
        with pytest.raises(Malformed) as caught:
            parse_auth_request(b'<config-auth type="init">' + body + b"</config-auth>")
        assert caught.value.status == 413


def test_a_field_may_have_the_limit() -> None:
    """The bound counts characters, not bytes."""
    longest = "\u00e9" * MAX_FIELD
    request = parse_auth_request(reply(f"<password>{longest}</password>"))
    assert request.fields == {"password": longest}


FORM = AuthForm(
    'Welcome to <"home">\n & away',
    None,
    (Input("username", "text", "Username:"), Input("password", "password", "Pass\"w'ord:")),
)


def test_a_form_asks_as_stock_clients_expect() -> None:
    """They need auth with an id, form with method and action, and type, name and label."""
    root = ET.fromstring(encode_form(FORM))
    assert (root.tag, root.get("type")) == ("config-auth", "auth-request")
    assert root.findtext("auth[@id='main']/message") == FORM.message
    assert root.find("auth/error") is None
    form = root.find("auth/form")
    assert form is not None
    assert form.attrib == {"method": "post", "action": "/auth"}
    assert [Input(**line.attrib) for line in form] == list(FORM.inputs)  # type: ignore[arg-type] # the test would fail


def test_a_body_begins_with_the_prolog() -> None:
    """ocserv and old clients look for it to tell XML from a form."""
    for body in (encode_form(FORM), encode_success(), encode_refusal("no")):
        assert body.startswith(
            b'<?xml version="1.0" encoding="UTF-8"?>\n<config-auth client="vpn"'
        )


def test_success_and_refusal_have_no_form() -> None:
    """An id of success ends the login well; an error without a form ends it badly."""
    success = ET.fromstring(encode_success())
    assert success.get("type") == "complete"
    assert success.find("auth[@id='success']") is not None
    refusal = ET.fromstring(encode_refusal("account <locked>"))
    assert refusal.findtext("auth[@id='main']/error") == "account <locked>"
    assert refusal.find(".//form") is None


@given(st.text(), st.text())
def test_any_text_can_be_told(message: str, error: str) -> None:
    """Characters that XML cannot hold must not make an answer unreadable."""
    form = AuthForm(message, error, (Input("password", "password", message),))
    ET.fromstring(encode_form(form))
    ET.fromstring(encode_refusal(error))
