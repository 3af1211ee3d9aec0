"""Forgetting who had which address, some time after it mattered."""

from vpnd.store.contract import Store
from vpnd.store.leasing import KeysInUse, forget_idle

INTERVAL = 3600.0  # seconds between two searches for leases that nobody used for days
SOON = 30.0  # the same where they are not kept at all


class Retention:
    """Looks through the leases now and then."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next = 0.0

    def forget(self, now: float, keep_s: float) -> None:
        """Forget leases whose last session ended `keep_s` ago.  Raises StoreError."""
        if now < self._next:
            return
        self._next = now + (INTERVAL if keep_s else SOON)
        in_use = KeysInUse(self._store.sessions)
        forget_idle(self._store.leases, in_use=in_use, unused_since=now - keep_s)
