"""Steps that wait for their turn."""

from collections.abc import Callable

import pytest

from vpnd.worker.turns import Turns


def test_steps_run_in_order_and_so_many_a_turn() -> None:
    """Data is read between two turns of the loop."""
    loop: list[Callable[[], None]] = []
    done: list[int] = []
    turns = Turns(loop.append, per_turn=2)
    for number in range(5):
        turns.add(lambda number=number: done.append(number))
    progress = []
    while loop:
        loop.pop(0)()
        progress.append(len(done))
    assert done == [0, 1, 2, 3, 4]
    assert progress == [2, 4, 5]


def test_a_step_that_breaks_does_not_end_the_line() -> None:
    """The loop reports it; the others still get their turn."""
    loop: list[Callable[[], None]] = []
    done: list[str] = []
    turns = Turns(loop.append)
    turns.add(lambda: 1 // 0)
    turns.add(lambda: done.append("after"))
    with pytest.raises(ZeroDivisionError):
        loop.pop(0)()
    loop.pop(0)()
    assert done == ["after"]
    assert len(turns) == 0
