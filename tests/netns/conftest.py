"""Fixtures of the tests on network namespaces."""

import compileall
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.netns.bed import CACHE, Bed
from tests.netns.daemons import Config, Daemons
from tests.netns.manager import ManagedDaemons
from tests.netns.namespace import ROOT
from tests.netns.site import Site
from tests.netns.teardown import take_down_dead

_numbers = itertools.count()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Namespaces and TUN devices are for root; `./run.sh test` says so before it begins."""
    if item.get_closest_marker("netns"):
        if os.geteuid() != 0:
            pytest.skip("needs root: sudo ./run.sh test")
        if not Path("/dev/net/tun").exists():
            pytest.skip("needs /dev/net/tun: modprobe tun")


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """Users who may not write here would compile every module at every start."""
    for package in ("vpnd", "vpnctl", "helper", "tests/netns"):
        compileall.compile_dir(ROOT / package, quiet=1)


@pytest.fixture(scope="session")
def _no_leftovers() -> None:
    """A test run that was killed leaves namespaces behind; the next one takes them down."""
    take_down_dead()


@pytest.fixture(scope="module")
def make_bed(
    request: pytest.FixtureRequest, _no_leftovers: None
) -> Iterator[Callable[[int], Bed]]:
    """Build beds with so many clients; all are taken down after the module's tests."""
    beds: list[Bed] = []

    def make(clients: int = 1) -> Bed:
        bed = Bed.for_test(next(_numbers), clients=clients)
        beds.append(bed)
        bed.build()
        return bed

    failed_before = request.session.testsfailed
    yield make
    for bed in beds:
        if request.session.testsfailed > failed_before:
            bed.keep_logs(CACHE / "netns-logs" / Path(sys.prefix).name / request.module.__name__)
        bed.close()


@pytest.fixture(scope="module")
def make_site(make_bed: Callable[[int], Bed]) -> Callable[..., Site]:
    """Build a bed with a running server: `make_site(clients=2, config={...})`."""

    def make(clients: int = 1, config: Config | None = None) -> Site:
        daemons = Daemons((bed := make_bed(clients)).server, config)
        daemons.prepare()
        daemons.start()
        return Site(bed, daemons)

    return make


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """What it holds is closed after the test, however that ends."""
    with ExitStack() as held:
        yield held


@pytest.fixture(scope="module")
def make_managed(make_bed: Callable[[int], Bed]) -> Iterator[Callable[..., Site]]:
    """Build a bed whose server is a service, prepared and not started."""
    made = []

    def make(clients: int = 1, **options: Any) -> Site:
        bed = make_bed(clients)
        daemons = ManagedDaemons(bed.server, **options)
        daemons.prepare()
        made.append(daemons)
        return Site(bed, daemons)

    yield make
    for daemons in made:
        daemons.manager.close()
