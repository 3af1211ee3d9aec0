"""Login steps as workers pass them on: what comes back, what is logged, what is stored."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from vpnd.auth.contract import CertificateFacts
from vpnd.auth.hasher import PasswordHasher
from vpnd.auth.password_hash import Cost, hash_password
from vpnd.config.model import AuthOptions, ServerConfig
from vpnd.errors import StoreError
from vpnd.policy.leases import Pool
from vpnd.server.logins import Logins
from vpnd.server.sessions import Sessions
from vpnd.store.contract import Client, Session, Store, User
from vpnd.store.memory import MemoryStore
from vpnd.worker.messages import LoginQuery, LoginReply, OpenQuery

CHEAP = Cost(ln=2, r=1, p=1)
FAR = 4e9  # a certificate's end in another century
LAPTOP = CertificateFacts("alice", "laptop", "1f", FAR)
RIGHT = {"username": "alice", "password": "s3cret"}
WRONG = {"username": "alice", "password": "guess-the-password"}


class Desk:
    """The master's side of logins, asked as a worker asks."""

    def __init__(self, store: Store, hasher: PasswordHasher) -> None:
        config = ServerConfig(auth=AuthOptions(password_attempts=3))
        pool = Pool(IPv4Network("10.8.0.0/24"), None)
        self.sessions = Sessions(config, store, pool, lambda _number, _reason: None)
        self.logins = Logins(config.auth, store, hasher, self.sessions)

    def step(
        self,
        values: dict[str, str] | None = None,
        cookie: str | None = None,
        certificate: CertificateFacts | None = None,
    ) -> LoginReply:
        query = LoginQuery("192.0.2.9", cookie, values or {}, None, values is None, certificate)
        return asyncio.run(self.logins.step(query))

    def connect(self, cookie: str) -> int:
        query = OpenQuery(cookie, "192.0.2.9:4000", None, "h", "ua", True, True)
        return self.sessions.open(query, 0.0).refused


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    made.users.put(User("alice", password_hash=str(hash_password("s3cret", CHEAP))))
    made.clients.put(Client("alice", "laptop", "1f", created=0.0, not_after=FAR))
    return made


