"""Take a test bed down by what its folder notes, also when the one who built it is gone.

python -m tests.netns.teardown FOLDER...     one bed each
python -m tests.netns.teardown --dead        the beds of test runs that died
"""

import shutil
import signal
import sys
from pathlib import Path

from tests.netns.namespace import inhabitants, run
from tests.netns.process import Pid

TEST_BEDS = Path("/run/pyvpn-test")  # one folder per bed of a test run


def take_down(folder: Path) -> None:
    """End every program of a bed, newest first, delete its namespaces and its folder."""
    for line in reversed(notes(folder / "processes")):
        number, started, _ = line.split(maxsplit=2)
        Pid(int(number), int(started)).end()
    for name in notes(folder / "namespaces"):
        for pid in inhabitants(name):
            pid.send(signal.SIGKILL)
        run("ip", "netns", "delete", name, check=False)
    shutil.rmtree(folder, ignore_errors=True)


def take_down_dead(parent: Path = TEST_BEDS) -> list[str]:
    """Take down the beds whose owner is no longer alive; return their names."""
    dead = [f for f in parent.iterdir() if not is_owned(f)] if parent.is_dir() else []
    for folder in dead:
        take_down(folder)
    return [folder.name for folder in dead]


def is_owned(folder: Path) -> bool:
    """Tell whether the test run that built a bed still goes on.

    A bed begins with the number of its owner, who notes a moment later when it was started.
    """
    owner = notes(folder / "owner")
    if not owner:
        return Path("/proc", folder.name.split("-")[0]).exists()
    return Pid.parse(owner[0]).is_alive()


def notes(path: Path) -> list[str]:
    """Return the lines of one of a bed's notes; none when its owner takes the bed down."""
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []


if __name__ == "__main__":
    if sys.argv[1:] == ["--dead"]:
        for bed in take_down_dead():
            print(f"took down the test bed {bed}, whose test run had died")
    else:
        for argument in sys.argv[1:]:
            take_down(Path(argument))
