"""Logins as a peer sees them: forms, cookies, tries, and nothing to learn from a refusal."""

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.auth.conftest import CHEAP, LAPTOP, NOW, Door
from vpnd.auth.certificate import CertificateMethod
from vpnd.auth.contract import Accepted, AuthMethod, Challenge, Outcome, Rejected, Request
from vpnd.auth.cookies import cookie_hash
from vpnd.auth.login import (
    LoginAccepted,
    LoginBusy,
    LoginForm,
    LoginRefused,
    LoginResult,
    LoginService,
)
from vpnd.auth.password_hash import hash_password
from vpnd.store.contract import Client, Store, User
from vpnd.store.sqlite import SqliteStore

ALICE = {"username": "alice", "password": "secret"}
WRONG = {"username": "alice", "password": "wrong"}


def form(result: LoginResult) -> LoginForm:
    assert isinstance(result, LoginForm), result
    return result


def names(result: LoginResult) -> list[tuple[str, str]]:
    return [(i.name, i.type) for i in form(result).inputs]


def test_name_and_password_are_asked_in_one_form_and_accepted(door: Door) -> None:
    """One round trip fewer than asking one after the other."""
    first = form(door.step(restart=True))
    assert names(first) == [("username", "text"), ("password", "password")]
    assert first.error is first.reason is None
    result = door.step(first.login_cookie, ALICE)
    assert result == LoginAccepted("alice", None, "password", None)


def test_name_and_password_may_come_one_after_the_other(door: Door) -> None:
    """Old clients answer one prompt at a time, each over a connection of its own."""
    cookie = form(door.step(restart=True)).login_cookie
    second = form(door.step(cookie, {"username": "alice"}))
    assert names(second) == [("password", "password")]
    assert second.login_cookie == cookie
    assert isinstance(door.step(cookie, {"password": "secret"}), LoginAccepted)


def test_both_may_come_unasked(door: Door) -> None:
    """A script, or a peer whose form was pushed out of the table, need not begin again."""
    assert isinstance(door.step(None, ALICE), LoginAccepted)
    assert isinstance(door.step("long-gone", ALICE), LoginAccepted)


@pytest.mark.parametrize("fields", [{}, {"password": "secret"}, {"username": ""}, {"x": "y"}])
def test_an_answer_without_a_name_gets_the_form_again(
    door: Door, fields: Mapping[str, str]
) -> None:
    """It is no wrong password, so it costs no try."""
    cookie = form(door.step(restart=True)).login_cookie
    for _ in range(9):
        assert len(names(door.step(cookie, fields))) == 2
    assert isinstance(door.step(cookie, ALICE), LoginAccepted)


def test_a_wrong_password_then_the_right_one(door: Door) -> None:
    """The peer is told to try again, the log who it was; the retry starts with both fields."""
    cookie = form(door.step(restart=True)).login_cookie
    again = form(door.step(cookie, WRONG))
    assert again.error == "Login failed."
    assert (again.reason, again.user) == ("wrong password", "alice")
    assert len(again.inputs) == 2
    assert isinstance(door.step(cookie, ALICE), LoginAccepted)


def test_the_last_try_ends_the_login(door: Door) -> None:
    """And its cookie: the next answer begins a new login."""
    cookie = form(door.step(restart=True)).login_cookie
    form(door.step(cookie, WRONG))
    form(door.step(cookie, {"username": "alice"}))
    form(door.step(cookie, WRONG))
    refused = door.step(cookie, WRONG)
    assert refused == LoginRefused("wrong password", "Login failed.", "alice")
    assert form(door.step(cookie, WRONG)).login_cookie != cookie


def test_starting_over_does_not_give_new_tries(door: Door) -> None:
    """An `init` in the middle selects a group; it must not reset the count."""
    cookie = form(door.step(restart=True)).login_cookie
    for _ in range(2):
        form(door.step(cookie, WRONG))
        assert form(door.step(cookie, WRONG, restart=True)).error is None
    assert isinstance(door.step(cookie, WRONG), LoginRefused)


def test_starting_over_forgets_the_name(door: Door) -> None:
    """The next person at the keyboard is somebody else."""
    cookie = form(door.step(restart=True)).login_cookie
    form(door.step(cookie, {"username": "alice"}))
    form(door.step(cookie, restart=True))
    assert len(names(door.step(cookie, {"password": "secret"}))) == 2


