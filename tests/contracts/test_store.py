"""The rules of vpnd.store.contract, over every backend."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpnd.auth.cookies import cookie_hash
from vpnd.errors import StoreError
from vpnd.store.contract import (
    FEED_LENGTH,
    Change,
    Client,
    Conflict,
    Kind,
    Lease,
    Session,
    Store,
    User,
)
from vpnd.store.memory import MemoryStore
from vpnd.store.sqlite import SqliteStore


def _memory(_: Path) -> Store:
    return MemoryStore()


def _sqlite(folder: Path) -> Store:
    return SqliteStore(folder / "store.sqlite")


BACKENDS: dict[str, Callable[[Path], Store]] = {"memory": _memory, "sqlite": _sqlite}

ALICE = User("alice", ("staff", "it"), "$scrypt$...", valid_until=2e9)
LAPTOP = Client("alice", "laptop", "1f", created=1.5, not_after=9.5)
SESSION = Session(
    id="s1",
    cookie_hash=cookie_hash("c1"),
    user="alice",
    client="laptop",
    lease_key="client:alice/laptop",
    method="certificate",
    serial="1f",
    created=1.0,
    expires_at=90.0,
)


@pytest.fixture(params=sorted(BACKENDS))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = BACKENDS[request.param](tmp_path)
    yield opened
    opened.close()


def test_records_come_back_as_they_were_put(store: Store) -> None:
    """Whatever a backend does with types, a reader sees equal values."""
    user = store.users.put(ALICE)
    client = store.clients.put(LAPTOP)
    session = store.sessions.put(SESSION)
    lease = store.leases.put(Lease("user:alice#0", 2, 7.25))
    assert store.users.get("alice") == user == replace(ALICE, revision=user.revision)
    assert store.clients.get("alice", "laptop") == client == store.clients.by_serial("1f")
    assert store.sessions.get("s1") == session == store.sessions.by_cookie(cookie_hash("c1"))
    assert store.leases.get("user:alice#0") == lease
    revisions = [record.revision for record in (user, client, session, lease)]
    assert revisions == sorted(set(revisions))
    assert revisions[0] > 0


def test_every_field_of_a_record_can_change(store: Store) -> None:
    """A column left out of an update would undo a revocation at the next start."""
    user = store.users.put(ALICE)
    user = store.users.put(replace(user, groups=(), password_hash=None, disabled=True))
    user = store.users.put(replace(user, valid_until=None))
    assert store.users.get("alice") == user
    client = store.clients.put(LAPTOP)
    client = store.clients.put(replace(client, foreign=True, revoked_at=3.0, serial="2a"))
    assert store.clients.by_serial("2a") == client
    assert store.clients.by_serial("1f") is None
    session = store.sessions.put(SESSION)
    moved = replace(session, cookie_hash=cookie_hash("c2"), disconnected_at=4.0, client=None)
    session = store.sessions.put(moved)
    assert store.sessions.by_cookie(cookie_hash("c1")) is None
    assert store.sessions.by_cookie(cookie_hash("c2")) == session
    session = store.sessions.put(replace(session, next_cookie_hash=cookie_hash("c3")))
    assert store.sessions.by_cookie(cookie_hash("c2")) == session
    assert store.sessions.by_cookie(cookie_hash("c3")) == session
    session = store.sessions.put(replace(session, next_cookie_hash=None))
    assert store.sessions.by_cookie(cookie_hash("c3")) is None


def test_what_is_not_there_is_none_and_may_be_deleted(store: Store) -> None:
    """Absence is an answer, not an error."""
    for key in ("nobody", "", "a\0b", "\ud800", "x" * 5000):
        assert store.users.get(key) is None
        assert store.clients.get(key, key) is None
        assert store.clients.by_serial(key) is None
        assert store.sessions.get(key) is None
        assert store.leases.get(key) is None
        assert store.settings.get(key) is None
    assert store.sessions.by_cookie(b"") is None
    store.users.delete("nobody")
    store.clients.delete("no", "body")
    store.sessions.delete("none")
    store.leases.delete("none")
    assert store.since(0).changes == ()


def test_writing_over_a_change_that_was_not_seen_is_a_conflict(store: Store) -> None:
    """Two administrators, or two gateways, must not silently undo each other."""
    first = store.users.put(ALICE)
    store.users.put(replace(first, disabled=True))
    with pytest.raises(Conflict, match="changed meanwhile"):
        store.users.put(replace(first, groups=()))
    kept = store.users.get("alice")
    assert kept is not None
    assert kept.disabled
    assert kept.groups == ("staff", "it")


def test_making_what_exists_or_changing_what_is_gone_is_a_conflict(store: Store) -> None:
    """Revision 0 says "it does not exist yet", any other says "it does"."""
    user = store.users.put(ALICE)
    with pytest.raises(Conflict):
        store.users.put(ALICE)
    store.users.delete("alice")
    with pytest.raises(Conflict):
        store.users.put(user)
    assert store.users.get("alice") is None


def test_a_conflict_changes_nothing_and_costs_no_revision(store: Store) -> None:
    """A refused write must not show up in the feed."""
    store.users.put(ALICE)
    store.leases.put(Lease("a", 2, 0.0))
    before = store.since(0)
    with pytest.raises(Conflict):
        store.users.put(ALICE)
    with pytest.raises(Conflict):
        store.leases.put(Lease("b", 2, 0.0))
    assert store.since(0) == before
    assert [lease.key for lease in store.leases.all()] == ["a"]


def test_unique_values_stay_unique(store: Store) -> None:
    """Two sessions with one cookie, or two leases of one address, are a break-in."""
    store.users.put(ALICE)
    store.clients.put(LAPTOP)
    store.sessions.put(SESSION)
    store.leases.put(Lease("a", 2, 0.0))
    other = store.leases.put(Lease("b", 3, 0.0))
    with pytest.raises(Conflict):
        store.clients.put(replace(LAPTOP, name="phone"))
    with pytest.raises(Conflict):
        store.sessions.put(replace(SESSION, id="s2"))
    with pytest.raises(Conflict):
        store.leases.put(replace(other, index=2))
    assert len(store.clients.all()) == len(store.sessions.all()) == 1
    assert [(lease.key, lease.index) for lease in store.leases.all()] == [("a", 2), ("b", 3)]


def test_clients_and_sessions_need_their_user(store: Store) -> None:
    """A user deleted during the login must not get a session."""
    with pytest.raises(Conflict, match="add the user first"):
        store.clients.put(LAPTOP)
    with pytest.raises(Conflict, match="add the user first"):
        store.sessions.put(SESSION)


def test_a_deleted_user_leaves_nothing_to_a_namesake(store: Store) -> None:
    """Certificates and cookies of the old bearer of a name must not come to life again."""
    for user in (ALICE, User("bob")):
        store.users.put(user)
    store.clients.put(LAPTOP)
    store.clients.put(replace(LAPTOP, user="bob", serial="2f"))
    store.sessions.put(SESSION)
    store.sessions.put(replace(SESSION, id="s2", user="bob", cookie_hash=cookie_hash("c2")))
    start = store.since(0).revision
    store.users.delete("alice")
    store.users.put(ALICE)
    assert [client.user for client in store.clients.all()] == ["bob"]
    assert [session.user for session in store.sessions.all()] == ["bob"]
    touched = {(change.kind, change.key) for change in store.since(start).changes}
    assert touched == {
        (Kind.USER, ("alice",)),
        (Kind.CLIENT, ("alice", "laptop")),
        (Kind.SESSION, ("s1",)),
    }


def test_lists_are_ordered(store: Store) -> None:
    """Tables for people do not jump about."""
    for name in ("carol", "alice", "bob"):
        store.users.put(User(name))
        store.clients.put(Client(name, "z", format(ord(name[0]), "x"), 0.0, 1.0))
        store.leases.put(Lease(name, 200 - ord(name[0]), 0.0))
    for number, created in ((1, 9.0), (2, 3.0), (3, 3.0)):
        store.sessions.put(
            replace(
                SESSION, id=f"s{number}", cookie_hash=cookie_hash(str(number)), created=created
            )
        )
    assert [user.name for user in store.users.all()] == ["alice", "bob", "carol"]
    assert [client.user for client in store.clients.all()] == ["alice", "bob", "carol"]
    assert [lease.key for lease in store.leases.all()] == ["carol", "bob", "alice"]
    assert [session.id for session in store.sessions.all()] == ["s2", "s3", "s1"]


@pytest.mark.parametrize(
    ("expires_at", "disconnected_at", "now", "lives"),
    [
        (None, None, 1e9, True),  # no end, connected
        (50.0, None, 49.9, True),
        (50.0, None, 50.0, False),  # session_timeout ends a connected session too
        (None, 40.0, 49.9, True),
        (None, 40.0, 50.0, False),  # cookie_timeout after an unclean end
        (45.0, 40.0, 44.9, True),
        (45.0, 40.0, 45.0, False),  # cookie_timeout never reaches past session_timeout
        (50.0, 60.0, 49.0, True),  # the clock was put back
    ],
)
def test_sessions_expire_exactly_when_they_are_no_longer_valid(
    store: Store, expires_at: float | None, disconnected_at: float | None, now: float, lives: bool
) -> None:
    """The check at CONNECT and the cleaning agree, or a cookie lives longer than it says."""
    store.users.put(ALICE)
    session = store.sessions.put(
        replace(SESSION, expires_at=expires_at, disconnected_at=disconnected_at)
    )
    assert session.is_valid(now, cookie_timeout_s=10) is lives
    expired = store.sessions.expire(now, cookie_timeout_s=10)
    assert list(expired) == ([] if lives else [session])
    assert list(store.sessions.all()) == ([session] if lives else [])


def test_settings_keep_the_first_value_unless_put(store: Store) -> None:
    """A random prefix is chosen once, also by two that start together."""
    assert store.settings.keep("network.ipv6", "fd00::/64") == "fd00::/64"
    assert store.settings.keep("network.ipv6", "fd11::/64") == "fd00::/64"
    assert store.since(0).revision == 1
    store.settings.put("network.ipv6", "fd22::/64")
    assert store.settings.get("network.ipv6") == "fd22::/64"
    assert store.settings.keep("network.ipv6", "fd33::/64") == "fd22::/64"


def test_the_feed_names_the_latest_change_of_each_record_in_order(store: Store) -> None:
    """A reader that applies it has seen everything."""
    user = store.users.put(ALICE)
    start = store.since(0).revision
    store.settings.put("x", "1")
    store.users.put(replace(user, disabled=True))
    store.settings.put("x", "2")
    feed = store.since(start)
    assert feed.complete
    assert feed.changes == (
        Change(3, Kind.USER, ("alice",)),
        Change(4, Kind.SETTING, ("x",)),
    )
    assert feed.revision == 4
    assert store.since(feed.revision).changes == ()


def test_a_reader_that_is_ahead_must_read_everything_again(store: Store) -> None:
    """The store was put back from a copy: its revisions mean something else now."""
    store.users.put(ALICE)
    feed = store.since(2)
    assert not feed.complete
    assert feed.changes == ()
    assert feed.revision == 1


def test_a_reader_that_is_too_far_behind_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed is bounded, and never pretends to be whole."""
    for module in ("memory", "database"):
        monkeypatch.setattr(f"vpnd.store.{module}.FEED_LENGTH", 3)
    for number in range(5):
        store.settings.put(f"n{number}", "x")
    assert not store.since(1).complete
    feed = store.since(2)
    assert feed.complete
    assert [change.key for change in feed.changes] == [("n2",), ("n3",), ("n4",)]
    assert FEED_LENGTH > 1000


