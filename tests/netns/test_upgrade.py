"""An upgrade under running programs: files change first, restarts come later, one by one."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.manager import ManagedDaemons, children, index_of, managed
from tests.netns.namespace import ROOT
from tests.netns.openconnect import OpenConnect
from tests.netns.site import Site

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
RESTART = 75  # the exit status that asks for another start
STORED = ["helper", "tcp-0", "tun-0", "udp-0"]


@pytest.fixture(scope="module")
def site(make_managed: Callable[..., Site]) -> Site:
    """A server that runs from files of its own."""
    site = make_managed(config={"server": {"addresses": ["0.0.0.0"]}})
    code = installed(site)
    for package in ("vpnd", "helper"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, code / package, ignore=ignore)
    managed(site).manager.env["PYTHONPATH"] = str(code)
    managed(site).helper_env["PYTHONPATH"] = str(code)
    site.daemons.start()
    return site


@pytest.fixture(scope="module")
def client(site: Site) -> OpenConnect:
    client = site.connect(certificate=site.daemons.add_client("alice"))
    client.wait_connected()
    return client


def installed(site: Site) -> Path:
    return site.daemons.folder / "code"


def install(site: Site, file: str, old: str, new: str) -> None:
    """Replace something in a file of the program."""
    path = installed(site) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def goes_on(site: Site, client: OpenConnect, mark: int, index: int) -> None:
    """Check that the client is back, and that the TUN never was away."""
    client.wait_reconnected(since=mark)
    site.bed.client.ping(site.gateway4)
    assert index_of(site.bed.server, "pyvpn0") == index
    assert managed(site).manager.names == STORED


def restarted(daemons: ManagedDaemons) -> None:
    """Start again what has ended by itself because of the upgrade."""
    assert daemons.vpnd.wait(timeout_s=20) == RESTART
    daemons.start_vpnd()


def test_a_worker_of_a_later_version_gets_a_later_master(site: Site, client: OpenConnect) -> None:
    """The old master starts it from the new files, and they do not understand each other."""
    daemons, index, mark = (
        managed(site),
        index_of(site.bed.server, "pyvpn0"),
        client.process.mark(),
    )
    install(site, "vpnd/worker/messages.py", "    log_level: str\n", "    log_at: str\n")
    for user in ("vpnd/server/master.py", "vpnd/client/master.py"):
        install(site, user, "log_level=", "log_at=")
    for user in ("vpnd/worker/__main__.py", "vpnd/worker/worker.py"):
        path = installed(site) / user
        path.write_text(path.read_text().replace(".log_level", ".log_at"))
    (worker,) = children(daemons.vpnd.pid)
    worker.send(signal.SIGKILL)
    restarted(daemons)
    assert "pyvpn was upgraded while it ran" in daemons.vpnd.log.read_text()
    goes_on(site, client, mark, index)


def test_a_helper_of_a_later_version_gets_a_later_vpnd(site: Site, client: OpenConnect) -> None:
    """It is restarted first; vpnd comes back to it, is told, and asks for its own restart."""
    daemons, index, mark = (
        managed(site),
        index_of(site.bed.server, "pyvpn0"),
        client.process.mark(),
    )
    install(site, "helper/messages.py", "PROTOCOL = 1\n", "PROTOCOL = 2\n")
    daemons.helper.stop()
    daemons.start_helper()
    restarted(daemons)
    assert "helper speaks protocol 2: restart helper and vpnd" in daemons.vpnd.log.read_text()
    goes_on(site, client, mark, index)


def test_a_vpnd_of_a_later_version_waits_for_its_helper(site: Site, client: OpenConnect) -> None:
    """It is restarted first: it goes again and again, and what is stored stays so."""
    daemons, index, mark = (
        managed(site),
        index_of(site.bed.server, "pyvpn0"),
        client.process.mark(),
    )
    install(site, "helper/messages.py", "PROTOCOL = 2\n", "PROTOCOL = 3\n")
    daemons.manager.end(job="restart")
    for _ in range(2):
        daemons.start_vpnd(wait=False)
        assert daemons.vpnd.wait(timeout_s=20) == RESTART
        assert "helper speaks protocol 2: restart helper and vpnd" in daemons.vpnd.text()
        assert daemons.manager.names == STORED
    daemons.helper.stop()
    daemons.start_helper()
    daemons.start_vpnd()
    goes_on(site, client, mark, index)


def test_a_worker_ends_with_its_master(site: Site, client: OpenConnect) -> None:
    """Two generations must not share the TUN, and who is left has nobody to stop it."""
    daemons, index, mark = (
        managed(site),
        index_of(site.bed.server, "pyvpn0"),
        client.process.mark(),
    )
    (worker,) = children(daemons.vpnd.pid)
    daemons.vpnd.kill()
    assert worker.wait(timeout_s=5)
    daemons.start_vpnd()
    goes_on(site, client, mark, index)
    client.disconnect()
