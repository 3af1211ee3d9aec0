"""Anti-replay sliding window (RFC 6347 section 4.1.2.6, sized as RFC 6479 advises).

A Python int serves as the bitmap: bit *i* of `_seen` stands for the sequence
number `_top - i`.  Call `accept` only once a record is authentic: an attacker
must not be able to move the window.
"""

WINDOW = 1024  # records; reordering across parallel queues stays far below it
_MASK = (1 << WINDOW) - 1


class ReplayWindow:
    """Which of the last `WINDOW` sequence numbers have been seen."""

    __slots__ = ("_seen", "_top")

    def __init__(self) -> None:
        self._top = -1
        self._seen = 0

    @property
    def newest(self) -> int:
        """The highest number accepted so far, -1 before the first."""
        return self._top

    def accept_run(self, first: int, count: int) -> bool:
        """Accept `count` numbers from `first` on if all are newer than any so far, else none."""
        if first <= self._top:
            return False
        ahead = first + count - 1 - self._top
        seen = self._seen << ahead if ahead < WINDOW else 0
        self._seen = (seen | (1 << count) - 1) & _MASK
        self._top = first + count - 1
        return True

    def accept(self, seq: int) -> bool:
        """Return False for a duplicate or a number older than the window."""
        ahead = seq - self._top
        if ahead > 0:
            self._seen = ((self._seen << ahead) & _MASK if ahead < WINDOW else 0) | 1
            self._top = seq
            return True
        if -ahead >= WINDOW:
            return False
        bit = 1 << -ahead
        if self._seen & bit:
            return False
        self._seen |= bit
        return True
