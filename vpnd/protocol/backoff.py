"""How long to wait between two attempts to connect."""

from collections.abc import Callable, Iterator

FIRST_S = 0.5
FACTOR = 2.0
LIMIT_S = 30.0
JITTER = 0.5  # of a delay: a restarted server must not see all its clients in one moment


def delays(
    random: Callable[[], float],
    *,
    first_s: float = FIRST_S,
    factor: float = FACTOR,
    limit_s: float = LIMIT_S,
) -> Iterator[float]:
    """Yield, without end, the seconds to wait before the next attempt; make a new one at success.

    The n-th lies between (1 - JITTER) and 1 times min(limit_s, first_s * factor ** n).  `random`
    returns numbers of [0, 1).
    """
    delay = min(first_s, limit_s)
    while True:
        yield delay * (1 - JITTER * random())
        delay = min(limit_s, delay * factor)
