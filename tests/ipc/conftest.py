import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A run directory that other users can reach, as /run/pyvpn-server is."""
    path = Path(tempfile.mkdtemp(prefix="pyvpn-t-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def path(run_dir: Path) -> Path:
    return run_dir / "vpnd.sock"
