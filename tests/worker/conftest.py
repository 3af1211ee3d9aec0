from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.protocol.authority import TestSite
from tests.worker.gateway import Gateway


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> TestSite:
    path: Path = tmp_path_factory.mktemp("site")
    return TestSite(path)
