"""The waits between attempts: never none, never endless, never all at once."""

import random
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from vpnd.protocol.backoff import FIRST_S, JITTER, LIMIT_S, delays


@given(st.integers())
def test_waits_grow_to_their_limit_and_stay_within_the_jitter(seed: int) -> None:
    """A busy loop and an hour without an attempt are both wrong."""
    waits = list(islice(delays(random.Random(seed).random), 40))
    wanted = FIRST_S
    for wait in waits:
        assert (1 - JITTER) * wanted <= wait <= wanted
        wanted = min(LIMIT_S, wanted * 2)
    assert min(waits) > 0
    assert waits[-1] >= LIMIT_S * (1 - JITTER)


def test_clients_of_one_server_come_back_at_different_times() -> None:
    """Two hundred at once would be an attack."""
    starts = {next(delays(random.Random(seed).random)) for seed in range(200)}
    assert len(starts) > 190


def test_a_first_wait_beyond_the_limit_is_the_limit() -> None:
    """Whatever a caller asks for."""
    assert list(islice(delays(lambda: 0.0, first_s=9, limit_s=2), 3)) == [2, 2, 2]
