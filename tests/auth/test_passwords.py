"""Password hashes and the queue in front of them."""

import asyncio
import hashlib
import threading
import unicodedata
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpnd.auth.contract import Busy
from vpnd.auth.hasher import MAX_PER_SOURCE, PasswordHasher, source
from vpnd.auth.password_hash import (
    MAX_PASSWORD,
    Cost,
    check_new_password,
    hash_password,
    matches,
    parse_hash,
)
from vpnd.errors import AuthError

CHEAP = Cost(ln=2, r=1, p=1)
T = TypeVar("T")


@pytest.fixture
def hasher() -> Iterator[PasswordHasher]:
    made = PasswordHasher(CHEAP)
    yield made
    made.close()


def test_scrypt_is_called_as_the_rfc_says() -> None:
    """RFC 7914 section 12, second vector: the parameters are in their places."""
    expected = bytes.fromhex("fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162")
    found = hashlib.scrypt(b"password", salt=b"NaCl", n=1024, r=8, p=16, dklen=32)
    assert found == expected
    text = "$scrypt$ln=10,r=8,p=16$TmFDbA$/bq+HJ00cgB4VucZDQHp/nxq18vII3gw53N2Y0s3MWI"
    assert matches("password", parse_hash(text))
    assert not matches("Password", parse_hash(text))


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_only_the_same_password_matches(one: str, two: str) -> None:
    """Whatever characters it has, also after a turn through the store."""
    stored = parse_hash(str(hash_password(one, CHEAP)))
    assert matches(one, stored)
    same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", two)
    assert matches(two, stored) is same


def test_a_password_is_the_same_however_a_keyboard_composes_it() -> None:
    """macOS sends e and an accent where Linux sends one letter."""
    assert matches("cafe\u0301", hash_password("caf\u00e9", CHEAP))


def test_two_hashes_of_one_password_differ() -> None:
    """The salt is random; a copy of the store does not show who shares a password."""
    assert str(hash_password("x", CHEAP)) != str(hash_password("x", CHEAP))


def test_a_hash_shows_nothing_in_a_repr() -> None:
    """Logs and tracebacks print reprs."""
    made = hash_password("x", CHEAP)
    assert str(made).rpartition("$")[2] not in repr(made)


GOOD = str(hash_password("x", CHEAP))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "$5$rounds=5000$salt$hash",
        GOOD[:-1],
        GOOD + "A",
        GOOD + "\n",
        GOOD.replace("ln=2", "ln=0"),
        GOOD.replace("ln=2", "ln=40"),  # 2**40: a damaged store must not eat the machine
        GOOD.replace("r=1", "r=0"),
        GOOD.replace("p=1", "p=0"),
        GOOD.replace("p=1", "p=-1"),
    ],
)
def test_a_damaged_hash_is_refused_with_the_remedy(text: str) -> None:
    """And never treated as a wrong, or right, password."""
    with pytest.raises(AuthError, match="set the password again"):
        parse_hash(text)


@pytest.mark.parametrize("password", ["", "a\nb", "a\0b", "\ud800", "x" * (MAX_PASSWORD + 1)])
def test_a_password_that_no_form_can_send_is_refused_when_it_is_set(password: str) -> None:
    """Not when its user stands outside."""
    with pytest.raises(AuthError, match="the password"):
        check_new_password(password)


def test_longest_and_strangest_passwords_are_fine() -> None:
    """Nothing is cut off in silence either."""
    check_new_password("x" * MAX_PASSWORD)
    longest = hash_password("x" * MAX_PASSWORD, CHEAP)
    assert matches("x" * MAX_PASSWORD, longest)
    assert not matches("x" * (MAX_PASSWORD + 1), longest)
    check_new_password(" pass  wörd 密码 🔑 ")


def test_hashing_and_verifying(hasher: PasswordHasher) -> None:
    """No hash never matches, whatever the password."""

    async def run() -> list[bool]:
        stored = parse_hash(await hasher.hash("right"))
        return [
            await hasher.verify(password, expected, address="192.0.2.1")
            for password, expected in (("right", stored), ("wrong", stored), ("right", None))
        ]

    assert asyncio.run(run()) == [True, False, False]


class _Gate:
    """Work for the hasher that ends when it is told to."""

    def __init__(self, hasher: PasswordHasher) -> None:
        self._hasher = hasher
        self.opened = threading.Event()

    def enter(self, key: str) -> "asyncio.Task[bool]":
        return asyncio.ensure_future(self._hasher._run(key, self.opened.wait))


def _with_gate(threads: int, waiting: int, run: Callable[[_Gate], Awaitable[T]]) -> T:
    hasher = PasswordHasher(CHEAP, threads=threads, max_waiting=waiting)
    gate = _Gate(hasher)

    async def guarded() -> T:
        try:
            return await run(gate)
        finally:
            gate.opened.set()

    try:
        return asyncio.run(guarded())
    finally:
        hasher.close()


def test_what_does_not_fit_into_the_queue_is_refused_at_once() -> None:
    """The loop and the other logins do not wait for a flood of passwords."""

    async def run(gate: _Gate) -> None:
        tasks = [gate.enter(f"192.0.2.{number}") for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="try again"):
            await gate.enter("192.0.2.9")
        gate.opened.set()
        assert await asyncio.gather(*tasks) == [True] * 3
        assert await gate.enter("192.0.2.9")

    _with_gate(1, 2, run)


def test_one_address_cannot_fill_the_queue() -> None:
    """Others are served beside somebody who tries passwords as fast as he can."""

    async def run(gate: _Gate) -> None:
        tasks = [gate.enter("192.0.2.1") for _ in range(MAX_PER_SOURCE)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await gate.enter("192.0.2.1")
        tasks.append(gate.enter("192.0.2.2"))
        gate.opened.set()
        assert all(await asyncio.gather(*tasks))

    _with_gate(2, 32, run)


def test_a_peer_that_leaves_keeps_its_place_until_the_thread_is_done() -> None:
    """Connecting and leaving again must not start more hashes than threads and queue hold."""

    async def run(gate: _Gate) -> None:
        started = threading.Event()

        def work() -> bool:
            started.set()
            return gate.opened.wait()

        tasks = [asyncio.ensure_future(gate._hasher._run("a", work)), gate.enter("b")]
        await asyncio.to_thread(started.wait)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert gate._hasher._sources == {"a": 1}  # the one that waited is gone
        gate.opened.set()
        await asyncio.to_thread(gate._hasher.close)
        assert gate._hasher._sources == {}

    _with_gate(1, 1, run)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1::5", "20010db800000001"),
        ("2001:db8:0:1:ffff::9", "20010db800000001"),
        ("fe80::1%eth0", "fe80000000000000"),
        ("local", "local"),
    ],
)
def test_an_ipv6_network_counts_as_one_source(address: str, expected: str) -> None:
    """Anybody has 2**64 addresses to try passwords from."""
    assert source(address) == expected
