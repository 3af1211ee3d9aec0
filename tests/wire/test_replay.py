"""The replay window against a plain set of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from vpnd.wire.replay import WINDOW, ReplayWindow

NUMBERS = st.lists(
    st.one_of(
        st.integers(0, 40),
        st.integers(0, 3 * WINDOW),
        st.sampled_from([WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 2**48 - 1]),
    ),
    max_size=60,
)


@given(NUMBERS)
def test_a_number_is_accepted_once_and_only_inside_the_window(numbers: list[int]) -> None:
    """The model remembers all it has ever seen; the window may not tell the difference."""
    window, seen = ReplayWindow(), set[int]()
    for number in numbers:
        is_recent = number > max(seen, default=-1) - WINDOW
        assert window.accept(number) is (is_recent and number not in seen)
        if is_recent:
            seen.add(number)


@given(NUMBERS, st.integers(0, 3 * WINDOW), st.integers(1, 64), NUMBERS)
def test_a_run_is_accepted_as_its_numbers_are_or_not_at_all(
    before: list[int], first: int, count: int, after: list[int]
) -> None:
    """A train goes by the run; what comes in behind it cannot tell."""
    window, model = ReplayWindow(), ReplayWindow()
    for number in before:
        assert window.accept(number) is model.accept(number)
    if window.accept_run(first, count):
        assert first > max(before, default=-1)
        assert all(model.accept(number) for number in range(first, first + count))
    else:
        assert first <= max(before)
    assert window.newest == model.newest
    for number in after:
        assert window.accept(number) is model.accept(number)


def test_the_window_is_as_wide_as_it_says() -> None:
    """Reordering across queues must not cost packets; one record more is one too many."""
    window = ReplayWindow()
    assert window.accept(WINDOW)
    assert window.accept(1)
    assert not window.accept(0)


def test_a_jump_far_ahead_forgets_nothing_that_is_still_inside() -> None:
    """A leap of exactly the window's width is where a shift by one place would show."""
    for leap in (WINDOW - 1, WINDOW, WINDOW + 1):
        window = ReplayWindow()
        assert window.accept(5)
        assert window.accept(5 + leap)
        assert not window.accept(5)
        assert window.accept(5 + leap - 1)
        assert not window.accept(5 + leap)


def test_the_newest_number_is_told() -> None:
    """Who moved is judged by the newest record alone."""
    window = ReplayWindow()
    assert window.newest == -1
    for number, newest in ((5, 5), (3, 5), (9, 9)):
        window.accept(number)
        assert window.newest == newest
