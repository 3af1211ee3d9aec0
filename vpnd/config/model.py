"""The server's configuration as values: one frozen dataclass for each table of the file.

The text under each field is its documentation, for the manual page too.  The defaults stand
here and nowhere else; what a file may say instead is checked in `vpnd.config.load`.  A file
that is left out of `[tls]` lives in the state directory, which a configuration does not know:
ask `certificate_file(state_dir)` and its sisters.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Literal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Method = Literal["certificate", "password"]

EVERYWHERE = (IPv4Address(0), IPv6Address(0))  # a server listens everywhere unless told
TUNNEL_IPV4 = IPv4Network("10.8.0.0/24")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`[server]`: where clients reach this server."""

    addresses: tuple[Address, ...] = EVERYWHERE
    """Addresses to listen on; "0.0.0.0" and "::" stand for all of their family."""

    port: int = 55555
    """Port for both TCP (TLS) and UDP (DTLS)."""

    name: str = ""
    """Name or address clients check the server by; empty: the first name in its certificate."""

    remotes: tuple[str, ...] = ()
    """What client profiles connect to, "HOST:PORT" each; empty: the name with the port."""

    def remotes_for(self, certificate_name: str) -> tuple[str, ...]:
        """Return what profiles shall connect to, given the first name in the certificate."""
        if self.remotes:
            return self.remotes
        host = self.name or certificate_name
        return (f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}",)


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """`[network]`: the network inside the tunnel and what clients are told of it."""

    interface: str = "pyvpn0"
    """Name of the TUN interface, pyvpn0 to pyvpn999; the helper's policy may allow fewer."""

    ipv4: IPv4Network = TUNNEL_IPV4
    """IPv4 addresses of the tunnel; the server takes the first one."""

    ipv6: IPv6Network | Literal["auto"] | None = "auto"
    """IPv6 addresses of the tunnel; "auto": a random private /64 chosen once; "": no IPv6."""

    mtu: int = 1400
    """Largest packet inside the tunnel in bytes, 576 to 9000, with IPv6 at least 1280."""

    dns: tuple[Address, ...] = ()
    """DNS servers for clients; stock clients use the first three."""

    default_domain: str = ""
    """DNS search domain for clients; several are separated by spaces."""

    routes: tuple[Network, ...] = ()
    """Networks clients send through the tunnel; ["default"], kept as (): everything."""

    exclude: tuple[Network, ...] = ()
    """Networks clients leave outside of the tunnel."""

    client_to_client: bool = False
    """Whether clients may talk to one another."""


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """`[tls]`: keys and versions of the TLS channel."""

    certificate: Path | None = None
    """The server's certificate and the chain above it, PEM; default STATE/server.crt."""

    key: Path | None = None
    """The private key of `certificate`, PEM; default STATE/server.key."""

    client_ca: Path | None = None
    """CA certificates that client certificates are checked against; default STATE/ca.crt."""

    min_version: Literal["1.2", "1.3"] = "1.3"
    """Oldest TLS version to accept."""

    def certificate_file(self, state_dir: Path) -> Path:
        """Return the file of the server's certificate."""
        return self.certificate or state_dir / "server.crt"

    def key_file(self, state_dir: Path) -> Path:
        """Return the file of the server's private key."""
        return self.key or state_dir / "server.key"

    def client_ca_file(self, state_dir: Path) -> Path:
        """Return the file of the CA certificates for clients."""
        return self.client_ca or state_dir / "ca.crt"


@dataclass(frozen=True, slots=True)
class DtlsOptions:
    """`[dtls]`: the UDP channel."""

    enabled: bool = True
    """Whether packets may travel over UDP; TLS over TCP is always there."""


@dataclass(frozen=True, slots=True)
class AuthOptions:
    """`[auth]`: how clients prove who they are."""

    methods: tuple[Method, ...] = ("certificate", "password")
    """Methods of login; each alone suffices."""

    login_timeout_s: int = 240
    """Seconds for a login from its first to its last step."""

    password_attempts: int = 3
    """Wrong passwords until a login has to begin anew."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """`[session]`: life times and timers, all in seconds; 0 switches a limit off."""

    cookie_timeout_s: int = 300
    """How long after an unclean end a client may resume its session without a new login."""

    session_timeout_s: int = 0
    """Longest life of a session, counted from its login; reconnecting does not prolong it."""

    idle_timeout_s: int = 0
    """Sessions that carry no packet for so long are ended."""

    dpd_s: int = 30
    """After so much silence the peer is asked whether it is there (dead peer detection)."""

    keepalive_s: int = 20000
    """After so long without sending a client sends a filler to keep middle boxes awake."""

    rekey_s: int = 86400
    """How often stock clients make a new tunnel with new keys."""


@dataclass(frozen=True, slots=True)
class LimitsOptions:
    """`[limits]`: bounds on what strangers can make the server do."""

    connections: int = 4096
    """TCP connections at the same time."""

    connections_per_address: int = 64
    """TCP connections at the same time from one IPv4 address or one IPv6 /64."""

    handshakes_pending: int = 512
    """TLS handshakes and logins that may be under way at the same time."""


@dataclass(frozen=True, slots=True)
class FirewallOptions:
    """`[firewall]`: the rules the helper sets up for the tunnel."""

    backend: Literal["auto", "nftables"] = "auto"
    """Which kernel interface the rules are written through."""

    masquerade: bool = True
    """Whether clients reach other networks under this host's own address (NAT)."""

    clamp_mss: bool = True
    """Whether TCP connections through the tunnel are told a segment size that fits."""


@dataclass(frozen=True, slots=True)
class HelperOptions:
    """`[helper]`: the privileged helper."""

    socket: Path = Path("/run/pyvpn-helper.sock")
    """The socket it listens on."""


@dataclass(frozen=True, slots=True)
class IpcOptions:
    """`[ipc]`: who may command the server with vpnctl."""

    admin_group: str = "pyvpn-admin"
    """Members of this group, and root, see names and change things; it need not exist."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """`[log]`: what is logged."""

    level: Literal["debug", "info", "warning", "error", "none"] = "info"
    """Least important kind of line that is written; "none": nothing at all."""

    anonymise: bool = False
    """Whether addresses in log lines are cut to their /24 (IPv4) or /48 (IPv6)."""


@dataclass(frozen=True, slots=True)
class ServerLogOptions(LogOptions):
    """`[log]` of a server: what is logged, and how long it is known who was here."""

    keep_days: int = 90
    """How long a device or login that is gone keeps its inner address, and its last use is known;
    0, and with the level "none": not beyond the end of its session."""

    @property
    def keep_s(self) -> int:
        """Seconds after its last session that a lease is forgotten."""
        return 0 if self.level == "none" else self.keep_days * 86400


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A whole server.toml; every table, and every key in it, may be left out."""

    server: ServerOptions = field(default_factory=ServerOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    tls: TlsOptions = field(default_factory=TlsOptions)
    dtls: DtlsOptions = field(default_factory=DtlsOptions)
    auth: AuthOptions = field(default_factory=AuthOptions)
    session: SessionOptions = field(default_factory=SessionOptions)
    limits: LimitsOptions = field(default_factory=LimitsOptions)
    firewall: FirewallOptions = field(default_factory=FirewallOptions)
    helper: HelperOptions = field(default_factory=HelperOptions)
    ipc: IpcOptions = field(default_factory=IpcOptions)
    log: ServerLogOptions = field(default_factory=ServerLogOptions)
