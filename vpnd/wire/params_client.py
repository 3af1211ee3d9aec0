"""The CONNECT exchange as the client sees it: what we ask for, and the tunnel that we get.

The server may be hostile: what it answers becomes addresses and routes of this host, lines on a
terminal, timers.  What makes no tunnel is Malformed, with the reason; numbers are clamped, and
what can be left out safely is left out, with a remark for the log.  Field names are compared
without case.

Routes come out explicit.  A server that names none gets all traffic of each family that has an
address, as stock clients do; when it names some, only those and the tunnel's own networks lead
inside.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
)
from typing import TypeVar
from urllib.parse import unquote

from vpnd.errors import Malformed
from vpnd.wire import renewal
from vpnd.wire.addresses import (
    Address,
    Network,
    parse_address,
    parse_length,
    parse_network,
    unusable_range,
)
from vpnd.wire.auth_client import one_line, shown
from vpnd.wire.http_client import Response
from vpnd.wire.tunnel_params import COOKIE, MAX_APP_ID, MAX_COOKIE, MIN_IPV6_MTU, MIN_MTU

HTTPS = 443
MAX_MTU = 9000  # larger than any link that a tunnel crosses
DEFAULT_MTU = 1280  # for a server that does not say: what every link can carry
MAX_ROUTES = 2000  # both directions together; ocserv's own limit is below
MAX_DNS = 8
MAX_DOMAINS = 64
MAX_NAME = 253  # RFC 1035 section 2.3.4
MAX_REMARKS = 32
MIN_PREFIX4, MIN_PREFIX6 = 8, 32  # a wider network of the tunnel's own is a default route
MIN_TIMER_S, MAX_TIMER_S = 5, 7 * 86400
USER_AGENT = "OpenConnect VPN Agent (pyvpn) v1"  # ocserv sends IPv6 routes to such names only

_A = TypeVar("_A", IPv4Address, IPv6Address)
_NUMBER = re.compile(r"[0-9]+")
_DOMAIN = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_EVERYTHING: tuple[Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectOptions:
    """What we say of ourselves in a CONNECT.

    `base_mtu` is the MTU of our link; the addresses are those that the session had before.
    """

    hostname: str = ""
    user_agent: str = USER_AGENT
    base_mtu: int = 1500
    mtu: int | None = None
    wants_ipv6: bool = True
    wants_dtls: bool = True
    rekey: bool = False
    """A second tunnel of the same session beside the first, to change keys."""
    address4: IPv4Address | None = None
    address6: IPv6Address | None = None
    renewal: bytes = b""
    """A request for our next certificate, DER; only for a server that is pyvpn."""


def host_field(host: str, port: int) -> str:
    """Return the value of the Host field for a DNS name or an address."""
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return name if port == HTTPS else f"{name}:{port}"


def connect_fields(
    host: str, port: int, options: ConnectOptions, cookie: str
) -> list[tuple[str, str]]:
    """Return the header fields of a CONNECT to the server at `host`."""
    fields = [
        ("Host", host_field(host, port)),
        ("User-Agent", options.user_agent),
        ("Cookie", f"webvpn={cookie}"),
        ("X-CSTP-Version", "1"),
        ("X-CSTP-Base-MTU", str(options.base_mtu)),
        ("X-CSTP-Address-Type", "IPv6,IPv4" if options.wants_ipv6 else "IPv4"),
        ("X-Pyvpn-Version", "1"),
    ]
    if options.hostname:
        fields.append(("X-CSTP-Hostname", options.hostname))
    if options.mtu is not None:
        fields.append(("X-CSTP-MTU", str(options.mtu)))
    if options.wants_ipv6:
        fields.append(("X-CSTP-Full-IPv6-Capability", "true"))
    addresses = (options.address4, options.address6 if options.wants_ipv6 else None)
    fields += [("X-CSTP-Address", str(address)) for address in addresses if address is not None]
    if options.wants_dtls:
        fields.append(("X-DTLS-CipherSuite", "PSK-NEGOTIATE"))
    if options.rekey:
        fields.append(("X-Pyvpn-Rekey", "1"))
    if options.renewal:
        fields.append((renewal.REQUEST_FIELD, renewal.encode(options.renewal)))
    return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParams:
    """The tunnel that a server offers, checked.

    `mtu` counts bytes of an inner packet.  Timers are whole seconds, 0 = off or unlimited.
    `split_include` is all that leads into the tunnel, `split_exclude` what does not although
    included.  Without `dtls_port` and `app_id` there is no UDP.  `remarks` say, one line each,
    what was clamped or left out.
    """

    address4: IPv4Address | None = None
    prefix4: int = 32
    address6: IPv6Address | None = None
    prefix6: int = 128
    dns: tuple[Address, ...] = ()
    domains: tuple[str, ...] = ()
    split_dns: tuple[str, ...] = ()
    tunnel_all_dns: bool = False
    split_include: tuple[Network, ...] = ()
    split_exclude: tuple[Network, ...] = ()
    mtu: int = DEFAULT_MTU
    base_mtu: int | None = None
    dpd_s: int = 0
    keepalive_s: int = 0
    rekey_s: int = 0
    rekey_method: str = "none"
    idle_timeout_s: int = 0
    session_timeout_s: int = 0
    dtls_port: int | None = None
    app_id: bytes = field(default=b"", repr=False)
    dtls_dpd_s: int = 0
    dtls_keepalive_s: int = 0
    banner: str = ""
    server_name: str = ""
    is_pyvpn: bool = False
    cookie: str = field(default="", repr=False)
    """Takes the place of the one that opened this tunnel; empty: that one goes on."""
    renewed: tuple[bytes, ...] = ()
    """Our next certificate and what is above it, DER, unchecked; empty where there is none."""
    remarks: tuple[str, ...] = ()


def parse_params(response: Response) -> ServerParams:
    """Return what the answer to a granted CONNECT says.

    Raises Malformed, with the reason, for a tunnel without a usable address, for an address,
    route or number that is none, for more than MAX_ROUTES routes and for an encoding that was not
    asked for.
    """
    return _Parser(response).parse()


class _Parser:
    """One reading of one answer; collects the remarks."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._remarks: list[str] = []

    def parse(self) -> ServerParams:
        self._check_encodings()
        mtu = self._clamped("X-CSTP-MTU", DEFAULT_MTU, MIN_MTU, MAX_MTU)
        address4, prefix4, address6, prefix6 = self._addresses(mtu)
        include = tuple(self._routes("X-CSTP-Split-Include"))
        exclude = tuple(self._routes("X-CSTP-Split-Exclude"))
        own = _own_networks(address4, prefix4, address6, prefix6)
        versions: set[int] = {network.version for network in own}
        port, app_id = self._dtls()
        rekey_s = self._timer("X-CSTP-Rekey-Time")
        method = (self._last("X-CSTP-Rekey-Method") or "none").lower()
        return ServerParams(
            address4=address4,
            prefix4=prefix4,
            address6=address6,
            prefix6=prefix6,
            dns=tuple(self._resolvers(versions)),
            domains=tuple(self._domains("X-CSTP-Default-Domain")),
            split_dns=tuple(self._domains("X-CSTP-Split-DNS")),
            tunnel_all_dns=(self._last("X-CSTP-Tunnel-All-DNS") or "").lower() == "true",
            split_include=_included(include, own),
            split_exclude=tuple(n for n in exclude if n.version in versions),
            mtu=mtu,
            base_mtu=self._base_mtu(),
            dpd_s=self._timer("X-CSTP-DPD"),
            keepalive_s=self._timer("X-CSTP-Keepalive"),
            rekey_s=rekey_s if method in {"ssl", "new-tunnel"} else 0,
            rekey_method=method if method in {"ssl", "new-tunnel"} else "none",
            idle_timeout_s=self._timer("X-CSTP-Idle-Timeout"),
            session_timeout_s=self._timer("X-CSTP-Session-Timeout-Remaining")
            or self._timer("X-CSTP-Session-Timeout"),
            dtls_port=port,
            app_id=app_id,
            dtls_dpd_s=self._timer("X-DTLS-DPD"),
            dtls_keepalive_s=self._timer("X-DTLS-Keepalive"),
            banner=shown(unquote(self._last("X-CSTP-Banner") or "", errors="replace")),
            server_name=one_line(self._last("X-CSTP-Server-Name") or "", 80),
            is_pyvpn=_NUMBER.fullmatch(self._last("X-Pyvpn-Version") or "") is not None,
            cookie=self._cookie(),
            renewed=self._renewed(),
            remarks=tuple(self._remarks),
        )

    def _last(self, name: str) -> str | None:
        return self._response.header(name)

    def _remark(self, text: str) -> None:
        if len(self._remarks) < MAX_REMARKS:
            self._remarks.append(one_line(text, 160))

    def _check_encodings(self) -> None:
        for name in ("X-CSTP-Content-Encoding", "X-DTLS-Content-Encoding"):
            if (self._last(name) or "identity").lower() not in {"identity", "none"}:
                raise Malformed(f"{name}: compression that was not asked for")

    def _number(self, name: str) -> int | None:
        """Return a field's number, however large, cut at a billion."""
        value = self._last(name)
        if value is None:
            return None
        if not _NUMBER.fullmatch(value):
            raise Malformed(f"{name} is not a number")
        digits = value.lstrip("0") or "0"
        return int(digits) if len(digits) < 10 else 10**9  # int() refuses thousands of digits

    def _clamped(self, name: str, default: int, least: int, most: int) -> int:
        number = self._number(name)
        if number is None:
            self._remark(f"{name} is missing: {default} is taken")
            return default
        clamped = max(least, min(number, most))
        if clamped != number:
            self._remark(f"{name}: {number} is outside {least}..{most}: {clamped} is taken")
        return clamped

    def _base_mtu(self) -> int | None:
        if self._last("X-CSTP-Base-MTU") is None:
            return None
        return self._clamped("X-CSTP-Base-MTU", MAX_MTU, MIN_MTU, 65535)

    def _timer(self, name: str) -> int:
        if (self._last(name) or "none").lower() == "none":
            return 0
        number = self._number(name)
        return self._clamped(name, 0, MIN_TIMER_S, MAX_TIMER_S) if number else 0

    def _addresses(self, mtu: int) -> tuple[IPv4Address | None, int, IPv6Address | None, int]:
        address4: IPv4Address | None = None
        address6: IPv6Address | None = None
        prefix4, prefix6 = 32, 128
        for value in [
            *self._response.values("X-CSTP-Address"),
            *self._response.values("X-CSTP-Address-IP6"),
        ]:
            text, _, length = value.partition("/")
            address = parse_address(text)
            if isinstance(address, IPv4Address):
                address4 = _only(address4, address)
            else:
                address6 = _only(address6, address)
                prefix6 = parse_length(length, 128) if length else prefix6
        if address4 is not None:
            prefix4 = self._prefix4()
        prefix4 = self._narrow(prefix4, MIN_PREFIX4, 32)
        prefix6 = self._narrow(prefix6, MIN_PREFIX6, 128)
        if address6 is not None and mtu < MIN_IPV6_MTU:
            self._remark(f"IPv6 is left out: it needs an MTU of {MIN_IPV6_MTU}, there are {mtu}")
            address6 = None
        if address4 is None and address6 is None:
            raise Malformed("the server gave no address for this end of the tunnel")
        return address4, prefix4, address6, prefix6

    def _narrow(self, prefix: int, least: int, host: int) -> int:
        """Return the prefix length, or that of a host where half the world would be inside."""
        if prefix >= least:
            return prefix
        self._remark(f"a tunnel network of prefix length {prefix}: {host} is taken")
        return host

    def _prefix4(self) -> int:
        masks = [m for m in self._response.values("X-CSTP-Netmask") if ":" not in m]
        if not masks:
            return 32
        try:
            return IPv4Network(f"0.0.0.0/{masks[-1]}").prefixlen
        except ValueError:
            raise Malformed("X-CSTP-Netmask is no netmask") from None

    def _routes(self, name: str) -> Iterator[Network]:
        values = [*self._response.values(name), *self._response.values(f"{name}-IP6")]
        others = "X-CSTP-Split-"
        total = sum(key.startswith(others.lower()) for key, _ in self._response.headers)
        if total > MAX_ROUTES:
            raise Malformed(f"the server sent {total} routes; at most {MAX_ROUTES} are taken")
        for value in values:
            try:
                network = parse_network(value)
            except Malformed as exc:
                raise Malformed(f"{name}: {exc}") from None
            bad = unusable_range(network)
            if bad is not None:
                self._remark(f"{name}: {network} is left out: it lies in {bad}")
            else:
                yield network

    def _resolvers(self, versions: set[int]) -> Iterator[Address]:
        values = [
            *self._response.values("X-CSTP-DNS"),
            *self._response.values("X-CSTP-DNS-IP6"),
        ]
        if len(values) > MAX_DNS:
            self._remark(f"X-CSTP-DNS: {len(values)} servers, the first {MAX_DNS} are taken")
        for value in values[:MAX_DNS]:
            try:
                address = parse_address(value)
            except Malformed as exc:
                self._remark(f"X-CSTP-DNS: left out: {exc}")
                continue
            if address.version in versions:
                yield address

    def _domains(self, name: str) -> Iterator[str]:
        names = [word for value in self._response.values(name) for word in value.split()]
        if len(names) > MAX_DOMAINS:
            self._remark(f"{name}: {len(names)} names, the first {MAX_DOMAINS} are taken")
        for word in names[:MAX_DOMAINS]:
            if len(word) <= MAX_NAME and _DOMAIN.fullmatch(word):
                yield word
            else:
                self._remark(f"{name}: left out, it is no domain name: {word}")

    def _cookie(self) -> str:
        cookie = self._last("X-Pyvpn-Cookie") or ""
        if not cookie or (len(cookie) <= MAX_COOKIE and COOKIE.fullmatch(cookie)):
            return cookie
        self._remark("X-Pyvpn-Cookie: left out, no cookie looks like that")
        return ""

    def _renewed(self) -> tuple[bytes, ...]:
        try:
            return renewal.parse_certificates(self._response.values(renewal.CERTIFICATE_FIELD))
        except Malformed as exc:
            self._remark(str(exc))
            return ()

    def _dtls(self) -> tuple[int | None, bytes]:
        """Return port and App-ID; without a usable one of both there is only TLS."""
        port, suite = self._number("X-DTLS-Port"), self._last("X-DTLS-CipherSuite")
        if not port and suite is None:
            return None, b""
        try:
            app_id = bytes.fromhex(self._last("X-DTLS-App-ID") or "")
        except ValueError:
            app_id = b""
        if suite != "PSK-NEGOTIATE":
            self._remark("no UDP: the server offers another DTLS than PSK-NEGOTIATE")
        elif not 1 <= len(app_id) <= MAX_APP_ID:
            self._remark("no UDP: the server gave no usable X-DTLS-App-ID")
        elif port is None or not 1 <= port <= 65535:
            self._remark("no UDP: the server gave no usable X-DTLS-Port")
        else:
            return port, app_id
        return None, b""


def _only(known: _A | None, found: _A) -> _A:
    if known is not None and known != found:
        raise Malformed("two addresses of one family")
    return found


def _own_networks(
    address4: IPv4Address | None, prefix4: int, address6: IPv6Address | None, prefix6: int
) -> list[Network]:
    own: list[Network] = []
    if address4 is not None:
        own.append(IPv4Network((address4, prefix4), strict=False))
    if address6 is not None:
        own.append(IPv6Network((address6, prefix6), strict=False))
    return own


def _included(include: Sequence[Network], own: Sequence[Network]) -> tuple[Network, ...]:
    """Return what leads into the tunnel, nothing twice, only families that have an address."""
    versions = {network.version for network in own}
    if not include:
        return tuple(n for n in _EVERYTHING if n.version in versions)
    inside = [n for n in include if n.version in versions]
    return tuple(dict.fromkeys([*inside, *own]))
