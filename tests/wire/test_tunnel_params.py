"""The CONNECT exchange: clamped in, exactly spelled out."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.wire.http import HttpServer, Request
from vpnd.wire.tunnel_params import (
    DEFAULT_BASE_MTU,
    MAX_COOKIE,
    MAX_HOSTNAME,
    MAX_MTU,
    MAX_USER_AGENT,
    MIN_MTU,
    DtlsParams,
    TunnelParams,
    encode_params,
    parse_connect,
)

# as stock openconnect 9.01 sends it, shortened lists
STOCK = {
    "host": "192.0.2.1:55555",
    "user-agent": "Open AnyConnect VPN Agent v9.01-3",
    "cookie": "webvpn=0aZ_-",
    "x-cstp-version": "1",
    "x-cstp-hostname": "laptop",
    "x-cstp-accept-encoding": "oc-lz4,lzs",
    "x-cstp-base-mtu": "1500",
    "x-cstp-mtu": "1390",
    "x-cstp-address-type": "IPv6,IPv4",
    "x-cstp-full-ipv6-capability": "true",
    "x-dtls-master-secret": "00" * 48,
    "x-dtls-ciphersuite": "PSK-NEGOTIATE:OC-DTLS1_2-AES256-GCM:AES128-SHA",
}


def connect(**changes: str | None) -> Request:
    """Return the stock request with fields changed (`_` for `-`) or, by None, left out."""
    fields = STOCK | {name.replace("_", "-"): value for name, value in changes.items()}
    headers = tuple((name, value) for name, value in fields.items() if value is not None)
    return Request("CONNECT", "/CSCOSSLC/tunnel", headers)


def test_a_stock_client_is_understood() -> None:
    """All that an answer depends on."""
    asked = parse_connect(connect())
    assert (asked.cookie, asked.hostname) == ("0aZ_-", "laptop")
    assert asked.user_agent == "Open AnyConnect VPN Agent v9.01-3"
    assert (asked.base_mtu, asked.mtu) == (1500, 1390)
    assert asked.wants_ipv4
    assert asked.wants_ipv6
    assert asked.wants_dtls
    assert "0aZ_-" not in repr(asked)


def test_a_client_that_says_little_gets_ipv4_over_tls() -> None:
    """Only the cookie is necessary."""
    asked = parse_connect(Request("CONNECT", "/CSCOSSLC/tunnel", (("cookie", "webvpn=a"),)))
    assert (asked.hostname, asked.user_agent) == ("", "")
    assert (asked.base_mtu, asked.mtu) == (DEFAULT_BASE_MTU, None)
    assert asked.wants_ipv4
    assert not asked.wants_ipv6
    assert not asked.wants_dtls


@pytest.mark.parametrize(
    ("kinds", "capable", "ipv4", "ipv6"),
    [
        ("IPv6,IPv4", "true", True, True),
        ("IPv4, IPv6", "true", True, True),
        ("IPv6", "true", False, True),
        ("IPv4", "true", True, False),
        ("IPv6,IPv4", None, True, False),
        ("IPv6", None, True, False),
        ("", "true", True, False),
        (None, "true", True, False),
    ],
)
def test_ipv6_needs_a_client_that_asks_and_understands(
    kinds: str | None, capable: str | None, *, ipv4: bool, ipv6: bool
) -> None:
    """Old clients read IPv6 from other fields, which are not spoken here."""
    fields = {"x_cstp_address_type": kinds, "x_cstp_full_ipv6_capability": capable}
    asked = parse_connect(connect(**fields))
    assert (asked.wants_ipv4, asked.wants_ipv6) == (ipv4, ipv6)


@pytest.mark.parametrize(
    ("value", "mtu"),
    [
        ("0", MIN_MTU),
        ("1", MIN_MTU),
        ("575", MIN_MTU),
        ("576", 576),
        ("0001400", 1400),
        ("65535", 65535),
        ("65536", MAX_MTU),
        ("4294967297", MAX_MTU),
        ("9" * 5000, MAX_MTU),
        ("0" * 5000, MIN_MTU),
    ],
)
def test_numbers_are_clamped(value: str, mtu: int) -> None:
    """Unchecked, they have made other servers compute with negative sizes."""
    asked = parse_connect(connect(x_cstp_base_mtu=value, x_cstp_mtu=value))
    assert (asked.base_mtu, asked.mtu) == (mtu, mtu)


@pytest.mark.parametrize(
    "value", ["", "-1", "+1", "1e3", "0x5dc", "1 2", "\u00b2", "nan", "1500\n"]
)
def test_what_is_not_a_number_is_refused(value: str) -> None:
    """Python's int() takes more than digits."""
    with pytest.raises(Malformed) as caught:
        parse_connect(connect(x_cstp_base_mtu=value))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "cookie",
    [
        None,
        "",
        "webvpn=",
        "webvpncontext=abc",
        "WEBVPN=abc",
        "webvpn=(null)",
        "webvpn=a b",
        "webvpn=a\u00e9",
        "webvpn=" + "a" * (MAX_COOKIE + 1),
    ],
)
def test_no_usable_cookie_means_log_in_again(cookie: str | None) -> None:
    """401 is what stock clients understand; a login cookie has another name."""
    with pytest.raises(Malformed) as caught:
        parse_connect(connect(cookie=cookie))
    assert caught.value.status == 401
    assert "a" * 50 not in str(caught.value)


