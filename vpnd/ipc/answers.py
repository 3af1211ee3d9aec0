"""What the methods of org.pyvpn.Daemon answer with: values, and nothing that does something.

`vpnctl --json` prints these dataclasses as they are: one schema for all.  Times are Unix
seconds, durations seconds, sizes bytes, all whole numbers.  "rx" is received from the peer,
"tx" is sent to it.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Offload:
    """One piece of work that the kernel does for us, or why it does not."""

    name: str
    """For example "TUN TSO", "UDP GSO" or "UDP GRO"."""
    state: Literal["on", "off"]
    reason: str = ""
    """Why it is off; empty when it is on."""


@dataclass(frozen=True, slots=True)
class KeysStatus:
    """The age of what the server proves its name with."""

    certificate_age_s: int
    certificate_not_after: int
    key_age_s: int | None = None
    """Age of the key pair, which outlives its certificates."""


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """One session: a user who is connected."""

    id: str
    user: str
    client: str | None
    """The client (device) of a certificate login; None after a password login."""
    address4: str | None
    """Inner IPv4 address."""
    address6: str | None
    """Inner IPv6 address."""
    outer: str
    """Where the peer is, as "192.0.2.7:40122" or "[2001:db8::7]:40122"."""
    channel: Literal["DTLS", "TLS"]
    """The channel that carries the packets now."""
    cipher: str
    """Cipher of that channel."""
    tls_version: str
    tls_cipher: str
    key_exchange_group: str
    """For example "X25519MLKEM768" or "x25519"; empty where OpenSSL does not tell."""
    method: str
    """How the user logged in: "certificate" or "password"."""
    connected_at: int
    keys_age_s: int
    rx_bytes: int = 0
    rx_packets: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    """Dropped packets by reason."""
    user_agent: str = ""
    """What the peer says it is; not to be believed."""
    hostname: str = ""
    """What the peer says its name is; not to be believed."""


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """A client's connection to its server."""

    name: str
    """Name of the profile."""
    state: str
    """starting, resolving, connecting, logging-in, connected, reconnecting, waiting, ended."""
    reason: str = ""
    """Why it is in this state, where that needs a word."""
    remote: str = ""
    """The server that is connected to, or tried."""
    attempt: int = 0
    next_try_s: int = 0
    """Seconds until the next try, as they were when the state began."""
    routes: list[str] = field(default_factory=list)
    """Networks that go through the tunnel."""
    exclude: list[str] = field(default_factory=list)
    """Parts of them that do not."""
    blocks_ipv6: bool = False
    refused: list[str] = field(default_factory=list)
    """What the server wanted and did not get, and why."""
    dns: list[str] = field(default_factory=list)
    """DNS servers of the tunnel; they are not put in use."""
    default_domain: str = ""
    certificate_not_after: int | None = None
    """The end of the certificate that is shown; None of a client without one."""
    certificate_renewed: bool = False
    """It has followed the one in the profile."""


@dataclass(frozen=True, slots=True)
class Status:
    """The daemon as a whole."""

    role: Literal["server", "client"]
    version: str
    state: Literal["up", "down"]
    """"up" when the interface is there and workers serve it; of a client: when connected."""
    users: int
    """How many users there are."""
    sessions_count: int
    restricted: bool = False
    """True when the caller may see no more than the fields above."""
    started_at: int | None = None
    uptime_s: int | None = None
    interface: str | None = None
    addresses: list[str] = field(default_factory=list)
    """The server's own inner addresses with prefix length."""
    listen: list[str] = field(default_factory=list)
    """Where it listens, as "0.0.0.0:55555" or "[::]:55555"."""
    firewall_backend: str | None = None
    offloads: list[Offload] = field(default_factory=list)
    workers: int = 0
    sessions: list[SessionStatus] = field(default_factory=list)
    drops: dict[str, int] = field(default_factory=dict)
    """Dropped packets by reason, of all sessions and of none."""
    keys: KeysStatus | None = None
    client: ConnectionStatus | None = None
    """A client's connection; None of a server."""

    def for_stranger(self) -> "Status":
        """Return what any local user may know: role, version, up or down, and counts."""
        return Status(
            role=self.role,
            version=self.version,
            state=self.state,
            users=self.users,
            sessions_count=self.sessions_count,
            restricted=True,
        )


@dataclass(frozen=True, slots=True)
class User:
    """A user as the operator sees it; the password hash stays in the store."""

    name: str
    groups: list[str] = field(default_factory=list)
    has_password: bool = False
    disabled: bool = False
    valid_until: int | None = None
    clients: int = 0
    """How many clients that are not revoked."""
    sessions: int = 0
    """How many sessions now."""


@dataclass(frozen=True, slots=True)
class Client:
    """One device of a user: one certificate, one sticky lease."""

    user: str
    name: str
    serial: str
    """The certificate's serial number in lower case hexadecimal digits."""
    not_after: int
    foreign: bool
    """For other makers' clients: a long-lived certificate in a .p12 file."""
    created: int
    revoked_at: int | None = None
    sessions: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """What a client must know of the server."""

    server_name: str
    remotes: list[str]
    """"host:port", in the order to be tried."""
    pins: list[str]
    """"pin-sha256:..." of the current and of the next key."""
    ca_pem: str


@dataclass(frozen=True, slots=True)
class KeyRotation:
    """How changing the keys of one session went."""

    session: str
    user: str
    client: str | None
    rotated: bool
    """The session runs on new keys."""
    overlapped: bool
    """The old keys served until the new ones did; otherwise there was a short break."""
    reason: str
    """Why there are no new keys; empty where there are."""
    took_ms: int


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What became of a configuration that was read again."""

    applied: list[str]
    """Keys, like "network.dns", whose new values are in force; files that were read anew."""
    needs_restart: list[str]
    """Keys whose values in the file are not in force before a restart."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the configuration with the value in force."""

    key: str
    """For example "network.mtu"."""
    value: str
    """As the file would have it, in TOML."""
