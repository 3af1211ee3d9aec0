"""What a server makes of our tunnel: believed within limits, or refused with the reason."""

from contextlib import suppress
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_network,
)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.errors import Malformed
from vpnd.wire.addresses import (
    NOWHERE,
    parse_address,
    parse_length,
    parse_network,
    unusable_range,
)
from vpnd.wire.http import HttpServer, Request
from vpnd.wire.http_client import HttpClient, HttpRequest, Response
from vpnd.wire.params_client import (
    DEFAULT_MTU,
    MAX_DNS,
    MAX_DOMAINS,
    MAX_MTU,
    MAX_REMARKS,
    MAX_ROUTES,
    MAX_TIMER_S,
    MIN_TIMER_S,
    ConnectOptions,
    ServerParams,
    connect_fields,
    host_field,
    parse_params,
)
from vpnd.wire.tunnel_params import (
    TUNNEL_TARGET,
    DtlsParams,
    TunnelParams,
    encode_params,
    parse_connect,
)

APP_ID = bytes(range(32))
# as ocserv 1.1.6 sends it, one of each
STOCK = {
    "X-CSTP-Server-Name": "ocserv 1.1.6",
    "X-CSTP-DPD": "90",
    "X-CSTP-Default-Domain": "example.com",
    "X-CSTP-Address": "192.168.1.50",
    "X-CSTP-Netmask": "255.255.255.0",
    "X-CSTP-Address-IP6": "fda9::2/64",
    "X-CSTP-DNS": "192.168.1.1",
    "X-CSTP-Split-Include": "10.0.0.0/255.0.0.0",
    "X-CSTP-Tunnel-All-DNS": "false",
    "X-CSTP-Keepalive": "32400",
    "X-CSTP-Idle-Timeout": "none",
    "X-CSTP-Rekey-Time": "172820",
    "X-CSTP-Rekey-Method": "ssl",
    "X-CSTP-Session-Timeout": "0",
    "X-DTLS-Port": "4443",
    "X-DTLS-App-ID": APP_ID.hex(),
    "X-DTLS-CipherSuite": "PSK-NEGOTIATE",
    "X-DTLS-DPD": "90",
    "X-CSTP-Base-MTU": "1500",
    "X-CSTP-MTU": "1434",
    "X-CSTP-Banner": "Welcome%3b be good",
}


def response(*more: tuple[str, str], without: str = "", **changes: str | None) -> Response:
    """Return the stock answer with fields changed (`_` for `-`), left out or added."""
    fields: dict[str, str | None] = {name.lower(): value for name, value in STOCK.items()}
    fields |= {f"x-{name.lower().replace('_', '-')}": value for name, value in changes.items()}
    kept = [
        (name, value)
        for name, value in fields.items()
        if value is not None and not (without and name.startswith(without))
    ]
    return Response(200, "CONNECTED", tuple(kept + [(n.lower(), v) for n, v in more]))


def params(*more: tuple[str, str], without: str = "", **changes: str | None) -> ServerParams:
    return parse_params(response(*more, without=without, **changes))


def routes(*networks: str) -> list[tuple[str, str]]:
    return [("X-CSTP-Split-Include", network) for network in networks]


def test_a_stock_servers_answer_is_understood() -> None:
    """All of it, and nothing to remark."""
    got = params()
    assert (got.address4, got.prefix4) == (IPv4Address("192.168.1.50"), 24)
    assert (got.address6, got.prefix6) == (IPv6Address("fda9::2"), 64)
    assert got.dns == (IPv4Address("192.168.1.1"),)
    assert got.domains == ("example.com",)
    assert (got.mtu, got.base_mtu) == (1434, 1500)
    assert (got.dpd_s, got.keepalive_s, got.rekey_s) == (90, 32400, 172820)
    assert (got.idle_timeout_s, got.session_timeout_s) == (0, 0)
    assert (got.rekey_method, got.tunnel_all_dns) == ("ssl", False)
    assert (got.dtls_port, got.app_id, got.dtls_dpd_s) == (4443, APP_ID, 90)
    assert (got.banner, got.server_name) == ("Welcome; be good", "ocserv 1.1.6")
    assert not got.is_pyvpn
    assert got.remarks == ()


def test_three_lines_make_a_tunnel() -> None:
    """Stock clients need no more: no UDP, no timers, everything inside."""
    got = parse_params(
        Response(200, "OK", (("x-cstp-address", "10.0.0.2"), ("x-cstp-mtu", "1400")))
    )
    assert (got.address4, got.prefix4, got.address6) == (IPv4Address("10.0.0.2"), 32, None)
    assert got.split_include == (IPv4Network("0.0.0.0/0"),)
    assert (got.dtls_port, got.app_id, got.dpd_s) == (None, b"", 0)


