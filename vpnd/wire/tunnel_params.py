"""The CONNECT exchange: what a client asks for, and the X-CSTP-* and X-DTLS-* fields it gets.

Stock clients compare the names of the answer's fields case-sensitively.  What a client says is
untrusted: numbers are clamped, names reduced to what a log or a script may see.

Two traps are kept here because every caller would fall into them: IPv6 needs links of 1280 bytes,
so below that everything about IPv6 is withheld; and clients' scripts take an address family
without any included route for a default route, so a family that the operator's list leaves out
gets its own tunnel network.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from re import compile as regex
from typing import Literal
from urllib.parse import quote

from vpnd.errors import LocalProtocolError, Malformed
from vpnd.wire import renewal
from vpnd.wire.http import Request

TUNNEL_TARGET = "/CSCOSSLC/tunnel"
SESSION_COOKIE = "webvpn"
MIN_MTU = 576  # RFC 791: every host takes this much
MAX_MTU = 65535
MIN_IPV6_MTU = 1280  # RFC 8200 section 5
DEFAULT_BASE_MTU = 1500  # Ethernet; for a client that does not say
MAX_COOKIE = 256  # our own has 43 characters
MAX_HOSTNAME = 64  # HOST_NAME_MAX, limits.h
MAX_USER_AGENT = 128
HOST_MASK = IPv4Address("255.255.255.255")
MAX_APP_ID = 32  # one byte more makes stock clients give up
PYVPN_VERSION = 1  # of what our own ends do beyond the protocol; both sides say theirs

COOKIE = regex(r"[A-Za-z0-9._~@+/=-]+")
NUMBER = regex(r"[0-9]+")
NOT_HOSTNAME = regex(r"[^A-Za-z0-9._-]")
NOT_PRINTABLE = regex(r"[^\x20-\x7e]")
BANNER_SAFE = (
    " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"  # all visible ASCII but "%", which encodes the rest
)

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """What a client said in its CONNECT.

    `is_own` marks a client of our own; `rekey` its wish to open this tunnel beside the one it has.
    `base_mtu` is its link MTU and `mtu` the inner MTU it would take (None: not said), both clamped
    to MIN_MTU..MAX_MTU; `hostname` and `user_agent` are printable ASCII, shortened, perhaps empty.
    """

    cookie: str = field(repr=False)  # whoever has it has the session
    hostname: str
    user_agent: str
    base_mtu: int
    mtu: int | None
    wants_ipv4: bool
    wants_ipv6: bool
    wants_dtls: bool
    is_own: bool = False
    rekey: bool = False
    renewal: bytes = b""
    """A request for the certificate that follows the one in use; of clients of our own."""


def parse_connect(request: Request) -> ConnectRequest:
    """Return what a CONNECT asks for.

    Raises Malformed: 404 for another method or path, 401 without a usable session cookie (which
    stock clients read as "log in again"), 400 for a number that is none.
    """
    if request.method != "CONNECT" or request.target != TUNNEL_TARGET:
        raise Malformed("not a CONNECT to the tunnel", 404)
    kinds = {kind.lower() for kind in _list(request, "X-CSTP-Address-Type", ",")}
    understands_ipv6 = (request.header("X-CSTP-Full-IPv6-Capability") or "").lower() == "true"
    wants_ipv6 = understands_ipv6 and "ipv6" in kinds
    is_own = request.header("X-Pyvpn-Version") == str(PYVPN_VERSION)
    return ConnectRequest(
        cookie=_session_cookie(request),
        hostname=NOT_HOSTNAME.sub("_", _short(request, "X-CSTP-Hostname", MAX_HOSTNAME)),
        user_agent=NOT_PRINTABLE.sub("?", _short(request, "User-Agent", MAX_USER_AGENT)),
        base_mtu=_mtu(request, "X-CSTP-Base-MTU") or DEFAULT_BASE_MTU,
        mtu=_mtu(request, "X-CSTP-MTU"),
        wants_ipv4="ipv4" in kinds or not wants_ipv6,
        wants_ipv6=wants_ipv6,
        wants_dtls="PSK-NEGOTIATE" in _list(request, "X-DTLS-CipherSuite", ":"),
        is_own=is_own,
        rekey=is_own and request.header("X-Pyvpn-Rekey") == "1",
        renewal=renewal.parse_request(request.header(renewal.REQUEST_FIELD) if is_own else None),
    )


def _session_cookie(request: Request) -> str:
    cookie = request.cookie(SESSION_COOKIE) or ""
    if len(cookie) > MAX_COOKIE or not COOKIE.fullmatch(cookie):
        raise Malformed("CONNECT without a usable session cookie", 401)
    return cookie


def _short(request: Request, name: str, limit: int) -> str:
    return (request.header(name) or "")[:limit]


def _list(request: Request, name: str, separator: str) -> list[str]:
    return [item.strip() for item in (request.header(name) or "").split(separator)]


def _mtu(request: Request, name: str) -> int | None:
    value = request.header(name)
    if value is None:
        return None
    if not NUMBER.fullmatch(value):
        raise Malformed(f"{name} is not a number")
    digits = value.lstrip("0")
    if len(digits) > len(str(MAX_MTU)):  # int() refuses thousands of digits
        return MAX_MTU
    return max(MIN_MTU, min(int(digits or "0"), MAX_MTU))


@dataclass(frozen=True, slots=True)
class DtlsParams:
    """The UDP channel as offered to one session: `app_id` has 1 to 32 bytes, timers 0 = off."""

    port: int
    app_id: bytes = field(repr=False)
    dpd_s: int
    keepalive_s: int

    def __post_init__(self) -> None:
        if not 1 <= len(self.app_id) <= MAX_APP_ID:
            raise LocalProtocolError(f"an App-ID has 1 to {MAX_APP_ID} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelParams:
    """What a session is told about its tunnel.

    `mtu` counts bytes of an inner packet, `base_mtu` of the outer link.  Timers are whole seconds,
    0 = off or without limit; `session_timeout_s` is what is left.  No `split_include` means a
    default route.  Addresses and netmask must be the same again after a reconnect.
    """

    address4: IPv4Address | None = None
    netmask4: IPv4Address = HOST_MASK
    address6: IPv6Interface | None = None
    dns: tuple[IPv4Address | IPv6Address, ...] = ()
    default_domain: str = ""
    split_include: tuple[Network, ...] = ()
    split_exclude: tuple[Network, ...] = ()
    tunnel_all_dns: bool = False
    mtu: int
    base_mtu: int
    dpd_s: int = 30
    keepalive_s: int = 0
    idle_timeout_s: int = 0
    session_timeout_s: int = 0
    rekey_time_s: int = 0
    rekey_method: Literal["new-tunnel", "none"] = "new-tunnel"
    banner: str = ""
    server_name: str = ""
    dtls: DtlsParams | None = None
    is_own: bool = False
    """The client is one of our own, and is told that we are."""
    cookie: str = field(default="", repr=False)
    """What a client of our own is to come back with from now on, empty: with what it has."""
    renewed: tuple[bytes, ...] = ()
    """Its next certificate and the one above, DER; empty where there is none for it."""


def encode_params(params: TunnelParams) -> list[tuple[str, str]]:
    """Return the header fields of the 200 answer to a CONNECT, spelled as stock clients read them.

    IPv6 is withheld when `mtu` is below 1280.  Raises LocalProtocolError when no address is left.
    """
    versions = _versions(params)
    if not versions:
        raise LocalProtocolError("a tunnel without an address that its MTU can carry")
    return [
        ("X-CSTP-Version", "1"),
        *_optional("X-Pyvpn-Version", str(PYVPN_VERSION) if params.is_own else ""),
        *_optional("X-Pyvpn-Cookie", params.cookie if params.is_own else ""),
        *((renewal.CERTIFICATE_FIELD, renewal.encode(each)) for each in params.renewed),
        *_optional("X-CSTP-Server-Name", params.server_name),
        *_addresses(params, versions),
        *_resolvers(params, versions),
        *_routes(params, versions),
        *_timers(params),
        ("X-CSTP-Disconnected-Timeout", "none"),
        ("X-CSTP-Keep", "true"),
        ("X-CSTP-License", "accept"),
        *_dtls(params.dtls),
        ("X-CSTP-Base-MTU", str(params.base_mtu)),
        ("X-CSTP-MTU", str(params.mtu)),
        *_optional("X-CSTP-Banner", quote(params.banner.strip(), safe=BANNER_SAFE)),
    ]


def _versions(params: TunnelParams) -> set[int]:
    """Return the IP versions that this tunnel carries."""
    versions = {4} if params.address4 is not None else set()
    if params.address6 is not None and params.mtu >= MIN_IPV6_MTU:
        versions.add(6)
    return versions


def _optional(name: str, value: str) -> Iterator[tuple[str, str]]:
    if value:
        yield name, value


def _addresses(params: TunnelParams, versions: set[int]) -> Iterator[tuple[str, str]]:
    if 4 in versions:
        yield "X-CSTP-Address", str(params.address4)
        yield "X-CSTP-Netmask", str(params.netmask4)
    if 6 in versions:
        yield "X-CSTP-Address-IP6", str(params.address6)


def _resolvers(params: TunnelParams, versions: set[int]) -> Iterator[tuple[str, str]]:
    for server in params.dns:
        if server.version in versions:
            yield "X-CSTP-DNS" if server.version == 4 else "X-CSTP-DNS-IP6", str(server)
    yield from _optional("X-CSTP-Default-Domain", params.default_domain.strip())
    yield "X-CSTP-Tunnel-All-DNS", "true" if params.tunnel_all_dns else "false"


def _routes(params: TunnelParams, versions: set[int]) -> Iterator[tuple[str, str]]:
    include = list(params.split_include)
    if include:
        named = {network.version for network in include}
        include += [own for own in _own_networks(params) if own.version not in named]
    yield from _networks("X-CSTP-Split-Include", include, versions)
    yield from _networks("X-CSTP-Split-Exclude", params.split_exclude, versions)


def _own_networks(params: TunnelParams) -> Iterator[Network]:
    if params.address4 is not None:
        yield IPv4Network(f"{params.address4}/{params.netmask4}", strict=False)
    if params.address6 is not None:
        yield params.address6.network


def _networks(
    name: str, networks: Iterable[Network], versions: set[int]
) -> Iterator[tuple[str, str]]:
    for network in networks:
        if network.version not in versions:
            continue
        if network.version == 4:
            yield name, network.with_netmask
        else:
            yield f"{name}-IP6", network.with_prefixlen


def _timers(params: TunnelParams) -> Iterator[tuple[str, str]]:
    yield "X-CSTP-DPD", str(params.dpd_s)
    yield "X-CSTP-Keepalive", str(params.keepalive_s)
    yield "X-CSTP-Idle-Timeout", str(params.idle_timeout_s or "none")
    yield "X-CSTP-Session-Timeout", str(params.session_timeout_s or "none")
    if params.rekey_time_s and params.rekey_method != "none":
        yield "X-CSTP-Rekey-Time", str(params.rekey_time_s)
        yield "X-CSTP-Rekey-Method", params.rekey_method
    else:
        yield "X-CSTP-Rekey-Method", "none"


def _dtls(dtls: DtlsParams | None) -> Iterator[tuple[str, str]]:
    if dtls is None:  # any X-DTLS field would make the client wait for UDP
        return
    yield "X-DTLS-Port", str(dtls.port)
    yield "X-DTLS-App-ID", dtls.app_id.hex()
    yield "X-DTLS-CipherSuite", "PSK-NEGOTIATE"
    yield "X-DTLS-DPD", str(dtls.dpd_s)
    yield "X-DTLS-Keepalive", str(dtls.keepalive_s)
