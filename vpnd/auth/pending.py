"""Half-finished logins by the hash of their login cookie, bounded in number and time.

This table is apart from the sessions: nothing in it can open a tunnel.  When it is full
the oldest login gives way, first of the same source: a peer that loses its place can
still send name and password together and is judged as if it began.
"""

from collections import OrderedDict
from dataclasses import dataclass

from vpnd.auth.contract import AuthMethod, Challenge
from vpnd.auth.cookies import cookie_hash, new_cookie
from vpnd.auth.hasher import source

MAX_PENDING_LOGINS = 4096  # about 1 KiB each
MAX_PENDING_PER_SOURCE = 64  # people behind one NAT who are typing at the same time


@dataclass(slots=True, eq=False)
class PendingLogin:
    """What is known of a login between two requests."""

    source: str
    deadline: float
    method: AuthMethod | None = None
    challenge: Challenge | None = None
    failures: int = 0
    is_being_judged: bool = False


class PendingLogins:
    """The table; deadlines in Unix seconds."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._logins: OrderedDict[bytes, PendingLogin] = OrderedDict()  # oldest first
        self._by_source: dict[str, OrderedDict[bytes, None]] = {}

    def __len__(self) -> int:
        return len(self._logins)

    def add(self, address: str, now: float) -> tuple[str, PendingLogin]:
        """Return a new login and its cookie."""
        self.expire(now)
        login = PendingLogin(source(address), now + self.timeout_s)
        mine = self._by_source.setdefault(login.source, OrderedDict())
        if len(mine) >= MAX_PENDING_PER_SOURCE:
            self._remove(next(iter(mine)))
        elif len(self._logins) >= MAX_PENDING_LOGINS:
            self._remove(next(iter(self._logins)))
        cookie = new_cookie()
        key = cookie_hash(cookie)
        self._logins[key] = login
        self._by_source.setdefault(login.source, mine)[key] = None
        return cookie, login

    def find(self, cookie: str, now: float) -> PendingLogin | None:
        login = self._logins.get(cookie_hash(cookie))
        return None if login is None or now >= login.deadline else login

    def drop(self, cookie: str) -> None:
        self._remove(cookie_hash(cookie))

    def expire(self, now: float) -> None:
        """Forget all logins past their deadline."""
        while self._logins:
            key, login = next(iter(self._logins.items()))
            if now < login.deadline:
                return
            self._remove(key)

    def _remove(self, key: bytes) -> None:
        login = self._logins.pop(key, None)
        if login is None:
            return
        mine = self._by_source[login.source]
        del mine[key]
        if not mine:
            del self._by_source[login.source]