OFFER = TunnelParams(
    address4=IPv4Address("10.8.0.2"),
    netmask4=IPv4Address("255.255.255.0"),
    address6=IPv6Interface("fd00:8::2/64"),
    dns=(IPv4Address("10.8.0.1"), IPv6Address("fd00:8::1")),
    default_domain="example.org",
    split_include=(IPv4Network("10.0.0.0/8"), IPv6Network("fd01::/48")),
    split_exclude=(IPv4Network("10.5.0.0/16"),),
    mtu=1400,
    base_mtu=1500,
    dpd_s=10,
    rekey_time_s=3600,
    session_timeout_s=7200,
    banner="100 % \u00e9\nsure",
    dtls=DtlsParams(port=55555, app_id=APP_ID, dpd_s=10, keepalive_s=0),
)


def test_our_servers_offer_survives_the_wire() -> None:
    """Through both HTTP halves."""
    server, client = HttpServer(), HttpClient()
    fields = tuple(connect_fields("vpn", 443, ConnectOptions(), "cookie"))
    server.receive(client.request(HttpRequest("CONNECT", TUNNEL_TARGET, fields)))
    answer = client.receive(server.respond(200, "CONNECTED", encode_params(OFFER)))
    assert answer is not None
    got = parse_params(answer)
    assert (got.address4, got.prefix4) == (OFFER.address4, 24)
    assert OFFER.address6 == IPv6Interface(f"{got.address6}/{got.prefix6}")
    assert got.dns == OFFER.dns
    assert set(OFFER.split_include) < set(got.split_include)
    assert got.split_exclude == OFFER.split_exclude
    assert (got.mtu, got.base_mtu, got.dpd_s) == (1400, 1500, 10)
    assert (got.rekey_s, got.session_timeout_s) == (3600, 7200)
    assert got.banner == OFFER.banner
    assert (got.dtls_port, got.app_id) == (55555, APP_ID)
    assert got.remarks == ()


def test_our_server_reads_what_we_ask_for() -> None:
    """Capabilities, sizes and names; the cookie is shown nowhere."""
    options = ConnectOptions(
        hostname="laptop", base_mtu=1400, mtu=1300, rekey=True, address4=IPv4Address("10.8.0.2")
    )
    fields = connect_fields("2001:db8::1", 55555, options, "S3CRET")
    lowered = tuple((name.lower(), value) for name, value in fields)
    assert ("Host", "[2001:db8::1]:55555") in fields
    assert ("X-Pyvpn-Rekey", "1") in fields
    assert ("X-CSTP-Address", "10.8.0.2") in fields
    asked = parse_connect(Request("CONNECT", TUNNEL_TARGET, lowered))
    assert (asked.cookie, asked.hostname) == ("S3CRET", "laptop")
    assert (asked.base_mtu, asked.mtu) == (1400, 1300)
    assert asked.wants_ipv4
    assert asked.wants_ipv6
    assert asked.wants_dtls
    plain = dict(
        connect_fields("vpn", 443, ConnectOptions(wants_ipv6=False, wants_dtls=False), "a")
    )
    assert plain["Host"] == "vpn"
    assert plain["X-CSTP-Address-Type"] == "IPv4"
    assert not {"X-DTLS-CipherSuite", "X-CSTP-Full-IPv6-Capability", "X-Pyvpn-Rekey"} & set(plain)


def test_an_address_is_bracketed_in_the_host_field() -> None:
    """Also one that came with brackets."""
    assert host_field("::1", 1) == host_field("[::1]", 1) == "[::1]:1"


def test_our_own_server_is_recognised() -> None:
    """By its number, whichever."""
    assert params(Pyvpn_Version="1").is_pyvpn
    assert not params(Pyvpn_Version="x\u00e9").is_pyvpn


@pytest.mark.parametrize("bad", ["", "a b", "a;b", "x\r", "\u00e9", "x" * 257])
def test_a_new_cookie_is_one_that_can_be_sent(bad: str) -> None:
    """It becomes a header field of ours; the text of it is in no log."""
    got = params(Pyvpn_Cookie="N-_e.w~=")
    assert got.cookie == "N-_e.w~="
    assert got.cookie not in repr(got)
    assert params(Pyvpn_Cookie=bad).cookie == ""


