"""Password hashing on two threads behind a bounded queue, so that the loop never waits.

OpenSSL releases the interpreter's lock while it hashes.  What does not fit into the queue
is refused at once (`Busy`, HTTP 503): a stranger can ask for any number of hashes.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address, ip_address
from typing import TypeVar

from vpnd.auth.contract import Busy
from vpnd.auth.password_hash import (
    Cost,
    PasswordHash,
    check_new_password,
    hash_password,
    matches,
)

THREADS = 2
MAX_WAITING = 32  # at a third of a second each the last one waits five
MAX_PER_SOURCE = 16  # of them and those being hashed: one address cannot fill the queue
LOCAL = "local"  # the source of an administrator's own hashes

T = TypeVar("T")


class PasswordHasher:
    """Hashes and compares passwords; `close` it."""

    def __init__(
        self, cost: Cost | None = None, *, threads: int = THREADS, max_waiting: int = MAX_WAITING
    ) -> None:
        self._cost = cost or Cost()
        self._limit = threads + max_waiting
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="password")
        self._lock = threading.Lock()
        self._sources: Counter[str] = Counter()
        # Compared with where there is no hash: nobody knows the password, and it takes as long.
        self._nobody = PasswordHash(self._cost, bytes(16), bytes(32))

    async def hash(self, password: str) -> str:
        """Return a new hash for the store.  Raises AuthError, Busy."""
        check_new_password(password)
        return str(await self._run(LOCAL, lambda: hash_password(password, self._cost)))

    async def verify(self, password: str, expected: PasswordHash | None, *, address: str) -> bool:
        """Return True for the right password.  No hash costs the time of a wrong password.

        Raises Busy.
        """
        compared = expected or self._nobody
        found = await self._run(source(address), lambda: matches(password, compared))
        return found and expected is not None

    async def _run(self, key: str, work: Callable[[], T]) -> T:
        self._enter(key)
        try:
            future = self._threads.submit(work)
        except BaseException:
            self._leave(key)
            raise
        # Not in a `finally`: the peer may leave, the thread goes on and keeps its place.
        future.add_done_callback(lambda _: self._leave(key))
        return await asyncio.wrap_future(future)

    def _enter(self, key: str) -> None:
        with self._lock:
            if self._sources.total() >= self._limit or self._sources[key] >= MAX_PER_SOURCE:
                raise Busy("too many passwords are being checked; try again in a few seconds")
            self._sources[key] += 1

    def _leave(self, key: str) -> None:
        with self._lock:
            self._sources[key] -= 1
            if not self._sources[key]:
                del self._sources[key]

    def close(self) -> None:
        """Drop what waits; at most the hashes being made are waited for."""
        self._threads.shutdown(cancel_futures=True)


def source(address: str) -> str:
    """Return whom an address stands for: IPv4 as it is, IPv6 by its /64."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return parsed.packed[:8].hex()
