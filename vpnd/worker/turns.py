"""Work that may wait until the data of a wake-up is through: handshake steps, mostly.

One step costs 0.75 ms; a burst of them in one go would hold up every packet.
"""

from collections import deque
from collections.abc import Callable


class Turns:
    """A line of steps, of which some run in each turn of the event loop."""

    __slots__ = ("_call_soon", "_per_turn", "_steps")

    def __init__(
        self, call_soon: Callable[[Callable[[], None]], object], *, per_turn: int = 1
    ) -> None:
        self._call_soon = call_soon
        self._per_turn = per_turn
        self._steps: deque[Callable[[], None]] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: Callable[[], None]) -> None:
        """Let `step` run in its turn.  The caller bounds how many wait."""
        if not self._steps:
            self._call_soon(self._run)
        self._steps.append(step)

    def _run(self) -> None:
        try:
            for _ in range(min(self._per_turn, len(self._steps))):
                self._steps.popleft()()
        finally:
            if self._steps:
                self._call_soon(self._run)
