"""The embedded store: the default, for one gateway."""

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from vpnd.store.contract import Client, Conflict, Feed, Kind, Lease, Session, Store, User
from vpnd.store.database import Database

Record = TypeVar("Record", User, Client, Session, Lease)
FILE_NAME = "pyvpn.sqlite"
Row = tuple[Any, ...]  # SQLite's own types; STRICT tables keep them


class _Table(Generic[Record]):
    """Records of one kind; columns in the order of `encode`, key first, revision last."""

    def __init__(
        self,
        database: Database,
        kind: Kind,
        columns: str,
        codec: tuple[Callable[[Record], Row], Callable[[Row], Record]],
        *,
        key_size: int = 1,
        durable: bool = True,
    ) -> None:
        self._database, self._kind, self._durable = database, kind, durable
        self._encode: Callable[[Record], Row] = codec[0]
        self._decode: Callable[[Row], Record] = codec[1]
        self._key_size = key_size
        names = columns.split()
        self._key_is = " AND ".join(f"{name} = ?" for name in names[:key_size])
        # S608: all text below is from the literals of this module, values are bound
        self._select = f"SELECT {', '.join(names)} FROM {kind} "  # noqa: S608
        self._revision = f"SELECT revision FROM {kind} WHERE {self._key_is}"  # noqa: S608
        self._delete = f"DELETE FROM {kind} WHERE {self._key_is}"  # noqa: S608
        self._upsert = (  # not INSERT OR REPLACE: that would delete whom we clash with
            f"INSERT INTO {kind} ({', '.join(names)}) "  # noqa: S608
            f"VALUES ({', '.join('?' * len(names))}) "
            f"ON CONFLICT ({', '.join(names[:key_size])}) DO UPDATE SET "
            + ", ".join(f"{name} = excluded.{name}" for name in names[key_size:])
        )

    def find(self, tail: str, *values: object) -> list[Record]:
        """Return the records that the rest of the query selects."""
        with self._database.decoding():
            return [
                self._decode(row) for row in self._database.select(self._select + tail, values)
            ]

    def get(self, *key: str) -> Record | None:
        return next(iter(self.find(f"WHERE {self._key_is}", *key)), None)

    def put(self, record: Record) -> Record:
        with self._database.transaction(durable=self._durable) as db:
            key = self._encode(record)[: self._key_size]
            stored = db.execute(self._revision, key).fetchone()
            if (stored[0] if stored else 0) != record.revision:
                raise Conflict(f"{self._kind}: {'/'.join(key)} was changed meanwhile; try again")
            written = replace(record, revision=self._database.note(self._kind, key))
            db.execute(self._upsert, self._encode(written))
        return written

    def remove(self, *key: str) -> None:
        with self._database.transaction(durable=self._durable) as db:
            self.remove_within(db, key)

    def remove_within(self, db: sqlite3.Connection, key: Sequence[str]) -> None:
        """Remove a record inside the caller's transaction."""
        if db.execute(self._delete, key).rowcount:
            self._database.note(self._kind, key)


_Owned = tuple[_Table[Client], _Table[Session]]


class SqliteUsers:
    """Users by name."""

    def __init__(self, database: Database, users: _Table[User], owned: _Owned) -> None:
        self._database, self._users = database, users
        self._clients, self._sessions = owned

    def get(self, name: str) -> User | None:
        return self._users.get(name)

    def all(self) -> list[User]:
        return self._users.find("ORDER BY name")

    def put(self, user: User) -> User:
        return self._users.put(user)

    def delete(self, name: str) -> None:
        with self._database.transaction(durable=True) as db:
            for session in self._sessions.find("WHERE user = ?", name):
                self._sessions.remove_within(db, (session.id,))
            for client in self._clients.find("WHERE user = ?", name):
                self._clients.remove_within(db, (client.user, client.name))
            self._users.remove_within(db, (name,))


class SqliteClients:
    """Clients by user and name."""

    def __init__(self, clients: _Table[Client]) -> None:
        self._clients = clients

    def get(self, user: str, name: str) -> Client | None:
        return self._clients.get(user, name)

    def by_serial(self, serial: str) -> Client | None:
        return next(iter(self._clients.find("WHERE serial = ?", serial)), None)

    def all(self) -> list[Client]:
        return self._clients.find("ORDER BY user, name")

    def put(self, client: Client) -> Client:
        return self._clients.put(client)

    def delete(self, user: str, name: str) -> None:
        self._clients.remove(user, name)