@pytest.mark.parametrize(
    "name", ["", "Alice", "../x", "a/b", "a b", ".a", "-a", "a\n", "a" * 65, "é", "a\0"]
)
def test_names_that_could_be_paths_or_markup_are_refused(name: str) -> None:
    """Names get into certificates, file names, logs and lease keys."""
    with pytest.raises(StoreError, match="use 1 to 64 of"):
        User(name)
    with pytest.raises(StoreError, match="use 1 to 64 of"):
        Client("alice", name, "1f", 0.0, 1.0)


@pytest.mark.parametrize("serial", ["", "0", "01", "1F", "0x1f", "1f ", "f" * 41])
def test_a_serial_number_has_one_spelling(serial: str) -> None:
    """Comparing two spellings of one number would lock a client out, or let a revoked one in."""
    with pytest.raises(StoreError, match="serial"):
        replace(LAPTOP, serial=serial)


def test_a_cookie_itself_is_never_stored() -> None:
    """A stolen copy of the store must open no tunnel; the text shows no secret either."""
    for name in ("cookie_hash", "next_cookie_hash"):
        with pytest.raises(StoreError, match="SHA-256"):
            replace(SESSION, **{name: b"the cookie itself"})
    assert "cookie_hash" not in repr(SESSION)
    assert "scrypt" not in repr(ALICE)


