"""The generator's modules, which are a script's and so in no package of ours."""

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True, scope="package")
def _generator() -> Iterator[None]:
    """Have `generate` importable, as it is for packaging/manual.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "packaging"))
        yield