def test_a_cookie_is_found_beside_others() -> None:
    """Clients send all they have."""
    request = connect(cookie="openconnect_strapkey=MHc=; webvpn=a=b==; webvpncontext=c")
    assert parse_connect(request).cookie == "a=b=="


@pytest.mark.parametrize(("method", "target"), [("GET", "/CSCOSSLC/tunnel"), ("CONNECT", "/")])
def test_another_request_is_not_found(method: str, target: str) -> None:
    """The tunnel has one door."""
    with pytest.raises(Malformed) as caught:
        parse_connect(replace(connect(), method=method, target=target))
    assert caught.value.status == 404


@given(st.text(), st.text())
def test_names_from_a_client_can_be_shown_and_passed_to_scripts(host: str, agent: str) -> None:
    """They end in logs, tables and environments."""
    asked = parse_connect(connect(x_cstp_hostname=host, user_agent=agent))
    for text, limit in ((asked.hostname, MAX_HOSTNAME), (asked.user_agent, MAX_USER_AGENT)):
        assert text.isascii()
        assert not text or text.isprintable()
        assert len(text) <= limit
    assert not set(asked.hostname) & set(" /$`'\"\\;&|<>")


@given(st.dictionaries(st.sampled_from(sorted(STOCK)), st.text(max_size=30)))
def test_arbitrary_fields_raise_only_malformed(changes: dict[str, str]) -> None:
    """Every value is a stranger's."""
    try:
        asked = parse_connect(Request("CONNECT", "/CSCOSSLC/tunnel", tuple(changes.items())))
    except Malformed:
        return
    assert MIN_MTU <= asked.base_mtu <= MAX_MTU
    assert asked.wants_ipv4 or asked.wants_ipv6


PARAMS = TunnelParams(
    address4=IPv4Address("10.8.0.2"),
    netmask4=IPv4Address("255.255.255.0"),
    address6=IPv6Interface("fd00:8::2/64"),
    dns=(IPv4Address("10.8.0.1"), IPv6Address("fd00:8::1")),
    default_domain="example.org",
    tunnel_all_dns=True,
    mtu=1400,
    base_mtu=1500,
    dpd_s=30,
    keepalive_s=20000,
    rekey_time_s=86400,
    server_name="vpn.example.org",
    banner="Welcome home",
    dtls=DtlsParams(port=55555, app_id=bytes(range(224, 256)), dpd_s=30, keepalive_s=20000),
)


def test_an_answer_is_spelled_as_stock_clients_read_it() -> None:
    """They compare names with their case."""
    app_id = "e0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"
    assert encode_params(PARAMS) == [
        ("X-CSTP-Version", "1"),
        ("X-CSTP-Server-Name", "vpn.example.org"),
        ("X-CSTP-Address", "10.8.0.2"),
        ("X-CSTP-Netmask", "255.255.255.0"),
        ("X-CSTP-Address-IP6", "fd00:8::2/64"),
        ("X-CSTP-DNS", "10.8.0.1"),
        ("X-CSTP-DNS-IP6", "fd00:8::1"),
        ("X-CSTP-Default-Domain", "example.org"),
        ("X-CSTP-Tunnel-All-DNS", "true"),
        ("X-CSTP-DPD", "30"),
        ("X-CSTP-Keepalive", "20000"),
        ("X-CSTP-Idle-Timeout", "none"),
        ("X-CSTP-Session-Timeout", "none"),
        ("X-CSTP-Rekey-Time", "86400"),
        ("X-CSTP-Rekey-Method", "new-tunnel"),
        ("X-CSTP-Disconnected-Timeout", "none"),
        ("X-CSTP-Keep", "true"),
        ("X-CSTP-License", "accept"),
        ("X-DTLS-Port", "55555"),
        ("X-DTLS-App-ID", app_id),
        ("X-DTLS-CipherSuite", "PSK-NEGOTIATE"),
        ("X-DTLS-DPD", "30"),
        ("X-DTLS-Keepalive", "20000"),
        ("X-CSTP-Base-MTU", "1500"),
        ("X-CSTP-MTU", "1400"),
        ("X-CSTP-Banner", "Welcome home"),
    ]


def values(params: TunnelParams, name: str) -> list[str]:
    return [value for key, value in encode_params(params) if key == name]


def test_an_answer_without_dtls_has_no_dtls_field() -> None:
    """Any of them makes a client wait 12 s for UDP."""
    fields = encode_params(replace(PARAMS, dtls=None))
    assert not [name for name, _ in fields if name.startswith("X-DTLS")]


def test_timers_that_are_set_are_told_in_seconds() -> None:
    """And a rekey that is off is said to be off."""
    params = replace(PARAMS, idle_timeout_s=600, session_timeout_s=3600, rekey_time_s=0)
    assert values(params, "X-CSTP-Idle-Timeout") == ["600"]
    assert values(params, "X-CSTP-Session-Timeout") == ["3600"]
    assert values(params, "X-CSTP-Rekey-Time") == []
    assert values(params, "X-CSTP-Rekey-Method") == ["none"]


