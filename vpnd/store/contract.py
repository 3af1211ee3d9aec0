"""What must outlive the process: users, clients, sessions, leases and small settings.

Rules that hold for every backend (tests/contracts/test_store.py):

- Calls are synchronous and short; the master makes them, never a worker.
- **Compare and set.**  A record carries the revision it was read at.  `put` writes only
  if the stored revision is still that one (0: if nothing is stored) and returns the
  record with its new revision; otherwise it raises `Conflict` and nothing has changed.
- Revisions come from one counter per store and only grow; `since` is the feed of changes.
- Each call is atomic.  Users, clients and settings are on the disk when a call returns,
  sessions and leases survive the death of the process.
- Time is an argument, in Unix seconds, because it is compared after a restart.
- Everything that fails is a `StoreError`, in one sentence with a remedy.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from vpnd.errors import StoreError
from vpnd.policy.leases import Lease

__all__ = [
    "FEED_LENGTH",
    "Change",
    "Client",
    "Clients",
    "Conflict",
    "Feed",
    "Kind",
    "Lease",
    "Leases",
    "Session",
    "Sessions",
    "Settings",
    "Store",
    "User",
    "Users",
]

NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")  # never a path, never a word of a URI
SERIAL = re.compile(r"[1-9a-f][0-9a-f]{0,39}")  # at most 20 octets, RFC 5280 section 4.1.2.2
COOKIE_HASH_SIZE = 32  # SHA-256
FEED_LENGTH = 10_000  # changes remembered; who is further behind reads everything again


class Conflict(StoreError):
    """Somebody else changed, made or removed the record first: read it again."""


@dataclass(frozen=True, slots=True)
class User:
    """A person or machine that may log in.

    `password_hash` is None for users that log in by certificate alone; `valid_until` is
    in Unix seconds, None for no end.
    """

    name: str
    groups: tuple[str, ...] = ()
    password_hash: str | None = field(default=None, repr=False)
    disabled: bool = False
    valid_until: float | None = None
    revision: int = 0

    def __post_init__(self) -> None:
        """Raise StoreError for a name that no user can have."""
        _check_name("user", self.name)
        for group in self.groups:
            _check_name("group", group)


@dataclass(frozen=True, slots=True)
class Client:
    """One device of a user: one certificate.

    `serial` is the certificate's serial number in lower-case hex without leading zeros
    (`format(certificate.serial_number, "x")`).  A revoked client stays known.
    """

    user: str
    name: str
    serial: str
    created: float
    not_after: float
    foreign: bool = False
    revoked_at: float | None = None
    revision: int = 0

    def __post_init__(self) -> None:
        """Raise StoreError for a name or serial number that no client can have."""
        _check_name("user", self.user)
        _check_name("client", self.name)
        if not SERIAL.fullmatch(self.serial):
            raise StoreError(
                f"client {self.name}: serial {self.serial[:48]!r} is not lower-case hex "
                "without leading zeros; issue the certificate again"
            )


@dataclass(frozen=True, slots=True)
class Session:
    """An authenticated user with a lease, and what it takes to resume by cookie.

    `expires_at` counts from the login and is never moved by a reconnect; None for no end.
    `disconnected_at` is set at an unclean end and cleared by the next CONNECT.
    `method` is the authentication method, `serial` the certificate's for "certificate".
    `next_cookie_hash` is that of a cookie which the client was given and has not used yet: until
    it does, both are good.
    """

    id: str
    cookie_hash: bytes = field(repr=False)
    user: str
    client: str | None
    lease_key: str
    method: str
    serial: str | None
    created: float
    expires_at: float | None
    disconnected_at: float | None = None
    next_cookie_hash: bytes | None = field(default=None, repr=False)
    revision: int = 0

    def __post_init__(self) -> None:
        """Raise StoreError where a cookie itself is about to be stored instead of its hash."""
        hashes = (self.cookie_hash, self.next_cookie_hash or self.cookie_hash)
        if any(len(each) != COOKIE_HASH_SIZE for each in hashes):
            raise StoreError(f"session {self.id}: the cookie must be stored as its SHA-256")

    def is_valid(self, now: float, *, cookie_timeout_s: float) -> bool:
        """Return True while the session lives or its cookie may still resume it."""
        if self.expires_at is not None and now >= self.expires_at:
            return False
        return self.disconnected_at is None or now < self.disconnected_at + cookie_timeout_s


class Kind(StrEnum):
    """What a change is about; the text is the table's name."""

    USER = "users"
    CLIENT = "clients"
    SESSION = "sessions"
    LEASE = "leases"
    SETTING = "settings"


