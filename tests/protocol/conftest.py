"""One authority for all tests of this package: keys take time."""

from pathlib import Path

import pytest

from tests.protocol.authority import TestSite


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> TestSite:
    path: Path = tmp_path_factory.mktemp("site")
    return TestSite(path)