def test_a_login_ends_with_its_time(door: Door) -> None:
    """A name typed an hour ago is not waited for."""
    cookie = form(door.step(restart=True)).login_cookie
    form(door.step(cookie, {"username": "alice"}, now=NOW + 59))
    late = form(door.step(cookie, {"password": "secret"}, now=NOW + 60))
    assert late.login_cookie != cookie
    door.service.expire(NOW + 1000)
    assert len(door.service._pending) == 0


def test_parallel_answers_do_not_multiply_the_tries(door: Door) -> None:
    """A hundred guesses sent at once under one cookie count like one after the other."""

    async def run() -> list[LoginResult]:
        cookie = form(await door.ask(restart=True)).login_cookie
        return await asyncio.gather(*(door.ask(cookie, WRONG) for _ in range(100)))

    results = asyncio.run(run())
    assert sum(isinstance(result, LoginBusy) for result in results) == 99


def test_an_abandoned_answer_does_not_block_the_login(door: Door) -> None:
    """The connection broke while the password was being hashed."""

    async def run() -> LoginResult:
        cookie = form(await door.ask(restart=True)).login_cookie
        lost = asyncio.ensure_future(door.ask(cookie, WRONG))
        await asyncio.sleep(0)
        lost.cancel()
        await asyncio.wait([lost])
        return await door.ask(cookie, ALICE)

    assert isinstance(asyncio.run(run()), LoginAccepted)


def _conversation(door: Door, name: str) -> list[tuple[object, ...]]:
    """What a peer can see of a login with a wrong password in every try."""
    seen: list[tuple[object, ...]] = []
    cookie = form(door.step(restart=True)).login_cookie
    for fields in (
        {"username": name},
        {"password": "wrong"},
        {"username": name, "password": "wrong"},
        {"username": name, "password": "x" * 10_000},
    ):
        result = door.step(cookie, fields)
        if isinstance(result, LoginForm):
            seen.append((result.message, result.error, result.inputs))
        else:
            assert isinstance(result, LoginRefused)
            seen.append((result.message_for_peer,))
    return seen


STRANGERS = [
    "nobody",
    "keyonly",
    "disabled",
    "expired",
    "damaged",
    "Alice",
    "../alice",
    "a\nb",
    "\ud800",
]


@pytest.fixture
def crowd(store: Store) -> Store:
    secret = str(hash_password("secret", CHEAP))
    store.users.put(User("disabled", password_hash=secret, disabled=True))
    store.users.put(User("expired", password_hash=secret, valid_until=NOW))
    store.users.put(User("damaged", password_hash="$5$crypt"))
    return store


@pytest.mark.parametrize("name", STRANGERS)
def test_a_peer_cannot_learn_which_users_exist(door: Door, crowd: Store, name: str) -> None:
    """Same forms, same words, same number of tries."""
    assert crowd.users.get("alice") is not None
    assert _conversation(door, name) == _conversation(door, "alice")