class SqliteSessions:
    """Sessions by id and by cookie hash."""

    def __init__(self, database: Database, sessions: _Table[Session]) -> None:
        self._database, self._sessions = database, sessions

    def get(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    def by_cookie(self, cookie_hash: bytes) -> Session | None:
        either = "WHERE cookie_hash = ? OR next_cookie_hash = ?"
        return next(iter(self._sessions.find(either, cookie_hash, cookie_hash)), None)

    def all(self) -> list[Session]:
        return self._sessions.find("ORDER BY created, id")

    def put(self, session: Session) -> Session:
        return self._sessions.put(session)

    def delete(self, session_id: str) -> None:
        self._sessions.remove(session_id)

    def expire(self, now: float, *, cookie_timeout_s: float) -> list[Session]:
        late = "WHERE expires_at <= ? OR disconnected_at + ? <= ? ORDER BY created, id"
        values = now, cookie_timeout_s, now
        if not self._sessions.find(late, *values):
            return []  # the usual case takes no lock
        with self._database.transaction(durable=False) as db:
            gone = self._sessions.find(late, *values)
            for session in gone:
                self._sessions.remove_within(db, (session.id,))
        return gone


class SqliteLeases:
    """Leases by key."""

    def __init__(self, leases: _Table[Lease]) -> None:
        self._leases = leases

    def get(self, key: str) -> Lease | None:
        return self._leases.get(key)

    def all(self) -> list[Lease]:
        return self._leases.find("ORDER BY position")

    def put(self, lease: Lease) -> Lease:
        return self._leases.put(lease)

    def delete(self, key: str) -> None:
        self._leases.remove(key)


class SqliteSettings:
    """Settings by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> str | None:
        rows = self._database.select("SELECT value FROM settings WHERE name = ?", (name,))
        return rows[0][0] if rows else None

    def put(self, name: str, value: str) -> None:
        self._write("INSERT OR REPLACE INTO settings VALUES (?, ?)", name, value)

    def keep(self, name: str, value: str) -> str:
        self._write("INSERT OR IGNORE INTO settings VALUES (?, ?)", name, value)
        kept = self.get(name)
        return value if kept is None else kept

    def _write(self, statement: str, name: str, value: str) -> None:
        with self._database.transaction(durable=True) as db:
            if db.execute(statement, (name, value)).rowcount:
                self._database.note(Kind.SETTING, (name,))


class SqliteStore:
    """All tables of one file; see `Database` for what opening it checks and raises."""

    def __init__(self, path: Path) -> None:
        self._database = database = Database(path)
        users = _Table[User](database, Kind.USER, USER_COLUMNS, (_user_row, _user))
        clients = _Table[Client](
            database, Kind.CLIENT, CLIENT_COLUMNS, (_client_row, _client), key_size=2
        )
        sessions = _Table[Session](
            database, Kind.SESSION, SESSION_COLUMNS, (_session_row, _session), durable=False
        )
        leases = _Table[Lease](
            database, Kind.LEASE, LEASE_COLUMNS, (_lease_row, _lease), durable=False
        )
        self.users = SqliteUsers(database, users, (clients, sessions))
        self.clients = SqliteClients(clients)
        self.sessions = SqliteSessions(database, sessions)
        self.leases = SqliteLeases(leases)
        self.settings = SqliteSettings(database)

    def since(self, revision: int) -> Feed:
        return self._database.since(revision)

    def close(self) -> None:
        self._database.close()


def open_store(state_dir: Path) -> Store:
    """Open, or make, the store of a state directory.  Raises StoreError."""
    return SqliteStore(state_dir / FILE_NAME)


USER_COLUMNS = "name groups password_hash disabled valid_until revision"
CLIENT_COLUMNS = "user name serial created not_after is_foreign revoked_at revision"
LEASE_COLUMNS = "key position last_used revision"
SESSION_COLUMNS = " ".join(field.name for field in fields(Session))


def _user_row(user: User) -> Row:
    groups = json.dumps(user.groups)
    hash_ = user.password_hash
    return user.name, groups, hash_, int(user.disabled), user.valid_until, user.revision


def _user(row: Row) -> User:
    name, groups, password_hash, disabled, valid_until, revision = row
    return User(
        name, tuple(json.loads(groups)), password_hash, bool(disabled), valid_until, revision
    )


def _client_row(client: Client) -> Row:
    identity = client.user, client.name, client.serial
    return (
        *identity,
        client.created,
        client.not_after,
        int(client.foreign),
        client.revoked_at,
        client.revision,
    )


def _client(row: Row) -> Client:
    user, name, serial, created, not_after, foreign, revoked_at, revision = row
    return Client(user, name, serial, created, not_after, bool(foreign), revoked_at, revision)


def _session_row(session: Session) -> Row:
    return tuple(getattr(session, field.name) for field in fields(Session))


def _session(row: Row) -> Session:
    return Session(*row)


def _lease_row(lease: Lease) -> Row:
    return lease.key, lease.index, lease.last_used, lease.revision


def _lease(row: Row) -> Lease:
    return Lease(*row)