@pytest.fixture
def desk(store: MemoryStore) -> Iterator[Desk]:
    hasher = PasswordHasher(CHEAP)
    yield Desk(store, hasher)
    hasher.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_password_login_gets_a_cookie_that_opens_a_tunnel(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """And one line in the log that says who and from where, without the password."""
    caplog.set_level(logging.INFO)
    form = desk.step()
    assert form.outcome == "form"
    assert [entry.name for entry in form.inputs] == ["username", "password"]
    accepted = desk.step(RIGHT, form.cookie)
    assert accepted.outcome == "accepted"
    assert desk.connect(accepted.cookie) == 0
    (line,) = [line for line in lines(caplog) if line.startswith("login accepted")]
    assert "user=alice" in line
    assert "address=192.0.2.9" in line
    assert "s3cret" not in caplog.text
    assert accepted.cookie not in caplog.text


def test_a_login_cookie_never_opens_a_tunnel(desk: Desk) -> None:
    """Neither before the login is complete nor after."""
    form = desk.step()
    assert desk.connect(form.cookie) == 401
    assert desk.step(RIGHT, form.cookie).outcome == "accepted"
    assert desk.connect(form.cookie) == 401


def test_a_wrong_password_then_the_right_one(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """The same login goes on; each failure is a line that names user and address."""
    form = desk.step()
    again = desk.step(WRONG, form.cookie)
    assert again.outcome == "form"
    assert again.error
    assert desk.step(RIGHT, again.cookie).outcome == "accepted"
    (line,) = [line for line in lines(caplog) if line.startswith("login failed")]
    assert "user=alice address=192.0.2.9" in line
    assert "guess" not in caplog.text


def test_the_third_wrong_password_ends_the_login(
    desk: Desk, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The next one begins anew; no session was ever made."""
    cookie = desk.step().cookie
    outcomes = [desk.step(WRONG, cookie).outcome for _ in range(3)]
    assert outcomes == ["form", "form", "refused"]
    assert any(line.startswith("login refused: user=alice") for line in lines(caplog))
    assert store.sessions.all() == []


def test_an_unknown_user_is_told_what_a_wrong_password_is(desk: Desk) -> None:
    """Or names could be tried."""
    known = desk.step(WRONG, desk.step().cookie)
    unknown = desk.step(WRONG | {"username": "mallory"}, desk.step().cookie)
    assert replace(known, cookie="") == replace(unknown, cookie="")


@pytest.mark.parametrize(
    "name", ["a b\nINFO login accepted", "x" * 300, "../../etc", "\u202eroot"]
)
def test_a_name_cannot_write_its_own_log_line(
    desk: Desk, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Bounded, on one line, quoted."""
    desk.step({"username": name, "password": "x"}, desk.step().cookie)
    (line,) = [line for line in lines(caplog) if line.startswith("login failed")]
    assert line.isprintable()
    assert len(line) < 300


def test_a_certificate_suffices(desk: Desk) -> None:
    """The first step is the last, as stock clients expect."""
    accepted = desk.step(certificate=LAPTOP)
    assert accepted.outcome == "accepted"
    assert desk.connect(accepted.cookie) == 0


@pytest.mark.parametrize(
    "facts",
    [
        replace(LAPTOP, serial="2f"),
        replace(LAPTOP, client="phone"),
        replace(LAPTOP, user="bob"),
        replace(LAPTOP, user=None, client=None),
        replace(LAPTOP, not_after=1.0),
    ],
)
def test_a_certificate_that_the_store_does_not_know_is_refused(
    desk: Desk, caplog: pytest.LogCaptureFixture, facts: CertificateFacts
) -> None:
    """Even beside the right password; the reason is for the log alone."""
    refused = desk.step(RIGHT, certificate=facts)
    assert refused.outcome == "refused"
    (line,) = [line for line in lines(caplog) if line.startswith("login refused")]
    assert "address=192.0.2.9" in line
    assert refused.message == "This certificate is not accepted."


def test_no_slot_for_one_more_login_is_try_later(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """The password was right: 503, and the operator reads why."""
    for _ in range(32):
        assert desk.step(RIGHT).outcome == "accepted"
    assert desk.step(RIGHT).outcome == "busy"
    assert any("32 sessions" in line for line in lines(caplog))


def test_a_store_that_fails_is_try_later(
    desk: Desk, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is raised: the worker waits for an answer."""

    def put(_session: Session) -> Session:
        raise StoreError("the disk is full")

    store.sessions.put = put  # type: ignore[method-assign]
    assert desk.step(RIGHT).outcome == "busy"
    assert any("the disk is full" in line for line in lines(caplog))


def test_a_method_that_is_switched_off_lets_nobody_in_any_more(desk: Desk) -> None:
    """A reload, in the middle of somebody's login by password."""
    form = desk.step()
    desk.logins.adopt(AuthOptions(methods=("certificate",)))
    assert desk.step(RIGHT, form.cookie).outcome == "refused"
    assert desk.step(certificate=LAPTOP).outcome == "accepted"
    desk.logins.adopt(AuthOptions(methods=("certificate", "password")))
    assert desk.step(RIGHT, desk.step().cookie).outcome == "accepted"


def test_a_login_under_way_goes_on_over_a_reload(desk: Desk) -> None:
    """Whoever is typing must not begin anew because of a route that was added."""
    form = desk.step()
    assert desk.step(WRONG, form.cookie).outcome == "form"
    desk.logins.adopt(AuthOptions(password_attempts=2))
    assert desk.step(WRONG, form.cookie).outcome == "refused"
    form = desk.step()
    desk.logins.adopt(AuthOptions(login_timeout_s=60))
    assert desk.step(RIGHT, form.cookie).outcome == "accepted"