@pytest.mark.parametrize("name", STRANGERS)
def test_every_guess_costs_one_hash_of_the_same_cost(
    door: Door, crowd: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is the other way to learn it."""
    calls: list[tuple[object, ...]] = []
    scrypt = hashlib.scrypt

    def counted(secret: bytes, **cost: int) -> bytes:
        calls.append((cost["n"], cost["r"], cost["p"], cost["dklen"], len(cost["salt"])))  # type: ignore[arg-type]
        return scrypt(secret, **cost)  # type: ignore[arg-type]

    assert crowd.users.get("alice") is not None
    monkeypatch.setattr(hashlib, "scrypt", counted)
    _conversation(door, "alice")
    expected = list(calls)
    calls.clear()
    _conversation(door, name)
    assert calls == expected
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nobody", "unknown user"),
        ("keyonly", "user has no password"),
        ("disabled", "user is disabled"),
        ("expired", "user has expired"),
        ("damaged", "the stored password hash is damaged; set the password again"),
    ],
)
def test_the_log_learns_why(door: Door, crowd: Store, name: str, reason: str) -> None:
    """The right password does not help either."""
    assert crowd.users.get("alice") is not None
    result = form(door.step(None, {"username": name, "password": "secret"}))
    assert (result.reason, result.user) == (reason, name)


def test_a_claimed_name_cannot_forge_log_lines(door: Door) -> None:
    """It comes from anybody."""
    evil = "x\nvpnd: login accepted: alice" + "y" * 500
    user = form(door.step(None, {"username": evil, "password": "p"})).user
    assert user is not None
    assert "\n" not in user
    assert len(user) < 100


def test_a_certificate_is_enough_at_the_first_step(door: Door) -> None:
    """Also where the answer to a form comes with it unasked."""
    expected = LoginAccepted("alice", "laptop", "certificate", "1f")
    assert door.step(restart=True, certificate=LAPTOP) == expected
    assert door.step(None, WRONG, certificate=LAPTOP) == expected


def test_an_accepted_login_leaves_nothing_pending(door: Door) -> None:
    """Two hundred certificates a second would fill the table otherwise."""
    door.step(restart=True, certificate=LAPTOP)
    door.step(restart=True, certificate=replace(LAPTOP, serial="2f"))
    assert len(door.service._pending) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user": None}, "certificate names no user and client"),
        ({"client": None}, "certificate names no user and client"),
        ({"user": "bob"}, "unknown client"),
        ({"client": "phone"}, "unknown client"),
        ({"client": "\ud800"}, "unknown client"),
        ({"serial": "2f"}, "serial number is not that of the client's certificate"),
        ({"serial": ""}, "serial number is not that of the client's certificate"),
        ({"not_after": NOW}, "certificate has expired"),
    ],
)
def test_a_certificate_that_does_not_fit_is_refused_even_with_a_password(
    door: Door, methods: list[AuthMethod], changes: dict[str, str | float | None], reason: str
) -> None:
    """A certificate without a name once skipped the binding in another server."""
    bad = replace(LAPTOP, **changes)  # type: ignore[arg-type]
    for order in (methods, methods[::-1]):
        result = replace(door, service=LoginService(order)).step(None, ALICE, certificate=bad)
        assert isinstance(result, LoginRefused)
        assert result.reason_for_log.startswith(f"{reason} (serial ")
        assert result.message_for_peer == "This certificate is not accepted."


def _refusal(door: Door) -> str:
    result = door.step(restart=True, certificate=LAPTOP)
    assert isinstance(result, LoginRefused)
    assert result.user == "alice"
    return result.reason_for_log.partition(" (")[0]


def test_revoked_disabled_expired_and_deleted_are_refused_from_now_on(door: Door) -> None:
    """The store is asked each time; nothing is cached."""
    users, clients = door.store.users, door.store.clients
    alice, laptop = users.get("alice"), clients.get("alice", "laptop")
    assert alice is not None
    assert laptop is not None
    laptop = clients.put(replace(laptop, revoked_at=5.0))
    assert _refusal(door) == "client is revoked"
    laptop = clients.put(replace(laptop, revoked_at=None, not_after=NOW))
    assert _refusal(door) == "certificate has expired"
    clients.put(replace(laptop, not_after=5000.0))
    alice = users.put(replace(alice, disabled=True))
    assert _refusal(door) == "user is disabled"
    alice = users.put(replace(alice, disabled=False, valid_until=NOW - 1))
    assert _refusal(door) == "user has expired"
    users.put(replace(alice, valid_until=NOW + 1))
    assert isinstance(door.step(restart=True, certificate=LAPTOP), LoginAccepted)
    users.delete("alice")
    assert _refusal(door) == "unknown client"


def test_a_reissued_client_makes_the_old_certificate_worthless(door: Door) -> None:
    """A revoked certificate does not come back with its name."""
    laptop = door.store.clients.get("alice", "laptop")
    assert laptop is not None
    door.store.clients.put(replace(laptop, serial="2f"))
    assert _refusal(door) == "serial number is not that of the client's certificate"
    assert isinstance(
        door.step(restart=True, certificate=replace(LAPTOP, serial="2f")), LoginAccepted
    )


def test_only_configured_methods_are_offered(
    store: Store, door: Door, methods: list[AuthMethod]
) -> None:
    """`auth.methods` is the operator's word."""
    only_certificate = replace(door, service=LoginService(methods[:1]))
    refused = only_certificate.step(None, ALICE)
    assert isinstance(refused, LoginRefused)
    assert refused.message_for_peer == "A client certificate is required."
    only_password = replace(door, service=LoginService(methods[1:]))
    assert len(names(only_password.step(restart=True, certificate=LAPTOP))) == 2
    reverse = replace(door, service=LoginService(methods[::-1]))
    assert isinstance(reverse.step(restart=True, certificate=LAPTOP), LoginAccepted)
    assert store.users.get("alice") is not None


def test_a_login_cookie_opens_no_tunnel(door: Door) -> None:
    """Half-finished logins and sessions live in tables that never meet."""
    cookie = form(door.step(restart=True)).login_cookie
    form(door.step(cookie, {"username": "alice"}))
    assert door.store.sessions.by_cookie(cookie_hash(cookie)) is None


def test_a_store_that_fails_makes_logins_wait(door: Door, tmp_path: Path) -> None:
    """503 and a line for the operator, not a refusal that looks like a wrong password."""
    store = SqliteStore(tmp_path / "s.sqlite")
    store.users.put(User("alice"))
    store.clients.put(Client("alice", "laptop", "1f", 0.0, 5000.0))
    store._database._db.execute("DROP TABLE clients")
    broken = replace(door, service=LoginService([CertificateMethod(store)]))
    result = broken.step(restart=True, certificate=LAPTOP)
    store.close()
    assert isinstance(result, LoginBusy)
    assert "s.sqlite" in result.reason_for_log
    assert len(broken.service._pending) == 0


class _TwoStep:
    """A method with three questions, as a second factor has."""

    name = "code"

    async def start(self, request: Request) -> Outcome | None:  # noqa: ARG002
        return Challenge("first", (), "1")

    async def answer(self, state: str | None, request: Request) -> Outcome:
        number = int(state or 0)
        if request.fields.get("code") != str(number):
            return Rejected("wrong code", "No.", "zoe", Challenge("again", (), state))
        return Accepted("zoe") if number == 3 else Challenge("next", (), str(number + 1))


def test_a_method_gets_its_own_state_back() -> None:
    """A second factor needs no table of its own; wrong codes count over all questions."""
    service = LoginService([_TwoStep()], password_attempts=2)

    async def run() -> list[LoginResult]:
        results: list[LoginResult] = []
        cookie: str | None = None
        for code in ("", "1", "9", "2", "3"):
            step = await service.step(
                login_cookie=cookie,
                fields={"code": code},
                group=None,
                restart=not results,
                certificate=None,
                address="192.0.2.1",
                now=NOW,
            )
            results.append(step)
            cookie = step.login_cookie if isinstance(step, LoginForm) else None
        return results

    results = asyncio.run(run())
    texts = [(r.message, r.error) for r in results if isinstance(r, LoginForm)]
    assert texts == [("first", None), ("next", None), ("again", "No."), ("next", None)]
    assert results[-1] == LoginAccepted("zoe", None, "code", None)


def test_secrets_are_in_no_repr(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever logs a request or a result logs no password and no cookie."""
    caplog.set_level(logging.DEBUG)
    first = form(door.step(restart=True))
    door.step(first.login_cookie, ALICE)
    request = Request(ALICE, None, None, "192.0.2.1", NOW)
    text = f"{first!r}{request!r}{caplog.text}"
    assert first.login_cookie not in text
    assert "secret" not in text


FIELDS = st.dictionaries(
    st.sampled_from(["username", "password", "x"]),
    st.one_of(st.sampled_from(["alice", "keyonly", "nobody", ""]), st.text(max_size=8)),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(FIELDS, st.booleans(), st.booleans()), max_size=8))
def test_nobody_gets_in_without_the_password(
    door: Door, steps: list[tuple[dict[str, str], bool, bool]]
) -> None:
    """No order of forms, restarts and lost cookies ends in Accepted, or in an exception."""
    cookie: str | None = None
    for fields, restart, keeps_cookie in steps:
        result = door.step(cookie if keeps_cookie else None, fields, restart=restart)
        if fields.get("password") != "secret":
            assert isinstance(result, LoginForm | LoginRefused)
        cookie = result.login_cookie if isinstance(result, LoginForm) else None
