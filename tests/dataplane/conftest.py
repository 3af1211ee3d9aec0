from collections.abc import Iterator

import pytest

from tests.dataplane.wiring import Plane


@pytest.fixture
def plane() -> Iterator[Plane]:
    made = Plane()
    yield made
    made.close()
