"""What has to be in order before a server starts, and before it takes a new configuration."""

from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import IPv6Address
from pathlib import Path

from vpnd.config.model import ServerConfig
from vpnd.errors import ConfigError, VpnError
from vpnd.host.ipv6 import why_no_ipv6
from vpnd.pki.certificates import load_chain
from vpnd.pki.files import read_pem
from vpnd.pki.reading import not_before
from vpnd.protocol.tls_stream import server_context

ANY6 = IPv6Address(0)


class TooEarly(VpnError):
    """The clock is wrong, or a certificate is: worth another try when the clock was set."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What this host can do of a configuration."""

    config: ServerConfig
    left_out: str = ""
    """What it cannot, where that need not keep the server from working, and why."""


def check_keys(config: ServerConfig, state_dir: Path, now: datetime) -> None:
    """Raise ConfigError unless the keys and certificates can be used, TooEarly if not yet."""
    key = config.tls.key_file(state_dir)
    if b"ENCRYPTED" in read_pem(key):  # OpenSSL would ask the terminal, and wait
        raise ConfigError(
            f"{key}: has a passphrase, and a daemon has nobody to ask; "
            "take it off with openssl pkey -in FILE -out NEWFILE"
        )
    certificate = config.tls.certificate_file(state_dir)
    server_context(
        certificate=str(certificate),
        key=str(key),
        client_ca=str(config.tls.client_ca_file(state_dir)),
    )
    begin = not_before(load_chain(certificate)[0])
    if now < begin:
        raise TooEarly(
            f"{certificate}: the certificate is not valid before {begin:%Y-%m-%d %H:%M} UTC, "
            f"and the clock says {now:%Y-%m-%d %H:%M}; set the clock (timedatectl)"
        )


def fit(config: ServerConfig, config_file: Path) -> Fitted:
    """Return what this host can do: on a kernel without IPv6 a server works on IPv4.

    Raises ConfigError where IPv6 was asked for by address or network.
    """
    reason = why_no_ipv6()
    if not reason:
        return Fitted(config)
    server, network = config.server, config.network
    addresses = tuple(address for address in server.addresses if address != ANY6)
    by_name = [address for address in addresses if address.version == 6]
    if by_name or not addresses:
        raise ConfigError(
            f"{config_file}: server.addresses: cannot listen on {(*by_name, ANY6)[0]}, {reason}; "
            'use IPv4 addresses, as in ["0.0.0.0"]'
        )
    if network.ipv6 not in (None, "auto"):
        raise ConfigError(f'{config_file}: network.ipv6: {reason}; set it to ""')
    fitted = replace(
        config,
        server=replace(server, addresses=addresses),
        network=replace(network, ipv6=None),
    )
    return Fitted(fitted, "" if fitted == config else f"IPv4 only, {reason}")