@pytest.mark.parametrize(
    ("value", "mtu"),
    [
        ("0", 576),
        ("1", 576),
        ("576", 576),
        ("9000", 9000),
        ("65535", MAX_MTU),
        ("9" * 5000, MAX_MTU),
    ],
)
def test_a_mad_mtu_is_clamped_with_a_remark(value: str, mtu: int) -> None:
    """0 and 65535 have both been seen to end clients."""
    got = params(CSTP_MTU=value)
    assert got.mtu == mtu
    assert any("MTU" in remark for remark in got.remarks) == (value != str(mtu) or mtu < 1280)


def test_ipv6_is_left_out_below_its_smallest_mtu() -> None:
    """The kernel would refuse the address, and the routes with it."""
    got = params(CSTP_MTU="1279")
    assert got.address6 is None
    assert {network.version for network in got.split_include} == {4}
    assert any("IPv6" in remark for remark in got.remarks)
    with pytest.raises(Malformed, match="no address"):
        params(CSTP_MTU="1279", CSTP_Address=None)


def test_a_server_that_does_not_say_its_mtu_gets_one_that_fits_everywhere() -> None:
    """With a remark."""
    got = params(CSTP_MTU=None)
    assert got.mtu == DEFAULT_MTU
    assert got.remarks


@pytest.mark.parametrize("name", ["CSTP_MTU", "CSTP_DPD", "CSTP_Rekey_Time", "DTLS_Port"])
@pytest.mark.parametrize("value", ["-1", "+1", "1e3", "0x10", "1 2", "\u00b2", "many"])
def test_what_is_no_number_is_refused(name: str, value: str) -> None:
    """The reason names the field."""
    with pytest.raises(Malformed, match="is not a number"):
        params(**{name: value})


@pytest.mark.parametrize("value", ["1", "9" * 400])
def test_timers_are_clamped(value: str) -> None:
    """A DPD of a millisecond would be a busy loop, by the server's order."""
    got = params(CSTP_DPD=value, CSTP_Rekey_Time=value, CSTP_Keepalive=value)
    for timer in (got.dpd_s, got.rekey_s, got.keepalive_s):
        assert MIN_TIMER_S <= timer <= MAX_TIMER_S
    assert len(got.remarks) == 3


@pytest.mark.parametrize("value", ["none", "None", "0", "000"])
def test_timers_that_are_off_are_zero(value: str) -> None:
    """Both spellings, and the rekey that is not meant."""
    got = params(CSTP_DPD=value, CSTP_Session_Timeout=value, CSTP_Rekey_Time=value)
    assert (got.dpd_s, got.session_timeout_s, got.rekey_s) == (0, 0, 0)
    assert params(CSTP_Rekey_Method="none").rekey_s == 0
    assert params(CSTP_Rekey_Method="magic").rekey_method == "none"


BAD_ADDRESSES = [
    "",
    "10.8.0",
    "10.8.0.2; reboot",
    "010.8.0.2",
    "0.0.0.0",
    "127.0.0.1",
    "169.254.1.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:10.0.0.1",
    "fe80::1",
    "fd00::1%eth0",
    "ff02::1",
    "\u0661.2.3.4",
    "1" * 5000,
]


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_an_address_that_a_tunnel_cannot_have_is_refused(address: str) -> None:
    """It would be set on this host."""
    with pytest.raises(Malformed):
        params(CSTP_Address=address)
    with pytest.raises(Malformed):
        parse_address(address)


@pytest.mark.parametrize("address", [a for a in BAD_ADDRESSES if a])
def test_a_resolver_that_cannot_be_one_is_left_out(address: str) -> None:
    """The tunnel works without; the log says so."""
    got = params(("X-CSTP-DNS", address))
    assert got.dns == (IPv4Address("192.168.1.1"),)
    assert len(got.remarks) == 1


def test_two_addresses_of_one_family_are_refused() -> None:
    """Which one would routes and packets use?"""
    with pytest.raises(Malformed, match="two addresses"):
        params(("X-CSTP-Address", "192.168.1.51"))
    assert params(("X-CSTP-Address", "fda9::2")).prefix6 == 64


@pytest.mark.parametrize("value", ["fd00::2/0", "fd00::2/129", "fd00::2/x", "fd00::2/64/64"])
def test_a_prefix_length_that_is_none_is_refused(value: str) -> None:
    """A length is one number."""
    with pytest.raises(Malformed):
        params(CSTP_Address_IP6=value)


