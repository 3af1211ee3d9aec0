"""Every target stands its corpus, and what a second of blind changes makes of it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CORPUS = {
    name: sorted(Path(__file__).with_name("corpus").joinpath(name).iterdir()) for name in TARGETS
}


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_in_the_corpus_harms_nobody(name: str) -> None:
    """Inputs that once did are kept there."""
    assert CORPUS[name]
    for file in CORPUS[name]:
        TARGETS[name](file.read_bytes())


@st.composite
def changed(draw: st.DrawFn, name: str) -> bytes:
    """An input of the corpus with a few bytes put in, left out or replaced."""
    data = bytearray(draw(st.sampled_from(CORPUS[name])).read_bytes())
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 8)))
        data[start:end] = draw(st.binary(max_size=8))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_small_changes_harm_nobody(name: str, data: st.DataObject) -> None:
    """`./run.sh fuzz` does this for longer, and looks where it gets to."""
    TARGETS[name](data.draw(changed(name)))
