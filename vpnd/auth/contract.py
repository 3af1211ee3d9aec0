"""What an authentication method is: questions and answers, no transport.

A method keeps nothing between two calls: what it must remember of a half-finished login
travels in `Challenge.state`, which the login service holds beside the login cookie.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from vpnd.errors import AuthError
from vpnd.wire.auth_messages import Input


class Busy(AuthError):
    """Too many logins wait for an answer already; the peer should come back later."""


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """A client certificate whose chain and dates TLS has accepted.

    `user` and `client` come from its SAN (`URI:pyvpn:user/U/client/C`), None where it has
    no such name; `serial` is lower-case hex without leading zeros; `not_after` Unix seconds.
    """

    user: str | None
    client: str | None
    serial: str
    not_after: float


@dataclass(frozen=True, slots=True)
class Request:
    """One step of a login.  `fields` holds what the peer filled in; `now` is in Unix seconds."""

    fields: Mapping[str, str] = field(repr=False)  # passwords
    certificate: CertificateFacts | None
    group: str | None
    address: str
    now: float


@dataclass(frozen=True, slots=True)
class Challenge:
    """A question to the peer; `state` comes back to the method with the answer."""

    message: str
    inputs: tuple[Input, ...]
    state: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The peer is this user, and this client where a certificate said so."""

    user: str
    client: str | None = None
    serial: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """The peer is not let in.  `reason` is for the log, `message` all that the peer is told.

    `user` is the name that was claimed, unproven; `retry` the question to ask again, None
    where another try cannot help.
    """

    reason: str
    message: str
    user: str | None
    retry: Challenge | None = None


Outcome = Challenge | Accepted | Rejected


class AuthMethod(Protocol):
    """One way to prove who one is; one object serves all logins."""

    @property
    def name(self) -> str:
        """The word for it in `auth.methods`, in sessions and in the status."""
        ...

    async def start(self, request: Request) -> Outcome | None:
        """Begin a login with what the connection itself brought, not yet with `fields`.

        Returns None where this method has nothing to go on and nothing to ask.
        """
        ...

    async def answer(self, state: str | None, request: Request) -> Outcome:
        """Judge the answer to a challenge.  Raises Busy, StoreError."""
        ...
