"""One SQLite file: opened, migrated, locked and explained; what it holds is not known here.

Writes are transactions that take the lock at once (BEGIN IMMEDIATE), so that the read
of compare-and-set cannot go stale.  In WAL mode a commit needs no fsync to survive the
death of the process; `durable` ones are synced all the same, because a revocation must
outlive a power cut.  Logins are not: that would cost each of them a disk's turn.
"""

import json
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vpnd.errors import StoreError
from vpnd.store.contract import FEED_LENGTH, Change, Conflict, Feed, Kind
from vpnd.store.schema import APPLICATION_ID, MIGRATIONS

LOCK_TIMEOUT_S = 0.25  # the master waits this long at most for another program's write
CLASHES = {
    "SQLITE_CONSTRAINT_UNIQUE": "clashes with another record",
    "SQLITE_CONSTRAINT_PRIMARYKEY": "clashes with another record",
    "SQLITE_CONSTRAINT_FOREIGNKEY": "belongs to a user that does not exist; add the user first",
}
RESTORE = "stop pyvpn, move the file away and put a copy back"
REMEDIES = {
    sqlite3.SQLITE_BUSY: "is locked by another program; end that program and try again",
    sqlite3.SQLITE_LOCKED: "is locked by another program; end that program and try again",
    sqlite3.SQLITE_READONLY: "cannot be written; give file and directory to the user of vpnd",
    sqlite3.SQLITE_PERM: "cannot be opened; give file and directory to the user of vpnd",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; give file and directory to the user of vpnd",
    sqlite3.SQLITE_FULL: "cannot grow, the disk is full; free some space",
    sqlite3.SQLITE_IOERR: "cannot be read or written; look for disk errors in the kernel log",
    sqlite3.SQLITE_CORRUPT: f"is damaged; {RESTORE}",
    sqlite3.SQLITE_NOTADB: f"is not a database; {RESTORE}",
}


class Database:
    """A connection, for the thread that made it."""

    def __init__(self, path: Path) -> None:
        """Open the file, make it where it is missing, bring it up to date.

        Raises StoreError, also for a file that is not ours or from a newer version.
        """
        self._path = path
        with self._explained():
            _create_private(path)
            self._db = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        self._check_owner()
        if self._pragma("quick_check(1)") != "ok":
            raise StoreError(f"{self._path}: {REMEDIES[sqlite3.SQLITE_CORRUPT]}")
        if self._pragma("journal_mode = WAL") != "wal":
            raise StoreError(f"{self._path}: put the state directory on a local file system")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute("PRAGMA trusted_schema = OFF")
        self._db.execute("PRAGMA secure_delete = ON")  # what is forgotten is not left in the file
        if self._pragma("user_version") != len(MIGRATIONS):
            self._migrate()

    def _pragma(self, name: str) -> Any:  # a pragma answers with what it likes
        return self._db.execute(f"PRAGMA {name}").fetchone()[0]

    def _check_owner(self) -> None:
        """Refuse what is not ours before a byte of it is changed."""
        is_empty = not self._db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
        if not is_empty and self._pragma("application_id") != APPLICATION_ID:
            raise StoreError(f"{self._path}: is another program's database; move it away")
        version = self._pragma("user_version")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self._path}: was written by a newer pyvpn (schema {version}, this one "
                f"knows {len(MIGRATIONS)}); install that version again"
            )

    def _migrate(self) -> None:
        with self.transaction(durable=True) as db:
            self._check_owner()  # again: now nobody else can migrate
            for migration in MIGRATIONS[self._pragma("user_version") :]:
                migration(db)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def select(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return all rows.  Text that is no Unicode (a lone surrogate) is found nowhere."""
        with self._explained():
            try:
                return self._db.execute(query, values).fetchall()
            except UnicodeEncodeError:
                return []

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        """Hold the write lock for the block; whatever it raises takes it all back."""
        with self._explained():
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite rolls back by itself after some errors
                    self._db.execute("ROLLBACK")
                raise

    def note(self, kind: Kind, key: Sequence[str]) -> int:
        """Write a change into the feed, within a transaction; return its revision."""
        count = "UPDATE counter SET revision = revision + 1 RETURNING revision"
        revision: int = self._db.execute(count).fetchall()[0][0]
        row = (revision, kind, json.dumps(key))
        self._db.execute("INSERT OR REPLACE INTO changes VALUES (?, ?, ?)", row)
        self._db.execute("DELETE FROM changes WHERE revision <= ?", (revision - FEED_LENGTH,))
        return revision

    def since(self, revision: int) -> Feed:
        """Return the feed after `revision`, as `Store.since` does."""
        with self.decoding():
            rows = self.select(  # one statement is one snapshot
                "SELECT counter.revision, changes.revision, kind, key FROM counter "
                "LEFT JOIN changes ON changes.revision > ? ORDER BY changes.revision",
                (revision,),
            )
            current = rows[0][0]
            complete = current - FEED_LENGTH <= revision <= current
            changes = (
                Change(at, Kind(kind), tuple(json.loads(key)))
                for _, at, kind, key in rows
                if complete and at is not None
            )
            return Feed(current, tuple(changes), complete)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Turn what cannot be a record of ours into StoreError."""
        try:
            yield
        except (ValueError, TypeError, IndexError) as exc:
            raise StoreError(f"{self._path}: is damaged ({exc}); {RESTORE}") from exc

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:  # our bug, not the operator's trouble
            raise
        except sqlite3.Error as exc:
            raise _explain(self._path, exc) from exc
        except OSError as exc:
            raise StoreError(
                f"{self._path}: {exc.strerror}; the directory must exist "
                "and belong to the user of vpnd"
            ) from exc

    def close(self) -> None:
        self._db.close()


def _explain(path: Path, exc: sqlite3.Error) -> StoreError:
    clash = CLASHES.get(getattr(exc, "sqlite_errorname", ""))
    if clash is not None:
        return Conflict(f"{path}: the record {clash}")
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # the rest are its extended codes
    return StoreError(f"{path}: {REMEDIES.get(code, f'cannot be used ({exc}); {RESTORE}')}")


def _create_private(path: Path) -> None:
    """Make the file 0600 before SQLite sees it; its WAL and index files get the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        # No descriptor is opened here: closing it would drop the locks of another connection.
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise StoreError(f"{path}: is not a regular file; move it away") from None
        if mode & 0o077:
            path.chmod(0o600)
