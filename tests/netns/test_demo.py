"""`./run.sh demo`, the first thing a new user runs."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.netns.demo import FOLDER
from tests.netns.namespace import NETNS, ROOT

pytestmark = [pytest.mark.netns, pytest.mark.once, pytest.mark.timeout(180)]


@pytest.fixture(autouse=True)
def _nobody_elses_demo() -> None:
    if FOLDER.exists():
        pytest.fail("a kept demo is up: ./run.sh demo --stop")


PARTS = ("client", "client1", "internet", "server")


def run_sh(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "run.sh", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": os.environ.get("PYTHON", "/usr/bin/python3")},
    )


def namespaces() -> set[str]:
    return {p.name for p in NETNS.glob("pyvpn-demo-*")}


def test_demo_shows_a_tunnel_and_leaves_nothing() -> None:
    """Two commands after the clone a stranger sees a working VPN, and no trace of it."""
    done = run_sh("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "it saw 203.0.113.2, the server" in done.stdout
    assert "it saw 2001:db8:2::2, the server" in done.stdout
    assert "without a break" in done.stdout
    assert "DTLS" in done.stdout.partition("vpnctl status")[2]
    assert not namespaces()
    assert not FOLDER.exists()


def test_demo_is_kept_until_it_is_stopped() -> None:
    """`--keep` is for looking around; `--stop` must find everything again by itself."""
    try:
        kept = run_sh("demo", "--keep")
        assert kept.returncode == 0, kept.stdout + kept.stderr
        assert "nsenter --net=/run/netns/pyvpn-demo-client" in kept.stdout
        assert namespaces() == {f"pyvpn-demo-{part}" for part in PARTS}
        second = run_sh("demo")
        assert second.returncode == 1
        assert "./run.sh demo --stop" in second.stderr
    finally:
        stopped = run_sh("demo", "--stop")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert not namespaces()
    assert not FOLDER.exists()
    assert not processes_under(FOLDER)


def processes_under(folder: Path) -> list[str]:
    """Return the command lines that name a folder, of processes for which it is this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (
                (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            is_ours = (entry / "root").samefile("/")  # a container or chroot has one of its own
        except OSError:  # it ended while we looked
            continue
        if is_ours and str(folder) in command:
            found.append(command)
    return found