NAMES = st.sampled_from(["a", "b", "c"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("user"), NAMES, st.booleans()),
        st.tuples(st.just("drop user"), NAMES),
        st.tuples(st.just("client"), NAMES, NAMES, st.sampled_from(["1", "2", "3"])),
        st.tuples(st.just("session"), NAMES, NAMES, st.sampled_from([None, 5.0, 50.0])),
        st.tuples(st.just("lease"), NAMES, st.integers(2, 4)),
        st.tuples(st.just("drop lease"), NAMES),
        st.tuples(st.just("expire"), st.sampled_from([4.0, 5.0, 60.0])),
        st.tuples(st.just("keep"), NAMES, NAMES),
    ),
    max_size=25,
)


def _apply(store: Store, step: tuple[object, ...]) -> object:
    match step:
        case ("user", str(name), bool(disabled)):
            known = store.users.get(name) or User(name)
            return store.users.put(replace(known, disabled=disabled))
        case ("drop user", str(name)):
            store.users.delete(name)
        case ("client", str(user), str(name), str(serial)):
            client = store.clients.get(user, name) or Client(user, name, serial, 0.0, 9.0)
            return store.clients.put(replace(client, serial=serial))
        case ("session", str(user), str(name), expires):
            known_session = store.sessions.get(name) or replace(SESSION, id=name, user=user)
            assert expires is None or isinstance(expires, float)
            moved = replace(known_session, cookie_hash=cookie_hash(user), expires_at=expires)
            return store.sessions.put(moved)
        case ("lease", str(key), int(index)):
            lease = store.leases.get(key) or Lease(key, index, 0.0)
            return store.leases.put(replace(lease, index=index))
        case ("drop lease", str(key)):
            store.leases.delete(key)
        case ("expire", float(now)):
            return list(store.sessions.expire(now, cookie_timeout_s=10))
        case ("keep", str(name), str(value)):
            return store.settings.keep(name, value)
    return None


def _try(store: Store, step: tuple[object, ...]) -> object:
    try:
        return _apply(store, step)
    except Conflict:
        return Conflict


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_backends_cannot_be_told_apart(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[object, ...]]
) -> None:
    """What holds for the reference in a test holds for the store that ships."""
    stores = [make(tmp_path_factory.mktemp("store")) for make in BACKENDS.values()]
    for step in steps:
        results = [_try(store, step) for store in stores]
        assert results[0] == results[1], step
    for read in (
        lambda s: list(s.users.all()),
        lambda s: list(s.clients.all()),
        lambda s: list(s.sessions.all()),
        lambda s: list(s.leases.all()),
        lambda s: s.since(0),
    ):
        assert read(stores[0]) == read(stores[1])
    for store in stores:
        store.close()
