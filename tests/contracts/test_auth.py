"""The rules of vpnd.auth.contract, over every method: one row in CASES for a new one."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpnd.auth.certificate import CertificateMethod
from vpnd.auth.contract import (
    Accepted,
    AuthMethod,
    CertificateFacts,
    Challenge,
    Outcome,
    Rejected,
    Request,
)
from vpnd.auth.hasher import PasswordHasher
from vpnd.auth.password import PasswordMethod
from vpnd.auth.password_hash import Cost, hash_password
from vpnd.store.contract import Client, Store, User
from vpnd.store.memory import MemoryStore

CHEAP = Cost(ln=2, r=1, p=1)
NOW = 1000.0
NOTHING = Request({}, None, None, "192.0.2.1", NOW)
LAPTOP = CertificateFacts("alice", "laptop", "1f", not_after=5000.0)


@dataclass(frozen=True)
class Case:
    """A method, and what proves alice's identity to it and what does not."""

    make: Callable[[Store, PasswordHasher], AuthMethod]
    right: Request
    wrong: Request
    expected: Accepted
    can_retry: bool
    secrets: tuple[str, ...] = field(default=())


CASES = {
    "certificate": Case(
        lambda store, _: CertificateMethod(store),
        right=replace(NOTHING, certificate=LAPTOP),
        wrong=replace(NOTHING, certificate=replace(LAPTOP, serial="2f")),
        expected=Accepted("alice", "laptop", "1f"),
        can_retry=False,
    ),
    "password": Case(
        PasswordMethod,
        right=replace(NOTHING, fields={"username": "alice", "password": "hunter2"}),
        wrong=replace(NOTHING, fields={"username": "alice", "password": "hunter3"}),
        expected=Accepted("alice"),
        can_retry=True,
        secrets=("hunter2", "hunter3"),
    ),
}
EVERY_METHOD = pytest.mark.parametrize("name", sorted(CASES))


def _store() -> Store:
    store: Store = MemoryStore()
    store.users.put(User("alice", password_hash=str(hash_password("hunter2", CHEAP))))
    store.clients.put(Client("alice", "laptop", "1f", created=0.0, not_after=5000.0))
    return store


def _ask(name: str, request: Request, store: Store | None = None) -> Outcome | None:
    """Return the outcome of a login where the first question is answered, if there is one."""

    async def run(method: AuthMethod) -> Outcome | None:
        first = await method.start(request)
        if isinstance(first, Challenge) and request.fields:
            return await method.answer(first.state, request)
        return first

    hasher = PasswordHasher(CHEAP)
    try:
        return asyncio.run(run(CASES[name].make(store or _store(), hasher)))
    finally:
        hasher.close()


@EVERY_METHOD
def test_a_method_is_called_what_the_configuration_calls_it(name: str) -> None:
    hasher = PasswordHasher(CHEAP)
    assert CASES[name].make(_store(), hasher).name == name
    hasher.close()


@EVERY_METHOD
def test_the_right_proof_is_accepted(name: str) -> None:
    """With the user, and with the client only where a certificate named one."""
    assert _ask(name, CASES[name].right) == CASES[name].expected


@EVERY_METHOD
def test_the_wrong_proof_is_rejected_with_a_reason_the_peer_does_not_get(name: str) -> None:
    """Whoever guesses learns that it was wrong, and nothing else."""
    outcome = _ask(name, CASES[name].wrong)
    assert isinstance(outcome, Rejected)
    assert outcome.user == "alice"
    assert outcome.reason
    assert outcome.reason not in outcome.message
    assert (outcome.retry is not None) is CASES[name].can_retry


@EVERY_METHOD
def test_without_proof_nobody_is_accepted_or_counted_as_a_failure(name: str) -> None:
    """A first contact is a question, or not this method's business."""
    assert not isinstance(_ask(name, NOTHING), Accepted | Rejected)


@EVERY_METHOD
@pytest.mark.parametrize(
    "change", [{"disabled": True}, {"valid_until": NOW}, {"valid_until": 0.0}]
)
def test_the_right_proof_of_a_user_who_must_not_is_rejected(
    name: str, change: Mapping[str, bool | float]
) -> None:
    """Disabling and expiry hold for every way in."""
    store = _store()
    alice = store.users.get("alice")
    assert alice is not None
    store.users.put(replace(alice, **change))  # type: ignore[arg-type]
    outcome = _ask(name, CASES[name].right, store)
    wrong = _ask(name, CASES[name].wrong, store)
    assert isinstance(outcome, Rejected)
    assert isinstance(wrong, Rejected)
    assert outcome.message == wrong.message


@EVERY_METHOD
def test_the_first_step_does_not_look_at_fields(name: str) -> None:
    """Only so does a certificate go before a password, whatever the order of the methods."""
    hasher = PasswordHasher(CHEAP)
    method = CASES[name].make(_store(), hasher)
    proof = replace(CASES[name].right, certificate=None)
    assert not isinstance(asyncio.run(method.start(proof)), Accepted | Rejected)
    hasher.close()


@EVERY_METHOD
def test_an_empty_store_accepts_nobody(name: str) -> None:
    assert not isinstance(_ask(name, CASES[name].right, MemoryStore()), Accepted)


@EVERY_METHOD
def test_nothing_a_method_takes_or_returns_shows_a_secret(name: str) -> None:
    """Everything may be logged."""
    for request in (CASES[name].right, CASES[name].wrong):
        text = f"{request!r} {_ask(name, request)!r}"
        assert not any(secret in text for secret in CASES[name].secrets)


@EVERY_METHOD
@settings(max_examples=25, deadline=None)
@given(
    fields=st.dictionaries(st.sampled_from(["username", "password"]), st.text(max_size=20)),
    state=st.none() | st.text(max_size=20),
)
def test_any_answer_has_an_outcome(name: str, fields: dict[str, str], state: str | None) -> None:
    """Text from strangers raises nothing, and lets nobody in."""
    hasher = PasswordHasher(CHEAP)
    method = CASES[name].make(_store(), hasher)
    outcome = asyncio.run(method.answer(state, replace(NOTHING, fields=fields)))
    hasher.close()
    assert isinstance(outcome, Challenge | Rejected)
