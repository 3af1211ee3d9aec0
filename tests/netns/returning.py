"""Clients that do what stock ones do with their cookie, many at once and cheaply."""

import time
from contextlib import suppress

from tests.netns.daemons import Daemons
from tests.netns.namespace import Namespace
from tests.netns.stranger import Answer, Stranger
from vpnd.auth.cookies import cookie_hash, new_cookie, new_session_id
from vpnd.policy.leases import user_lease_key
from vpnd.store.contract import Session, User
from vpnd.store.leasing import KeysInUse
from vpnd.store.sqlite import open_store

PER_USER = 25  # logins of one user, who may not have many more


def cookies(daemons: Daemons, count: int) -> list[str]:
    """Return the cookies of so many logins, put into the store of a server that runs.

    A login by password costs half a second of CPU on purpose; here only what comes after it
    matters.
    """
    store = open_store(daemons.folder / "state")
    made = []
    try:
        for number in range(count):
            user, now = f"user{number // PER_USER}", time.time()
            if store.users.get(user) is None:
                store.users.put(User(user))
            made.append(new_cookie())
            store.sessions.put(
                Session(
                    id=new_session_id(),
                    cookie_hash=cookie_hash(made[-1]),
                    user=user,
                    client=None,
                    lease_key=user_lease_key(user, KeysInUse(store.sessions)),
                    method="password",
                    serial=None,
                    created=now,
                    expires_at=None,
                    disconnected_at=now,
                )
            )
    finally:
        store.close()
    return made


class Returning:
    """A client that comes back by its cookie when its connection ends."""

    def __init__(self, namespace: Namespace, cookie: str) -> None:
        self._namespace = namespace
        self._cookie = cookie
        self.answer = self.connect()

    def connect(self, *headers: tuple[str, str]) -> Answer:
        self.connection = Stranger(self._namespace)
        answer = self.connection.connect(self._cookie, headers)
        if answer.status != 200:
            self.close()
            raise AssertionError(answer)
        return answer

    def come_back(self) -> None:
        """Wait until the server hangs up, and connect again."""
        with suppress(OSError):
            assert self.connection.tls.recv(4096) == b""
        self.close()
        self.connect()

    def close(self) -> None:
        self.connection.close()
