"""A client's profile as values: one frozen dataclass for each table of the file.

`vpnctl client add` writes `[client]`, `[[remotes]]` and `[tls]`; whoever uses the profile may
add the rest.  The text under each field is its documentation; the defaults stand here and
nowhere else; what a file may say instead is checked in `vpnd.config.load_profile`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vpnd.config.model import DtlsOptions, HelperOptions, IpcOptions, LogOptions, Network

SYSTEM = "system"  # in the place of CA certificates: those that this system trusts
SYSTEM_CA = Path("/etc/ssl/certs/ca-certificates.crt")  # as Debian keeps them
EVERYTHING = "default"  # in a list of networks: all there is


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """`[client]`: who connects."""

    user: str = ""
    """The user's name; empty: the certificate says it, or the person is asked."""

    group: str = ""
    """Which of the groups to log in to, where the server offers several; empty: the person is
    asked, and where nobody is there the server's own choice holds."""

    name: str = ""
    """Name of this device; empty: the name of the profile's file."""

    path: str = "/"
    """What is asked of the server first; some servers have a path for each group of users."""


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """`[[remotes]]`: one server that may be connected to; several stand below one another."""

    host: str
    """From `address`, "HOST:PORT"; the port may be left out."""

    port: int
    """From `address`; 443 where it names none."""

    server_name: str
    """The name in its certificate; the host where it is left out."""

    pins: tuple[str, ...] = ()
    """"pin-sha256:..." of its keys: one must match, then CA and name need not."""

    priority: int | None = None
    """Lower ones are tried first, equal ones in a random order; all remotes have one or none."""


@dataclass(frozen=True, slots=True)
class ClientTlsOptions:
    """`[tls]`: keys and versions; all PEM stands in the file itself."""

    ca: str = ""
    """Certificates that the server's is checked against where no pin is given; "system":
    those that this system trusts."""

    certificate: str = ""
    """The client's certificate and the chain above it; empty: log in without one."""

    key: str = field(default="", repr=False)
    """The private key of `certificate`."""

    min_version: Literal["1.2", "1.3"] = "1.3"
    """Oldest TLS version to accept; ocserv as Debian configures it has no 1.3."""


@dataclass(frozen=True, slots=True)
class ClientNetworkOptions:
    """`[network]`: what goes through the tunnel."""

    interface: str = ""
    """Name of the TUN interface, pyvpn10 to pyvpn999; empty: the first that is free."""

    mtu: int = 0
    """Largest packet inside the tunnel in bytes, 576 to 9000; 0: what the server says."""

    include: tuple[Network, ...] | None = None
    """Networks to send through the tunnel whatever the server says; ["default"], kept as ():
    everything; left out: what the server says."""

    exclude: tuple[Network, ...] = ()
    """Networks to leave outside of the tunnel whatever the server says."""

    default_route: bool = True
    """Whether the server may take all traffic; otherwise only networks that it names."""

    block_ipv6: bool = True
    """Whether IPv6 is blocked while all IPv4 goes through a tunnel that has no IPv6."""

    script: Path | None = None
    """A vpnc-script that sets up addresses and routes instead of pyvpn's helper. It runs as user
    pyvpn-client without any privilege, so it must hand that work to a program that may do it, such
    as a service of yours behind a socket; a stock vpnc-script alone cannot."""


@dataclass(frozen=True, slots=True)
class ClientSessionOptions:
    """`[session]`: timers in seconds."""

    rekey_s: int = 3600
    """How often the tunnel gets new keys; 0: only after 2^31 packets."""

    reconnect_timeout_s: int = 0
    """How long to try to come back before giving up; 0: for ever."""


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """A whole profile; every table but `[[remotes]]`, and every key, may be left out."""

    remotes: tuple[RemoteOptions, ...]
    client: ClientOptions = field(default_factory=ClientOptions)
    tls: ClientTlsOptions = field(default_factory=ClientTlsOptions)
    network: ClientNetworkOptions = field(default_factory=ClientNetworkOptions)
    dtls: DtlsOptions = field(default_factory=DtlsOptions)
    session: ClientSessionOptions = field(default_factory=ClientSessionOptions)
    helper: HelperOptions = field(default_factory=HelperOptions)
    ipc: IpcOptions = field(default_factory=IpcOptions)
    log: LogOptions = field(default_factory=LogOptions)
