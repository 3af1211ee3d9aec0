"""Who of those that are connected is not welcome any more.

The store says so.  It is asked about a session when the session's user or client has changed
(the feed tells), and when the end of the user or of the certificate has come; a thousand
sessions cost nothing between.
"""

from collections.abc import Iterable

from vpnd.auth.standing import session_refusal, standing_end
from vpnd.store.contract import Kind, Session, Store

NEVER = float("inf")
UNREAD = -1  # a revision that every feed is too far ahead of


class StandingWatch:
    """The known ends of the live sessions."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._revision = UNREAD
        self._ends: dict[str, float] = {}
        """When a session's standing is to be looked at again, by its id."""

    def refused(self, live: Iterable[Session], now: float) -> list[tuple[Session, str]]:
        """Return the sessions that may not go on, and why.  Raises StoreError."""
        feed = self._store.since(self._revision)
        changed = {c.key[0] for c in feed.changes if c.kind in {Kind.USER, Kind.CLIENT}}
        known = self._ends if feed.complete else {}
        ends: dict[str, float] = {}
        found = []
        for session in live:
            end = known.get(session.id)
            if end is None or now >= end or session.user in changed:
                reason = self._reason(session, now)
                if reason is not None:
                    found.append((session, reason))
                    continue
                end = standing_end(self._store, session.user, session.client)
            ends[session.id] = NEVER if end is None else end
        self._revision, self._ends = feed.revision, ends
        return found

    def _reason(self, session: Session, now: float) -> str | None:
        return session_refusal(self._store, session.user, session.client, session.serial, now)
