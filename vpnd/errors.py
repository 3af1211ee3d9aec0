"""The exceptions of pyvpn.  Their text is for operators: where it went wrong and what to do.

| class | what it says |
|---|---|
| VpnError | anything expected, explained in one sentence |
| ConfigError | what the operator wrote; exit status 2 |
| HelperError | the privileged helper is absent, or refused |
| RestartNeeded | parts of different versions meet; exit status 75, systemd starts us again |
| StoreError | the database cannot be read or written |
| AuthError | a login that cannot be carried out |
| ProtocolError | somebody broke the protocol |
| LocalProtocolError | it was us: a bug |
| RemoteProtocolError | it was the peer |
| Malformed | bytes that are not what they must be; all that wire/ raises |
"""


class VpnError(Exception):
    """Base of all errors that are expected and explained in one sentence."""

    exit_status = 1


class ConfigError(VpnError):
    """The configuration cannot be used; the text names file, key and remedy."""

    exit_status = 2


class HelperError(VpnError):
    """The privileged helper could not do what it was asked for."""


class RestartNeeded(VpnError):
    """Another part of pyvpn is of another version: an upgrade was made while this one ran."""

    exit_status = 75  # EX_TEMPFAIL: the next try may work


class StoreError(VpnError):
    """The store could not be read or written."""


class AuthError(VpnError):
    """A login could not be carried out (not: was refused)."""


class ProtocolError(VpnError):
    """Somebody broke the protocol."""


class LocalProtocolError(ProtocolError):
    """We were about to break the protocol: fix the code."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol."""


class Malformed(RemoteProtocolError):
    """The peer sent bytes that are not what they must be.

    `status` is the HTTP status that says so best, where HTTP is being spoken.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status
