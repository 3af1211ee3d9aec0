"""Names of users and clients, and the URI in a certificate that binds both.

The names become parts of file names, URIs and log lines, so they are plain by definition.
"""

import re

from vpnd.errors import ConfigError

NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")  # no slash, no leading dot: no path traversal
IDENTITY = re.compile(rf"pyvpn:user/({NAME.pattern})/client/({NAME.pattern})")


def check_name(name: str, what: str) -> str:
    """Return `name` if a user or client may be called so; raise ConfigError otherwise."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name[:64]!a} cannot be used as a name: begin with a-z or 0-9, "
            "go on with a-z, 0-9 or one of . _ @ -, at most 64 characters"
        )
    return name


def identity_uri(user: str, client: str) -> str:
    """Return the URI that names a client in its certificate."""
    return f"pyvpn:user/{check_name(user, 'user')}/client/{check_name(client, 'client')}"


def parse_identity_uri(uri: str) -> tuple[str, str] | None:
    """Return (user, client), or None for a URI that is not one of ours."""
    found = IDENTITY.fullmatch(uri)
    return (found[1], found[2]) if found else None