def test_ipv6_is_withheld_below_its_smallest_mtu() -> None:
    """The kernel would refuse the address, and the script fail with it."""
    params = replace(PARAMS, mtu=1279, split_include=(IPv6Network("fd01::/48"),))
    assert not [field for field in encode_params(params) if "IP6" in field[0]]
    assert values(replace(params, mtu=1280), "X-CSTP-Address-IP6") == ["fd00:8::2/64"]
    with pytest.raises(LocalProtocolError):
        encode_params(replace(params, address4=None))


def test_routes_are_told_in_the_form_of_their_family() -> None:
    """Dotted masks for IPv4, lengths for IPv6."""
    params = replace(
        PARAMS,
        split_include=(IPv4Network("10.0.0.0/8"), IPv6Network("fd01::/48")),
        split_exclude=(IPv4Network("10.1.0.0/16"), IPv6Network("fd01:0:0:1::/64")),
    )
    assert values(params, "X-CSTP-Split-Include") == ["10.0.0.0/255.0.0.0"]
    assert values(params, "X-CSTP-Split-Include-IP6") == ["fd01::/48"]
    assert values(params, "X-CSTP-Split-Exclude") == ["10.1.0.0/255.255.0.0"]
    assert values(params, "X-CSTP-Split-Exclude-IP6") == ["fd01:0:0:1::/64"]


def test_a_family_that_the_routes_leave_out_does_not_become_a_default_route() -> None:
    """Scripts route a whole family into the tunnel when none of its networks is named."""
    only4 = replace(PARAMS, split_include=(IPv4Network("10.0.0.0/8"),))
    assert values(only4, "X-CSTP-Split-Include-IP6") == ["fd00:8::/64"]
    only6 = replace(PARAMS, split_include=(IPv6Network("fd01::/48"),))
    assert values(only6, "X-CSTP-Split-Include") == ["10.8.0.0/255.255.255.0"]
    assert values(PARAMS, "X-CSTP-Split-Include") == []
    assert values(replace(only4, address6=None), "X-CSTP-Split-Include-IP6") == []


@pytest.mark.parametrize("size", [0, 33])
def test_an_app_id_that_stock_clients_refuse_cannot_be_made(size: int) -> None:
    """One byte too many aborts their whole connection."""
    with pytest.raises(LocalProtocolError):
        DtlsParams(port=1, app_id=bytes(size), dpd_s=0, keepalive_s=0)


def test_an_app_id_is_not_shown() -> None:
    """Who knows it can start handshakes in the session's name."""
    assert "e0e1" not in repr(PARAMS).replace("\\x", "")


@given(st.text(max_size=60))
def test_any_banner_becomes_one_line_that_decodes_to_it(banner: str) -> None:
    """It comes from the operator and goes into a header field."""
    encodable = banner.encode("utf-8", "replace").decode()
    server = HttpServer()
    server.receive(b"CONNECT /CSCOSSLC/tunnel HTTP/1.1\r\nHost: a\r\n\r\n")
    params = replace(PARAMS, banner=encodable)
    assert server.respond(200, "CONNECTED", encode_params(params)).endswith(b"\r\n\r\n")
    told = values(params, "X-CSTP-Banner")
    assert [unquote(text) for text in told] == [encodable.strip()][: len(told)]


@pytest.mark.parametrize(
    ("version", "rekey", "understood"),
    [
        ("1", None, (True, False)),
        ("1", "1", (True, True)),
        ("1", "yes", (True, False)),
        (None, "1", (False, False)),
        ("2", "1", (False, False)),
        ("", "1", (False, False)),
    ],
)
def test_our_own_clients_say_that_they_are(
    version: str | None, rekey: str | None, understood: tuple[bool, bool]
) -> None:
    """Whoever does not say so in our words is served like any other."""
    asked = parse_connect(connect(x_pyvpn_version=version, x_pyvpn_rekey=rekey))
    assert (asked.is_own, asked.rekey) == understood


def test_only_our_own_clients_are_told_that_we_are() -> None:
    """All others get what they always got."""
    stock = TunnelParams(address4=IPv4Address("10.8.0.2"), mtu=1400, base_mtu=1500)
    own = replace(stock, is_own=True)
    assert set(encode_params(own)) - set(encode_params(stock)) == {("X-Pyvpn-Version", "1")}
    assert len(encode_params(own)) == len(encode_params(stock)) + 1


def test_a_new_cookie_is_for_our_own_clients() -> None:
    """Another would go on with the one it has, and be refused."""
    stock = TunnelParams(
        address4=IPv4Address("10.8.0.2"), mtu=1400, base_mtu=1500, cookie="S3CRET"
    )
    own = replace(stock, is_own=True)
    assert ("X-Pyvpn-Cookie", "S3CRET") in encode_params(own)
    assert "S3CRET" not in repr(encode_params(stock)) + repr(own)
