"""Restarts that nobody notices: what systemd keeps for vpnd is taken back, and clients return."""

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.netns.bed import PORT, SERVER4
from tests.netns.crowd import begin_sessions, start_crowd
from tests.netns.manager import children, index_of, managed
from tests.netns.process import Process
from tests.netns.site import Site
from tests.netns.snapshot import snapshot

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
CROWD = 200
BACK_S = 3.0  # promised for 200 sessions after a restart
STORED = ["helper", "tcp-0", "tun-0", "udp-0"]
ROOMY = {"connections_per_address": 2 * CROWD}
WATCHDOG_S = 5.0


@pytest.fixture(scope="module")
def site(make_managed: Callable[..., Site]) -> Site:
    config = {"server": {"addresses": ["0.0.0.0"]}, "limits": ROOMY}
    return make_managed(config=config, watchdog_s=WATCHDOG_S)


def all_back(crowd: Process, mark: int, *, timeout_s: float) -> dict[str, Any]:
    found = crowd.wait_for(r"^\{.*\}$", since=mark, timeout_s=timeout_s)
    told: dict[str, Any] = json.loads(found[0])
    return told


@pytest.fixture(scope="module")
def crowd(site: Site) -> Process:
    """200 clients, all connected."""
    cookies = begin_sessions(site.bed.server, site.daemons.folder / "state", "crowd", CROWD)
    site.daemons.start()
    crowd = start_crowd(site.bed.client, SERVER4, PORT, cookies)
    all_back(crowd, crowd.begin, timeout_s=60)
    return crowd


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_200_sessions_are_back_within_3_s(site: Site, crowd: Process, signum: int) -> None:
    """A restart and a crash cost a moment: same addresses, and the TUN is there all the time."""
    daemons = managed(site)
    assert daemons.manager.names == STORED
    before = json.loads(crowd.text().splitlines()[-1])
    index, network = index_of(site.bed.server, "pyvpn0"), snapshot(site.bed.server)
    mark, helper = crowd.mark(), daemons.helper.mark()
    daemons.restart(signum)
    after = all_back(crowd, mark, timeout_s=3 * BACK_S)
    print(f"{CROWD} sessions were back after {after['took_s']} s")
    assert after["inner"] == before["inner"]
    assert index_of(site.bed.server, "pyvpn0") == index
    assert snapshot(site.bed.server) == network
    assert daemons.manager.names == STORED
    assert daemons.helper.text(helper) == ""


def test_a_hung_master_is_killed_and_the_next_one_goes_on(site: Site, crowd: Process) -> None:
    """The watchdog is fed while all answer; who hangs is replaced, and the clients come back."""
    daemons = managed(site)
    daemons.manager.wait_message("WATCHDOG", since=daemons.manager.mark(), timeout_s=WATCHDOG_S)
    before, index = json.loads(crowd.text().splitlines()[-1]), index_of(site.bed.server, "pyvpn0")
    mark = crowd.mark()
    daemons.vpnd.send(signal.SIGSTOP)
    daemons.manager.wait_watchdog()
    daemons.start_vpnd()
    after = all_back(crowd, mark, timeout_s=60)
    print(f"{CROWD} sessions were back {after['took_s']} s after the watchdog")
    assert after["took_s"] < 3 * BACK_S
    assert after["inner"] == before["inner"]
    assert index_of(site.bed.server, "pyvpn0") == index


def test_the_status_says_how_it_is(site: Site, crowd: Process) -> None:
    """`systemctl status` must not show "serving" while something is amiss."""
    daemons = managed(site)
    manager = daemons.manager
    manager.wait_message("STATUS", rf"^serving on 0.0.0.0:{PORT}, {CROWD} connected$")
    mark = manager.mark()
    daemons.helper.kill()
    manager.wait_message("STATUS", "the helper is gone", since=mark)
    daemons.start_helper()
    manager.wait_message("STATUS", rf"{CROWD} connected$", since=mark)
    assert manager.names == STORED
    mark = manager.mark()
    (worker,) = children(daemons.vpnd.pid)
    worker.send(signal.SIGKILL)
    manager.wait_message("STATUS", "restarting the worker", since=mark)
    manager.wait_message("STATUS", "^serving on", since=mark)
    assert crowd.is_alive


def test_a_restart_after_the_helper_was_restarted_goes_on_too(site: Site, crowd: Process) -> None:
    """An upgrade restarts both: what was stored is then a connection to nobody."""
    daemons = managed(site)
    index, mark = index_of(site.bed.server, "pyvpn0"), crowd.mark()
    daemons.manager.end(signal.SIGKILL)
    daemons.helper.stop()
    daemons.start_helper()
    daemons.start_vpnd()
    all_back(crowd, mark, timeout_s=60)
    assert index_of(site.bed.server, "pyvpn0") == index
    assert daemons.manager.names == STORED
