"""The bed itself: what it leaves behind, which is nothing."""

import os
import signal
from pathlib import Path

import pytest

from tests.netns.namespace import ENVIRONMENT, PYTHON, run
from tests.netns.process import Process
from tests.systemd.system import CGROUPS
from tests.systemd.teardown import BEDS, take_down_dead

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(300)]


def test_a_test_run_that_was_killed_leaves_nothing_for_long(tmp_path: Path, roots: Path) -> None:
    """The next run ends its systems, unmounts their disks and deletes the network."""
    argv = [*PYTHON, "tests.systemd.bed", str(roots / "bare")]
    victim = Process.start("victim", argv, log=tmp_path / "log", env=ENVIRONMENT)
    prefix = victim.wait_for(r"^running (\S+)$", timeout_s=120)[1]
    before = leftovers(prefix)
    assert all(before.values()), before
    os.kill(victim.pid.number, signal.SIGKILL)
    victim.wait()
    assert leftovers(prefix) == before
    assert take_down_dead()
    assert not any(leftovers(prefix).values()), leftovers(prefix)


def leftovers(prefix: str) -> dict[str, list[str]]:
    """Return what there is of a bed, by kind."""
    return {
        "mounts": [
            line for line in run("findmnt", "-rno", "SOURCE").stdout.split() if prefix in line
        ],
        "cgroups": [str(path) for path in CGROUPS.glob(f"*/{prefix}*")],
        "namespaces": [line for line in run("ip", "netns").stdout.splitlines() if prefix in line],
        "folders": [path.name for path in BEDS.iterdir() if prefix.endswith(path.name)],
        "processes": [
            entry.name
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and prefix in command_line(entry)
        ],
    }


def command_line(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_text()
    except OSError:  # it ended meanwhile
        return ""
