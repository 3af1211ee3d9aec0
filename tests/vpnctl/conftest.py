import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ipc.memory_backend import MemoryBackend
from tests.vpnctl.program import Daemon, serve_in_thread


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A run directory that other users can reach, as /run/pyvpn-server is."""
    path = Path(tempfile.mkdtemp(prefix="pyvpn-t-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def daemon(run_dir: Path) -> Iterator[Daemon]:
    """A served MemoryBackend, with `daemon.vpnctl(...)` to run the program on it."""
    with serve_in_thread(run_dir, MemoryBackend()) as daemon:
        yield daemon
