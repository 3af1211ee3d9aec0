"""What the embedded store owes the operator: privacy, durability and plain words."""

import os
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vpnd.errors import StoreError
from vpnd.store.contract import Conflict, Lease, User
from vpnd.store.schema import APPLICATION_ID, MIGRATIONS
from vpnd.store.sqlite import FILE_NAME, SqliteStore, open_store


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_can_read_any_of_its_files(tmp_path: Path) -> None:
    """Password hashes are in the write-ahead log before they are in the database."""
    old = os.umask(0)
    try:
        store = open_store(tmp_path)
        store.users.put(User("alice", password_hash="x"))
    finally:
        os.umask(old)
    modes = {path.name: _mode(path) for path in tmp_path.iterdir()}
    store.close()
    assert modes == dict.fromkeys((FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm"), 0o600)


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    """Somebody copied it back with the wrong mode."""
    open_store(tmp_path).close()
    (tmp_path / FILE_NAME).chmod(0o644)
    open_store(tmp_path).close()
    assert _mode(tmp_path / FILE_NAME) == 0o600


def test_everything_is_there_again_after_a_restart(tmp_path: Path) -> None:
    """Including the revisions, so that the feed goes on."""
    store = open_store(tmp_path)
    alice = store.users.put(User("alice"))
    lease = store.leases.put(Lease("user:alice#0", 2, 5.0))
    feed = store.since(0)
    store.close()
    store = open_store(tmp_path)
    assert store.users.get("alice") == alice
    assert store.leases.get(lease.key) == lease
    assert store.since(0) == feed
    assert store.users.put(replace(alice, disabled=True)).revision == feed.revision + 1
    store.close()


CRASH = """
import os, signal, sys
from pathlib import Path
from vpnd.store.contract import Lease, User
from vpnd.store.sqlite import SqliteStore
store = SqliteStore(Path(sys.argv[1]))
store.users.put(User("alice"))
store.leases.put(Lease("user:alice#0", 2, 5.0))
with store._database.transaction(durable=False) as db:
    db.execute("DELETE FROM users")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_put_survives_kill_and_what_was_half_done_does_not(tmp_path: Path) -> None:
    """Sessions come back after a crash; a transaction is all or nothing."""
    path = tmp_path / FILE_NAME
    ended = subprocess.run([sys.executable, "-c", CRASH, str(path)], check=False)
    assert ended.returncode == -9
    store = SqliteStore(path)
    assert store.users.get("alice") is not None
    assert [lease.key for lease in store.leases.all()] == ["user:alice#0"]
    store.close()


def test_two_programs_see_each_others_writes_and_conflicts(tmp_path: Path) -> None:
    """Compare and set holds across connections, not only inside one."""
    one, two = open_store(tmp_path), open_store(tmp_path)
    alice = one.users.put(User("alice"))
    assert two.users.get("alice") == alice
    two.users.put(replace(alice, disabled=True))
    with pytest.raises(Conflict):
        one.users.put(replace(alice, groups=("x",)))
    one.close()
    assert two.users.get("alice") == replace(alice, disabled=True, revision=2)
    two.close()


def test_a_lock_that_stays_is_explained_and_later_calls_work(tmp_path: Path) -> None:
    """A forgotten sqlite3 shell must not hang or end the daemon."""
    store = open_store(tmp_path)
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=rf"{FILE_NAME}: is locked by another program; end"):
        store.users.put(User("alice"))
    assert store.users.all() == []  # readers do not wait
    other.execute("ROLLBACK")
    other.close()
    store.users.put(User("alice"))
    store.close()


@pytest.mark.parametrize(
    ("pragma", "text"),
    [
        ("query_only = ON", "cannot be written; give file and directory to the user of vpnd"),
        ("max_page_count = 1", "cannot grow, the disk is full; free some space"),
    ],
)
def test_a_disk_that_takes_no_more_is_explained_and_loses_nothing(
    tmp_path: Path, pragma: str, text: str
) -> None:
    """Read-only and full file systems, as SQLite itself reports them."""
    store = SqliteStore(tmp_path / FILE_NAME)
    alice = store.users.put(User("alice"))
    store._database._db.execute(f"PRAGMA {pragma}")
    with pytest.raises(StoreError, match=text):
        store.settings.put("large", "x" * 1_000_000)
    assert store.users.get("alice") == alice
    store.close()


def test_a_file_of_something_else_is_explained_and_left_alone(tmp_path: Path) -> None:
    """The operator named, or restored, the wrong file."""
    path = tmp_path / FILE_NAME
    path.write_bytes(b"this is a text and not a database" * 100)
    with pytest.raises(StoreError, match="is not a database; stop pyvpn, move the file away"):
        open_store(tmp_path)
    assert path.read_bytes().startswith(b"this is a text")


def test_a_damaged_file_is_refused_at_the_start(tmp_path: Path) -> None:
    """Better no server than one that has forgotten its revocations."""
    store = open_store(tmp_path)
    for number in range(300):
        store.users.put(User(f"user-{number}", groups=("g" * 60,)))
    store.close()
    path = tmp_path / FILE_NAME
    content = bytearray(path.read_bytes())
    for page in range(2, len(content) // 4096):
        content[page * 4096 + 8 : page * 4096 + 200] = os.urandom(192)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged; stop pyvpn, move the file away"):
        open_store(tmp_path)


def test_a_damaged_record_is_explained(tmp_path: Path) -> None:
    """Somebody edited the database by hand."""
    store = SqliteStore(tmp_path / FILE_NAME)
    store.users.put(User("alice"))
    store._database._db.execute("UPDATE users SET groups = '{'")
    with pytest.raises(StoreError, match="is damaged"):
        store.users.all()
    store.close()


def test_another_programs_database_is_not_written_to(tmp_path: Path) -> None:
    """Tables of ours in somebody else's file would be hard to undo."""
    other = sqlite3.connect(tmp_path / FILE_NAME)
    other.execute("CREATE TABLE theirs (x)")
    other.commit()
    other.close()
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(StoreError, match="is another program's database; move it away"):
        open_store(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """A downgrade must not write what the newer version would misread."""
    open_store(tmp_path).close()
    other = sqlite3.connect(tmp_path / FILE_NAME)
    other.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    other.close()
    with pytest.raises(StoreError, match=r"written by a newer pyvpn .* install that version"):
        open_store(tmp_path)


def test_a_migration_that_fails_leaves_the_old_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade is all or nothing, and the next start tries again."""
    open_store(tmp_path).close()

    def broken(db: sqlite3.Connection) -> None:
        db.execute("ALTER TABLE users ADD COLUMN colour TEXT")
        db.execute("ALTER TABLE absent ADD COLUMN colour TEXT")

    monkeypatch.setattr("vpnd.store.database.MIGRATIONS", (*MIGRATIONS, broken))
    with pytest.raises(StoreError, match="no such table"):
        open_store(tmp_path)
    monkeypatch.undo()
    open_store(tmp_path).close()


def test_the_file_says_whose_it_is(tmp_path: Path) -> None:
    """`file` and our own check read the application id."""
    open_store(tmp_path).close()
    head = (tmp_path / FILE_NAME).read_bytes()[:100]
    assert int.from_bytes(head[68:72], "big") == APPLICATION_ID


@pytest.mark.parametrize("kind", ["absent", "file", "link", "folder"])
def test_a_place_where_no_file_can_be_is_explained(tmp_path: Path, kind: str) -> None:
    """State directory missing, or something else in the way; a link is never followed."""
    folder = tmp_path / "state"
    if kind == "file":
        folder.write_text("")
    elif kind != "absent":
        folder.mkdir()
    if kind == "folder":
        (folder / FILE_NAME).mkdir()
    elif kind == "link":
        (folder / FILE_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=rf"{FILE_NAME}: .*(must exist|move it away)"):
        open_store(folder)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_told_whose_it_must_be() -> None:
    """`vpnd` started by hand as the wrong user."""
    code = (
        "import pathlib, vpnd.errors, vpnd.store.sqlite, sys, os\n"
        "os.setuid(65534)\n"
        "try: vpnd.store.sqlite.open_store(pathlib.Path(sys.argv[1]))\n"
        "except vpnd.errors.StoreError as exc: print(exc)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, "/root"], check=True, capture_output=True, text=True
    ).stdout
    assert "belong to the user of vpnd" in said
