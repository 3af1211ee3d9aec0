"""The tables of the embedded database, as numbered migrations.

A migration that has been released is never edited: add the next one.
"""

import sqlite3
from collections.abc import Callable

APPLICATION_ID = 0x70797670  # "pyvp": marks the file as ours, sqlite.org/fileformat2.html


def _first(db: sqlite3.Connection) -> None:
    for statement in (
        "CREATE TABLE counter (revision INTEGER NOT NULL) STRICT",
        "INSERT INTO counter VALUES (0)",
        """CREATE TABLE changes (
            revision INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT NOT NULL,
            UNIQUE (kind, key)) STRICT""",
        """CREATE TABLE users (
            name TEXT NOT NULL PRIMARY KEY, groups TEXT NOT NULL, password_hash TEXT,
            disabled INTEGER NOT NULL, valid_until REAL, revision INTEGER NOT NULL) STRICT""",
        """CREATE TABLE clients (
            user TEXT NOT NULL REFERENCES users, name TEXT NOT NULL,
            serial TEXT NOT NULL UNIQUE, created REAL NOT NULL, not_after REAL NOT NULL,
            is_foreign INTEGER NOT NULL, revoked_at REAL, revision INTEGER NOT NULL,
            PRIMARY KEY (user, name)) STRICT""",
        """CREATE TABLE sessions (
            id TEXT NOT NULL PRIMARY KEY, cookie_hash BLOB NOT NULL UNIQUE,
            user TEXT NOT NULL REFERENCES users, client TEXT, lease_key TEXT NOT NULL,
            method TEXT NOT NULL, serial TEXT, created REAL NOT NULL, expires_at REAL,
            disconnected_at REAL, revision INTEGER NOT NULL) STRICT""",
        "CREATE INDEX sessions_by_user ON sessions (user)",
        """CREATE TABLE leases (
            key TEXT NOT NULL PRIMARY KEY, position INTEGER NOT NULL UNIQUE,
            last_used REAL NOT NULL, revision INTEGER NOT NULL) STRICT""",
        """CREATE TABLE settings (
            name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) STRICT""",
    ):
        db.execute(statement)


def _cookies_change(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE sessions ADD COLUMN next_cookie_hash BLOB")
    db.execute("CREATE INDEX sessions_by_next_cookie ON sessions (next_cookie_hash)")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_first, _cookies_change)
