"""A store with people in it, and logins against it."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from vpnd.auth.certificate import CertificateMethod
from vpnd.auth.contract import AuthMethod, CertificateFacts
from vpnd.auth.hasher import PasswordHasher
from vpnd.auth.login import LoginResult, LoginService
from vpnd.auth.password import PasswordMethod
from vpnd.auth.password_hash import Cost, hash_password
from vpnd.store.contract import Client, Store, User
from vpnd.store.memory import MemoryStore

CHEAP = Cost(ln=2, r=1, p=1)
NOW = 1000.0
LAPTOP = CertificateFacts("alice", "laptop", "1f", not_after=5000.0)


@dataclass
class Door:
    """A login service as one peer sees it."""

    store: Store
    hasher: PasswordHasher
    service: LoginService

    async def ask(
        self,
        cookie: str | None = None,
        fields: Mapping[str, str] | None = None,
        *,
        certificate: CertificateFacts | None = None,
        restart: bool = False,
        address: str = "192.0.2.1",
        now: float = NOW,
    ) -> LoginResult:
        return await self.service.step(
            login_cookie=cookie,
            fields=fields or {},
            group=None,
            restart=restart,
            certificate=certificate,
            address=address,
            now=now,
        )

    def step(
        self,
        cookie: str | None = None,
        fields: Mapping[str, str] | None = None,
        *,
        certificate: CertificateFacts | None = None,
        restart: bool = False,
        now: float = NOW,
    ) -> LoginResult:
        return asyncio.run(
            self.ask(cookie, fields, certificate=certificate, restart=restart, now=now)
        )


@pytest.fixture
def store() -> Store:
    made: Store = MemoryStore()
    made.users.put(User("alice", password_hash=str(hash_password("secret", CHEAP))))
    made.users.put(User("keyonly"))
    made.clients.put(Client("alice", "laptop", "1f", created=0.0, not_after=5000.0))
    return made


@pytest.fixture
def hasher() -> Iterator[PasswordHasher]:
    made = PasswordHasher(CHEAP)
    yield made
    made.close()


@pytest.fixture
def methods(store: Store, hasher: PasswordHasher) -> list[AuthMethod]:
    return [CertificateMethod(store), PasswordMethod(store, hasher)]


@pytest.fixture
def door(store: Store, hasher: PasswordHasher, methods: list[AuthMethod]) -> Door:
    return Door(store, hasher, LoginService(methods, login_timeout_s=60, password_attempts=3))
