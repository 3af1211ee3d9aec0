"""The store as dictionaries: the reference for the contract suite, and for tests of others."""

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Generic, TypeVar

from vpnd.store.contract import (
    FEED_LENGTH,
    Change,
    Client,
    Conflict,
    Feed,
    Kind,
    Lease,
    Session,
    User,
)

Record = TypeVar("Record", User, Client, Session, Lease)
Key = tuple[str, ...]


class _Journal:
    """The counter of revisions and the latest change of each record."""

    def __init__(self) -> None:
        self.revision = 0
        self._changes: dict[tuple[Kind, Key], int] = {}  # oldest first

    def note(self, kind: Kind, key: Key) -> int:
        self.revision += 1
        self._changes.pop((kind, key), None)
        self._changes[kind, key] = self.revision
        while len(self._changes) > FEED_LENGTH:
            del self._changes[next(iter(self._changes))]
        return self.revision

    def since(self, revision: int) -> Feed:
        complete = self.revision - FEED_LENGTH <= revision <= self.revision
        changes = (Change(at, kind, key) for (kind, key), at in self._changes.items())
        return Feed(
            self.revision,
            tuple(c for c in changes if c.revision > revision) if complete else (),
            complete,
        )


class _Table(Generic[Record]):
    """Records by key, with one more unique value each (`unique`, None: no such value)."""

    def __init__(
        self,
        journal: _Journal,
        kind: Kind,
        key: Callable[[Record], Key],
        unique: Callable[[Record], Hashable] | None = None,
    ) -> None:
        self._journal, self._kind = journal, kind
        self._key: Callable[[Record], Key] = key
        self._unique: Callable[[Record], Hashable] | None = unique
        self.rows: dict[Key, Record] = {}

    def put(self, record: Record) -> Record:
        key = self._key(record)
        stored = self.rows.get(key)
        if (stored.revision if stored else 0) != record.revision:
            raise Conflict(f"{self._kind}: {'/'.join(key)} was changed meanwhile; try again")
        if self._is_taken(record):
            raise Conflict(f"{self._kind}: {'/'.join(key)} clashes with another record")
        written = replace(record, revision=self._journal.note(self._kind, key))
        self.rows[key] = written
        return written

    def _is_taken(self, record: Record) -> bool:
        if self._unique is None:
            return False
        mine = self._unique(record)
        return any(
            self._unique(other) == mine and self._key(other) != self._key(record)
            for other in self.rows.values()
        )

    def remove(self, key: Key) -> None:
        if self.rows.pop(key, None) is not None:
            self._journal.note(self._kind, key)


class MemoryUsers:
    """Users by name."""

    def __init__(self, users: _Table[User], owned: tuple[_Table[Client], _Table[Session]]) -> None:
        self._users = users
        self._clients, self._sessions = owned

    def get(self, name: str) -> User | None:
        return self._users.rows.get((name,))

    def all(self) -> list[User]:
        return sorted(self._users.rows.values(), key=lambda user: user.name)

    def put(self, user: User) -> User:
        return self._users.put(user)

    def delete(self, name: str) -> None:
        for key in [k for k, session in self._sessions.rows.items() if session.user == name]:
            self._sessions.remove(key)
        for key in [k for k, client in self._clients.rows.items() if client.user == name]:
            self._clients.remove(key)
        self._users.remove((name,))


class MemoryClients:
    """Clients by user and name."""

    def __init__(self, clients: _Table[Client], users: _Table[User]) -> None:
        self._clients, self._users = clients, users

    def get(self, user: str, name: str) -> Client | None:
        return self._clients.rows.get((user, name))

    def by_serial(self, serial: str) -> Client | None:
        return next((c for c in self._clients.rows.values() if c.serial == serial), None)

    def all(self) -> list[Client]:
        return sorted(self._clients.rows.values(), key=lambda client: (client.user, client.name))

    def put(self, client: Client) -> Client:
        _check_user(self._users, client.user)
        return self._clients.put(client)

    def delete(self, user: str, name: str) -> None:
        self._clients.remove((user, name))


class MemorySessions:
    """Sessions by id and by cookie hash."""

    def __init__(self, sessions: _Table[Session], users: _Table[User]) -> None:
        self._sessions, self._users = sessions, users

    def get(self, session_id: str) -> Session | None:
        return self._sessions.rows.get((session_id,))

    def by_cookie(self, cookie_hash: bytes) -> Session | None:
        rows = self._sessions.rows.values()
        good = (s for s in rows if cookie_hash in (s.cookie_hash, s.next_cookie_hash))
        return next(good, None)

    def all(self) -> list[Session]:
        return sorted(self._sessions.rows.values(), key=lambda s: (s.created, s.id))

    def put(self, session: Session) -> Session:
        _check_user(self._users, session.user)
        return self._sessions.put(session)

    def delete(self, session_id: str) -> None:
        self._sessions.remove((session_id,))

    def expire(self, now: float, *, cookie_timeout_s: float) -> list[Session]:
        gone = [s for s in self.all() if not s.is_valid(now, cookie_timeout_s=cookie_timeout_s)]
        for session in gone:
            self.delete(session.id)
        return gone


class MemoryLeases:
    """Leases by key."""

    def __init__(self, leases: _Table[Lease]) -> None:
        self._leases = leases

    def get(self, key: str) -> Lease | None:
        return self._leases.rows.get((key,))

    def all(self) -> list[Lease]:
        return sorted(self._leases.rows.values(), key=lambda lease: lease.index)

    def put(self, lease: Lease) -> Lease:
        return self._leases.put(lease)

    def delete(self, key: str) -> None:
        self._leases.remove((key,))


class MemorySettings:
    """Settings by name."""

    def __init__(self, journal: _Journal) -> None:
        self._journal = journal
        self._values: dict[str, str] = {}

    def get(self, name: str) -> str | None:
        return self._values.get(name)

    def put(self, name: str, value: str) -> None:
        self._values[name] = value
        self._journal.note(Kind.SETTING, (name,))

    def keep(self, name: str, value: str) -> str:
        if name not in self._values:
            self.put(name, value)
        return self._values[name]


class MemoryStore:
    """A store that ends with the process."""

    def __init__(self) -> None:
        self._journal = _Journal()
        users = _Table[User](self._journal, Kind.USER, lambda u: (u.name,))
        clients = _Table[Client](
            self._journal, Kind.CLIENT, lambda c: (c.user, c.name), lambda c: c.serial
        )
        sessions = _Table[Session](
            self._journal, Kind.SESSION, lambda s: (s.id,), lambda s: s.cookie_hash
        )
        leases = _Table[Lease](
            self._journal, Kind.LEASE, lambda lease: (lease.key,), lambda lease: lease.index
        )
        self.users = MemoryUsers(users, (clients, sessions))
        self.clients = MemoryClients(clients, users)
        self.sessions = MemorySessions(sessions, users)
        self.leases = MemoryLeases(leases)
        self.settings = MemorySettings(self._journal)

    def since(self, revision: int) -> Feed:
        return self._journal.since(revision)

    def close(self) -> None:
        """Forget nothing: there is nothing to close."""


def _check_user(users: _Table[User], name: str) -> None:
    if (name,) not in users.rows:
        raise Conflict(f"users: there is no {name}; add the user first")
