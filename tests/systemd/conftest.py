"""Fixtures of the tests on whole systems: `./run.sh test -m systemd`."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.bed import CACHE
from tests.netns.namespace import ROOT, run
from tests.systemd.bed import Bed, root
from tests.systemd.system import System
from tests.systemd.teardown import take_down_dead

SUITE = os.environ.get("PYVPN_SUITE", "trixie")  # or bookworm: Debian of the systems
NEWER = "99.0"  # the version of a package to upgrade to
_numbers = itertools.count()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """They boot systems, and take minutes: for who asks for them; on Debian 12 the main ones."""
    asked = "systemd" in config.option.markexpr
    meant = [
        item
        for item in items
        if not item.get_closest_marker("systemd")
        or (asked and (SUITE == "trixie" or item.path.stem in ("test_story", "test_renewal")))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in meant])
    items[:] = meant


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("systemd"):
        if os.geteuid() != 0:
            pytest.skip("needs root: sudo ./run.sh test -m systemd")
        for program in ("systemd-nspawn", "debootstrap", "dpkg-buildpackage"):
            if shutil.which(program) is None:
                pytest.skip(f"needs {program}: ./run.sh test -m systemd installs it")


@pytest.fixture(scope="session")
def roots() -> Path:
    """The folder of a suite's roots, `bare` and `ready`."""
    take_down_dead()
    return root(SUITE)


@pytest.fixture(scope="session")
def package() -> Path:
    """The package of this clone."""
    return _built()


@pytest.fixture(scope="session")
def newer_package() -> Path:
    """The same, with a higher version."""
    return _built(NEWER)


def _built(*version: str) -> Path:
    env = os.environ | {"PYVPN_DIST": str(CACHE / "dist")}  # not where people look for a release
    done = run(str(ROOT / "run.sh"), "deb", *version, timeout_s=300.0, env=env)
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def bed(request: pytest.FixtureRequest, roots: Path) -> Iterator[Bed]:
    """A bed without systems; what is added is taken down after the module's tests."""
    del roots
    made = Bed.for_test(next(_numbers))
    failed_before = request.session.testsfailed
    try:
        made.build()
        yield made
    finally:
        if request.session.testsfailed > failed_before:
            made.keep_logs(CACHE / "systemd-logs" / request.module.__name__)
        made.close()


@pytest.fixture(scope="module")
def install(bed: Bed, roots: Path, package: Path) -> Callable[[str], System]:
    """Boot a system and install our package: `install("server")`."""

    def make(name: str) -> System:
        system = bed.add(name, roots / "ready")
        system.install(package)
        return system

    return make
