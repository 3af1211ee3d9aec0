"""What master and worker say to each other; `worker.control` carries it.

Every message is a frozen dataclass of plain values.  Each says who sends it.
"""

import typing
from dataclasses import dataclass, field

from vpnd.auth.contract import CertificateFacts


@dataclass(frozen=True, slots=True)
class Start:
    """Master -> worker, first message: how to work.

    The descriptors beside it: TUN queue, TCP listeners, UDP sockets.
    """

    tcp_listeners: int
    udp_sockets: int
    certificate: str
    key: str
    client_ca: str
    allow_tls12: bool
    dtls: bool
    port: int
    connections: int
    connections_per_address: int
    handshakes_pending: int
    login_timeout_s: int
    log_level: str
    log_anonymise: bool = False


@dataclass(frozen=True, slots=True)
class Reload:
    """Master -> worker: work like this from now on; what is open already goes on as it was.

    Certificates and keys are read again.  Listeners and port are those of the first message.
    """

    settings: Start


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Worker -> master: the reply."""

    refusal: str = ""
    """Why nothing has changed; empty where all is in force."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker -> master: serving."""


@dataclass(frozen=True, slots=True)
class LoginQuery:
    """Worker -> master: one step of a login."""

    address: str
    login_cookie: str | None = field(repr=False)
    values: dict[str, str] = field(repr=False)
    group: str | None
    restart: bool
    certificate: CertificateFacts | None


@dataclass(frozen=True, slots=True)
class Logout:
    """Worker -> master: whoever has this cookie is done with its session."""

    cookie: str = field(repr=False)
    address: str


@dataclass(frozen=True, slots=True)
class FormInput:
    """One field of a login form."""

    name: str
    type: str
    """`text`, `password`, or `choice`: one of `options`."""
    label: str
    options: dict[str, str] = field(default_factory=dict)
    """Values with their labels, the server's own choice first."""


@dataclass(frozen=True, slots=True)
class LoginReply:
    """Master -> worker: what to answer."""

    outcome: str
    """`form`, `accepted`, `refused` or `busy`."""
    message: str = ""
    error: str | None = None
    inputs: list[FormInput] = field(default_factory=list)
    cookie: str = field(default="", repr=False)
    """The login cookie with a form, the session cookie when accepted."""


@dataclass(frozen=True, slots=True)
class OpenQuery:
    """Worker -> master: a client wants its tunnel."""

    cookie: str = field(repr=False)
    address: str
    certificate: CertificateFacts | None
    hostname: str
    user_agent: str
    wants_ipv4: bool
    wants_ipv6: bool
    is_own: bool = False
    """The client is one of our own."""
    rekey: bool = False
    """It wants this tunnel beside the one it has, to change its keys."""
    renewal: str = ""
    """Its request for its next certificate, base64; with it `certificate_der`."""
    certificate_der: str = ""
    """The certificate that it has shown, base64."""


@dataclass(frozen=True, slots=True)
class OpenReply:
    """Master -> worker: the tunnel's parameters, or `refused` with a reason."""

    refused: int = 0
    """HTTP status of a refusal, 0 when granted."""
    reason: str = ""
    tunnel: int = 0
    """Number of this tunnel; a session that reconnects gets a new one."""
    session: str = ""
    user: str = ""
    address4: str = ""
    netmask4: str = ""
    address6: str = ""
    prefix6: int = 0
    mtu: int = 0
    dns: list[str] = field(default_factory=list)
    default_domain: str = ""
    split_include: list[str] = field(default_factory=list)
    split_exclude: list[str] = field(default_factory=list)
    server_name: str = ""
    dpd_s: int = 0
    keepalive_s: int = 0
    idle_timeout_s: int = 0
    session_left_s: int = 0
    """Seconds until the session ends for good, 0 = no limit."""
    rekey_s: int = 0
    beside: int = 0
    """Number of the tunnel that goes on until the client uses this one, 0 = none."""
    cookie: str = field(default="", repr=False)
    """The session's next cookie; empty where it keeps the one it has."""
    renewed: list[str] = field(default_factory=list)
    """The client's next certificate and the one above, base64, where there is one."""


@dataclass(frozen=True, slots=True)
class TunnelTakesOver:
    """Worker -> master: a client that changes its keys uses its new tunnel from now on."""

    tunnel: int
    session: str


@dataclass(frozen=True, slots=True)
class TunnelProved:
    """Worker -> master: the client has used a tunnel that was opened to change its keys.

    So it has what the answer to its CONNECT said, the next cookie included.
    """

    tunnel: int
    session: str


@dataclass(frozen=True, slots=True)
class AskRekey:
    """Master -> worker: ask the client, one of our own, to change its keys now."""

    tunnel: int


@dataclass(frozen=True, slots=True)
class TunnelEnded:
    """Worker -> master: a tunnel is gone."""

    tunnel: int
    session: str
    reason: str
    final: bool
    """The session is over; otherwise its cookie stays good for a while."""
    rx_bytes: int = 0
    tx_bytes: int = 0


@dataclass(frozen=True, slots=True)
class EndTunnel:
    """Master -> worker: end this tunnel; with `bye` the client is told not to come back."""

    tunnel: int
    reason: str
    bye: bool


@dataclass(frozen=True, slots=True)
class StatusQuery:
    """Master -> worker."""


