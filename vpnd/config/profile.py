"""A client's profile: one TOML file with all it takes to connect, keys included.

[client]     user, name
[[remotes]]  address "HOST:PORT", server_name, pins; tried in their order
[tls]        ca, certificate (with the issuing CA's behind it), key: PEM
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import tomli_w

HEADING = """\
# pyvpn client {name} of user {user}, valid until {until}.
# This file holds a private key: whoever reads it can connect as this client.

"""


@dataclass(frozen=True, slots=True)
class Remote:
    """One server that the client may connect to."""

    address: str
    """"HOST:PORT"."""

    server_name: str
    """The name in its certificate."""

    pins: tuple[str, ...]
    """"pin-sha256:..." of its keys, in use and next; one of them must match."""


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """One client's profile."""

    user: str
    name: str
    until: str
    """Last day of its certificate, for the heading."""

    remotes: Sequence[Remote]
    ca: str
    """Certificates that the server is checked against, PEM."""

    certificate: str
    """The client's certificate and the issuing CA's, PEM."""

    key: str = field(repr=False)
    """The client's private key, PEM."""


def encode_profile(profile: ClientProfile) -> bytes:
    """Return the text of a profile's file."""
    tables = {
        "client": {"user": profile.user, "name": profile.name},
        "remotes": [asdict(remote) for remote in profile.remotes],
        "tls": {"ca": profile.ca, "certificate": profile.certificate, "key": profile.key},
    }
    heading = HEADING.format(name=profile.name, user=profile.user, until=profile.until)
    return (heading + tomli_w.dumps(tables, multiline_strings=True)).encode()