@pytest.mark.parametrize("mask", ["255.0.255.0", "abc", "", "300.0.0.0"])
def test_a_netmask_that_is_none_is_refused(mask: str) -> None:
    """Contiguous or not at all."""
    with pytest.raises(Malformed):
        params(CSTP_Netmask=mask)


def test_a_netmask_cannot_smuggle_in_a_default_route() -> None:
    """The tunnel's own network becomes a route, whatever the profile says of default routes."""
    got = params(CSTP_Netmask="0.0.0.0", CSTP_Address_IP6="fda9::2/1")
    assert (got.prefix4, got.prefix6) == (32, 128)
    assert len(got.remarks) == 2


def test_no_route_named_means_everything_of_the_families_there_are() -> None:
    """As stock clients take it, said aloud."""
    got = params(CSTP_Split_Include=None)
    assert got.split_include == (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
    got = params(CSTP_Split_Include=None, CSTP_Address_IP6=None)
    assert got.split_include == (IPv4Network("0.0.0.0/0"),)


def test_named_routes_and_the_tunnels_own_networks_are_all_that_leads_inside() -> None:
    """A family that is not named is no default route; duplicates go, host bits too."""
    got = params(*routes("10.1.2.3/255.255.0.0", "10.0.0.0/8", "192.0.2.7"))
    assert got.split_include == (
        IPv4Network("10.0.0.0/8"),
        IPv4Network("10.1.0.0/16"),
        IPv4Network("192.0.2.7/32"),
        IPv4Network("192.168.1.0/24"),
        IPv6Network("fda9::/64"),
    )
    got = params(("X-CSTP-Split-Include-IP6", "fd01::/48"), ("X-CSTP-Split-Include", "fd02::/48"))
    assert {IPv6Network("fd01::/48"), IPv6Network("fd02::/48")} < set(got.split_include)


@pytest.mark.parametrize(
    "network",
    ["127.0.0.0/8", "127.0.0.53", "224.0.0.0/4", "0.0.0.0/32", "169.254.0.0/17", "ff00::/8"],
)
def test_a_route_to_where_no_packet_may_go_is_left_out(network: str) -> None:
    """Loopback through a tunnel would open every local service."""
    name = "X-CSTP-Split-Include"
    got = params((name, network), ("X-CSTP-Split-Exclude", network))
    assert ip_network(network) not in got.split_include
    assert got.split_exclude == ()
    assert len(got.remarks) == 2


@pytest.mark.parametrize(
    "network",
    ["", "x", "10.0.0.0/33", "10.0.0.0/255.0.255.0", "fe80::%lo/10", "10.0.0.0/8 dev lo"],
)
def test_a_route_that_is_none_is_refused(network: str) -> None:
    """Left out, its traffic would go in clear."""
    with pytest.raises(Malformed, match="X-CSTP-Split"):
        params(*routes(network))
    with pytest.raises(Malformed):
        parse_network(network)


def test_only_so_many_routes_are_taken() -> None:
    """Ten thousand would keep the helper busy and the table full."""
    many = [f"10.{n // 256}.{n % 256}.0/24" for n in range(MAX_ROUTES + 1)]
    got = params(*routes(*many[: MAX_ROUTES - 1]))
    assert len(got.split_include) == MAX_ROUTES + 2
    half = [("X-CSTP-Split-Exclude", network) for network in many[:1000]]
    with pytest.raises(Malformed, match=f"at most {MAX_ROUTES}"):
        params(*routes(*many[:1000]), *half)


def test_only_so_many_resolvers_domains_and_remarks_are_taken() -> None:
    """Bounded, with a remark."""
    got = params(
        *[("X-CSTP-DNS", f"10.0.0.{n}") for n in range(1, 100)],
        ("X-CSTP-Split-DNS", " ".join(f"d{n}.example" for n in range(100))),
    )
    assert (len(got.dns), len(got.split_dns), len(got.remarks)) == (MAX_DNS, MAX_DOMAINS, 2)
    got = params(*routes(*[f"127.0.0.{n}" for n in range(200)]))
    assert len(got.remarks) == MAX_REMARKS


def test_resolvers_of_a_family_without_an_address_are_left_out() -> None:
    """They could not be reached."""
    got = params(("X-CSTP-DNS-IP6", "fda9::1"), CSTP_Address_IP6=None)
    assert got.dns == (IPv4Address("192.168.1.1"),)


@pytest.mark.parametrize(
    "name",
    ["a;b", "$(reboot)", "a..b", "-a.example", "b\u00fccher.example", "x" * 254, "a/b", "\x7f"],
)
def test_a_domain_that_is_none_is_left_out(name: str) -> None:
    """It ends in a resolver's configuration or in a script's environment."""
    got = params(CSTP_Default_Domain=f"good.example {name} corp.")
    assert got.domains == ("good.example", "corp.")
    assert len(got.remarks) == 1


@pytest.mark.parametrize("name", ["CSTP_Content_Encoding", "DTLS_Content_Encoding"])
def test_compression_that_was_not_asked_for_is_refused(name: str) -> None:
    """Packets would be garbage, or an oracle."""
    with pytest.raises(Malformed, match="compression"):
        params(**{name: "oc-lz4"})
    assert params(**{name: "identity"}).mtu == 1434


@pytest.mark.parametrize(
    "changes",
    [
        {"DTLS_App_ID": None},
        {"DTLS_App_ID": ""},
        {"DTLS_App_ID": "abc"},
        {"DTLS_App_ID": "00" * 33},
        {"DTLS_App_ID": "zz"},
        {"DTLS_Port": "65536"},
        {"DTLS_Port": None},
        {"DTLS_CipherSuite": "AES128-SHA"},
        {"DTLS_CipherSuite": None},
    ],
)
def test_an_unusable_offer_of_udp_leaves_tls(changes: dict[str, str | None]) -> None:
    """The tunnel is good without."""
    got = params(**changes)
    assert (got.dtls_port, got.app_id) == (None, b"")
    assert any("no UDP" in remark for remark in got.remarks)


def test_no_offer_of_udp_is_no_remark() -> None:
    """Servers may have none."""
    got = params(without="x-dtls")
    assert (got.dtls_port, got.remarks) == (None, ())


def test_an_app_id_does_not_show() -> None:
    """Who knows it can start handshakes in the session's name."""
    assert "\\x01\\x02" not in repr(params())


@given(st.binary(max_size=60).map(lambda raw: "".join(f"%{byte:02x}" for byte in raw)))
def test_any_banner_becomes_printable(banner: str) -> None:
    """It is shown to people, on a terminal."""
    got = params(CSTP_Banner=banner, CSTP_Server_Name=banner)
    assert all(line.isprintable() for line in got.banner.split("\n"))
    assert got.server_name.isprintable()


LATIN = st.text(st.characters(max_codepoint=255), max_size=20)
VALUES = st.one_of(
    LATIN,
    st.integers(-5, 2**70).map(str),
    st.ip_addresses().map(str),
    st.ip_addresses(v=4).map(lambda a: f"{a}/255.255.0.0"),
    st.ip_addresses().map(lambda a: f"{a}/{a.max_prefixlen // 2}"),
    st.binary(max_size=40).map(bytes.hex),
)
NAMES = st.sampled_from(
    sorted({*STOCK, "X-CSTP-Split-Exclude", "X-CSTP-Split-DNS", "X-CSTP-DNS-IP6"})
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=12), st.booleans())
def test_arbitrary_fields_raise_only_malformed(
    fields: list[tuple[str, str]], with_stock: bool
) -> None:
    """And what is accepted can be set on a host."""
    base = response().headers if with_stock else ()
    changed = {name.lower() for name, _ in fields}
    kept = [field for field in base if field[0] not in changed]
    got = None
    with suppress(Malformed):
        got = parse_params(
            Response(200, "OK", tuple(kept + [(n.lower(), value) for n, value in fields]))
        )
    if got is None:
        return
    assert 576 <= got.mtu <= MAX_MTU
    assert got.address4 or got.address6
    if got.address4 is not None:
        assert IPv4Interface(f"{got.address4}/{got.prefix4}").network.prefixlen >= 8
    for network in (*got.split_include, *got.split_exclude):
        assert not any(
            network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]
            for other in NOWHERE
        )
    assert len(got.dns) <= MAX_DNS
    assert all(remark.isprintable() for remark in got.remarks)


@given(st.text(max_size=70))
def test_arbitrary_text_is_an_address_or_malformed(text: str) -> None:
    """Nothing else comes out of the library below."""
    for parse in (parse_address, parse_network):
        with suppress(Malformed):
            assert parse(text)
    with suppress(Malformed):
        assert 1 <= parse_length(text, 128) <= 128


def test_a_default_route_is_not_unusable() -> None:
    """It contains those ranges; it does not lie in one."""
    for network in ("0.0.0.0/0", "::/0", "0.0.0.0/1", "8000::/1"):
        assert unusable_range(ip_network(network)) is None