@dataclass(frozen=True, slots=True)
class TunnelStatus:
    """The living figures of one tunnel."""

    tunnel: int
    outer: str
    channel: str
    cipher: str
    tls_version: str
    tls_cipher: str
    group: str
    keys_age_s: int
    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int
    drops: dict[str, int]


@dataclass(frozen=True, slots=True)
class OffloadStatus:
    """One use of the kernel's batches."""

    name: str
    on: bool
    reason: str


@dataclass(frozen=True, slots=True)
class StatusReply:
    """Worker -> master."""

    tunnels: list[TunnelStatus]
    drops: dict[str, int]
    offloads: list[OffloadStatus]


@dataclass(frozen=True, slots=True)
class Ping:
    """Master -> worker: are you there?  The answer is `Ready`."""


@dataclass(frozen=True, slots=True)
class RemoteEntry:
    """One server a client may connect to."""

    host: str
    port: int
    server_name: str
    """The name its certificate must have where no pin is given."""
    pins: list[str]
    """`pin-sha256:...`; one must match, and then neither CA nor name is looked at."""
    ca_pem: str


@dataclass(frozen=True, slots=True)
class HeldSession:
    """Worker -> master, which keeps it in memory for the next worker: how to go on with a session.

    Without a cookie: the session is over.
    """

    host: str
    """The remote that gave it, as the profile names it."""
    port: int
    at_host: str
    """Where the cookie holds: the remote, or where that redirected us."""
    at_port: int
    cookie: str = field(repr=False)
    address4: str
    address6: str
    outer: list[str]
    """Addresses of `at_host`, one of which was the right server's."""


@dataclass(frozen=True, slots=True)
class StartClient:
    """Master -> worker, first message in the client role; the TUN queue is beside it."""

    remotes: list[RemoteEntry]
    """In the order to be tried."""
    path: str
    """Path of the login page, `/` if none was asked for."""
    user: str
    certificate_pem: str
    key_pem: str = field(repr=False)
    allow_tls12: bool
    dtls: bool
    mtu: int
    """Largest inner packet to accept, 0 = what the server says."""
    hostname: str
    rekey_s: int
    reconnect_timeout_s: int
    """How long to try after a loss before giving up, 0 = for ever."""
    log_level: str
    sessions: list[HeldSession]
    """What earlier workers held, the one used last at the end."""
    renewed_pem: str = ""
    """A later certificate for the same key, to be shown instead of `certificate_pem`."""
    renew: bool = False
    """Whether to ask for a certificate before this one ends: there is a place to keep it."""
    log_anonymise: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """Worker -> master: the server asks something that only a person can answer."""

    message: str
    error: str | None
    inputs: list[FormInput]


@dataclass(frozen=True, slots=True)
class PromptReply:
    """Master -> worker: the answers by field name, or that there will be none."""

    values: dict[str, str] = field(repr=False)
    cancelled: bool
    reason: str = ""
    """Why there are none; empty: nobody is there."""


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Worker -> master: what the server gave; the same again after a reconnect."""

    address4: str
    prefix4: int
    address6: str
    prefix6: int
    mtu: int
    split_include: list[str]
    split_exclude: list[str]
    dns: list[str]
    default_domain: str
    remote: str
    """The outer address in use."""
    banner: str


@dataclass(frozen=True, slots=True)
class LinkReady:
    """Master -> worker: address and routes are in force, or why not."""

    refusal: str


@dataclass(frozen=True, slots=True)
class ClientState:
    """Worker -> master: how the connection is."""

    state: str
    """`resolving`, `connecting`, `logging-in`, `connected`, `reconnecting`, `waiting`."""
    reason: str
    remote: str
    attempt: int
    next_try_s: float


@dataclass(frozen=True, slots=True)
class CertificateRenewed:
    """Worker -> master: the server gave us our next certificate; keep it."""

    certificate_pem: str


@dataclass(frozen=True, slots=True)
class CertificateKept:
    """Master -> worker: the reply; with an empty `refusal` it may be shown from now on."""

    refusal: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Worker -> master: the client does not come back by itself."""

    reason: str
    exit_status: int


@dataclass(frozen=True, slots=True)
class NetworkChanged:
    """Master -> worker: look at once whether the server is still reached."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rotate:
    """Master -> worker: change all session keys now."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """Worker -> master: the reply."""

    ok: bool
    reason: str
    keys_age_s: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Either way: the reply to a query whose handler broke."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Master -> worker: close everything and exit; a server's sessions stay resumable."""

    good_bye: bool = True
    """A client tells its server that its session is over; else it may come back by its cookie."""


Message = (
    Start
    | Reload
    | Reloaded
    | Ready
    | LoginQuery
    | LoginReply
    | Logout
    | OpenQuery
    | OpenReply
    | TunnelTakesOver
    | TunnelProved
    | TunnelEnded
    | EndTunnel
    | AskRekey
    | StatusQuery
    | StatusReply
    | Stop
    | Failed
    | Ping
    | StartClient
    | HeldSession
    | Prompt
    | PromptReply
    | LinkUp
    | LinkReady
    | ClientState
    | CertificateRenewed
    | CertificateKept
    | Ended
    | NetworkChanged
    | Rotate
    | Rotated
)
TYPES = {kind.__name__: kind for kind in typing.get_args(Message)}
