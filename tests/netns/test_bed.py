"""The bed itself: what the other tests of this folder take for granted."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.bed import SERVER4, SERVER6, WEB4, WEB6, Bed, client_addresses
from tests.netns.namespace import NETNS, ROOT
from tests.netns.openconnect import PEERS, fetch_peers
from tests.netns.process import BedError, Pid
from tests.netns.teardown import TEST_BEDS, take_down, take_down_dead
from tests.netns.transfer import Transfer, serve_transfers
from tests.netns.web import fetch

pytestmark = pytest.mark.netns
MakeBed = Callable[..., Bed]


@pytest.fixture(scope="module")
def bed(make_bed: MakeBed) -> Bed:
    return make_bed(clients=2)


def test_clients_reach_the_server_and_the_web_over_both_families(bed: Bed) -> None:
    """A tunnel test that fails must not fail for want of a network below it."""
    for client in bed.clients:
        for address in (SERVER4, SERVER6, WEB4, WEB6):
            client.run("ping", "-c", "1", "-W", "5", address)


def test_the_web_shows_who_asked(bed: Bed) -> None:
    """So that address translation can be seen from outside."""
    bed.start_web()
    for index, client in enumerate(bed.clients):
        for web, own in zip((WEB4, WEB6), client_addresses(index), strict=True):
            assert fetch(client, web) == own


def test_transfers_are_checked_both_ways_and_can_be_followed(bed: Bed) -> None:
    """Tests act in the middle of a transfer, so they must see where it is."""
    serve_transfers(bed.server, SERVER4)
    transfer = Transfer.start(bed.client, SERVER4, up=4 << 20, down=3 << 20)
    transfer.wait_mebibytes("up", 2)
    transfer.wait_mebibytes("down", 1)
    result = transfer.finish()
    assert (result["up"], result["down"]) == (4 << 20, 3 << 20)


def test_a_blockade_stops_udp_and_nothing_else(bed: Bed) -> None:
    """It plays the network that lets only web traffic through."""
    ask = "import socket,sys; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    ask += f"s.settimeout(float(sys.argv[1])); s.sendto(b'x', ('{SERVER4}', 55555)); s.recv(9)"
    echo = "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    echo += f"s.bind(('{SERVER4}', 55555)); print('ready', flush=True)\n"
    echo += "while True: s.sendto(*s.recvfrom(9))"
    bed.server.start("echo", sys.executable, "-c", echo).wait_for("^ready")

    def answered(patience_s: str) -> bool:
        done = bed.client.run(sys.executable, "-c", ask, patience_s, check=False)
        return done.returncode == 0

    assert answered("5")
    bed.block_udp()
    assert not answered("0.2")
    bed.client.run("ping", "-c", "1", "-W", "5", SERVER4)
    bed.unblock_udp()
    assert answered("5")


def test_a_program_that_ends_early_names_its_log(bed: Bed) -> None:
    """Waiting for its words must end at once, with the place to read why."""
    process = bed.server.start("brief", "sh", "-c", "echo hello; exit 7")
    process.wait_for("^hello")
    with pytest.raises(BedError, match=r"brief: ended \(7\) without /never/: read .*brief\.log"):
        process.wait_for("never")


def test_ctrl_c_reaches_programs_also_when_the_tests_run_in_the_background(bed: Bed) -> None:
    """A shell without job control starts `command &` deaf to SIGINT, and that is inherited."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = bed.server.start("listening", "sh", "-c", "echo ready; exec sleep 600")
    finally:
        signal.signal(signal.SIGINT, before)
    process.wait_for("^ready")
    assert process.stop(signal.SIGINT) == -signal.SIGINT


def test_openconnect_runs_unpacked_and_is_not_installed(bed: Bed) -> None:
    """A test bed must not install VPN software on the machine it borrows."""
    fetch_peers("openconnect")
    said = bed.client.run(str(PEERS / "bin/openconnect"), "--version").stdout
    assert re.search(r"^OpenConnect version v\d+\.\d+", said)


CRASHING_RUN = """
import os, signal, sys
from pathlib import Path
from tests.netns import bed
bed.TEST_BEDS = Path(sys.argv[1])
bed = bed.Bed.for_test(77, clients=1)
bed.build()
process = bed.client.start("sleeper", "sh", "-c", "echo ready; exec sleep 600")
process.wait_for("^ready")
child = bed.client.start("parent", "sh", "-c", "sleep 601 & echo ready; exec sleep 602")
child.wait_for("^ready")
print(bed.folder.name, process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def beds() -> Iterator[Path]:
    """A place for beds where no other test run looks for leftovers, with one of a living run."""
    folder = TEST_BEDS / f"{os.getpid()}-beds"
    living = folder / f"{os.getpid()}-0"
    living.mkdir(parents=True)
    (living / "owner").write_text(str(Pid.of(os.getpid())))
    yield folder
    take_down(folder)


@pytest.mark.once
def test_leftovers_of_a_killed_test_run_are_taken_down_by_the_next(beds: Path) -> None:
    """Nobody cleans up by hand after an aborted run; living runs are left alone."""
    living = set(beds.iterdir())
    crashed = subprocess.run(
        [sys.executable, "-c", CRASHING_RUN, str(beds)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert crashed.returncode == -signal.SIGKILL, crashed.stderr
    name, pid = crashed.stdout.strip().split(" ", 1)
    sleeper = Pid.parse(pid)
    namespace = NETNS / f"pyvpn-t-{name}-client"
    assert sleeper.is_alive()
    assert namespace.exists()

    assert take_down_dead(beds) == [name]

    assert not sleeper.is_alive()
    assert not namespace.exists()
    assert set(beds.iterdir()) == living