@dataclass(frozen=True, slots=True)
class Change:
    """A record that was written or removed: read it by its key to learn which.

    `key` holds the arguments of that kind's `get`.
    """

    revision: int
    kind: Kind
    key: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Feed:
    """The latest change of each record after a revision, oldest first.

    `revision` is where the next call goes on.  Not `complete`: the caller is too far
    behind (or ahead: the store was put back from a copy) and must read everything again.
    """

    revision: int
    changes: tuple[Change, ...]
    complete: bool


class Users(Protocol):
    """The users by name."""

    def get(self, name: str) -> User | None: ...

    def all(self) -> Sequence[User]:
        """Return all users ordered by name."""
        ...

    def put(self, user: User) -> User: ...

    def delete(self, name: str) -> None:
        """Forget a user with all clients and sessions: a namesake must not inherit them."""
        ...


class Clients(Protocol):
    """The clients by user and name; serial numbers are unique."""

    def get(self, user: str, name: str) -> Client | None: ...

    def by_serial(self, serial: str) -> Client | None: ...

    def all(self) -> Sequence[Client]:
        """Return all clients ordered by user and name."""
        ...

    def put(self, client: Client) -> Client:
        """Write; raise Conflict too where the user is unknown or the serial number taken."""
        ...

    def delete(self, user: str, name: str) -> None:
        """Forget a client that never came to life; others are revoked, not deleted."""
        ...


class Sessions(Protocol):
    """The sessions by id and by the hash of their cookie; both are unique."""

    def get(self, session_id: str) -> Session | None: ...

    def by_cookie(self, cookie_hash: bytes) -> Session | None:
        """Return the session even when it is no longer valid: ask `is_valid`.

        It is found by its next cookie too.
        """
        ...

    def all(self) -> Sequence[Session]:
        """Return all sessions ordered by the time of their login."""
        ...

    def put(self, session: Session) -> Session:
        """Write; raise Conflict too where the user is unknown or the cookie taken."""
        ...

    def delete(self, session_id: str) -> None: ...

    def expire(self, now: float, *, cookie_timeout_s: float) -> Sequence[Session]:
        """Remove and return the sessions that are no longer valid."""
        ...


class Leases(Protocol):
    """The leases by key; indexes are unique."""

    def get(self, key: str) -> Lease | None: ...

    def all(self) -> Sequence[Lease]:
        """Return all leases ordered by index."""
        ...

    def put(self, lease: Lease) -> Lease:
        """Write; raise Conflict too where the index belongs to another key."""
        ...

    def delete(self, key: str) -> None: ...


class Settings(Protocol):
    """Small values that are chosen once and kept, such as the random IPv6 prefix."""

    def get(self, name: str) -> str | None: ...

    def put(self, name: str, value: str) -> None: ...

    def keep(self, name: str, value: str) -> str:
        """Store `value` unless there is one already; return the stored one."""
        ...


class Store(Protocol):
    """One database; deleting what is not there is no error."""

    @property
    def users(self) -> Users: ...

    @property
    def clients(self) -> Clients: ...

    @property
    def sessions(self) -> Sessions: ...

    @property
    def leases(self) -> Leases: ...

    @property
    def settings(self) -> Settings: ...

    def since(self, revision: int) -> Feed:
        """Return what has changed after `revision`."""
        ...

    def close(self) -> None: ...


def _check_name(what: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise StoreError(
            f"{what} name {name[:70]!r}: use 1 to 64 of a-z 0-9 . _ @ -, "
            "beginning with a letter or digit"
        )
