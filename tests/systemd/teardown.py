"""Take beds of whole systems down, also when the one who built them is gone.

python -m tests.systemd.teardown --dead      the beds of test runs that died
"""

import shutil
from pathlib import Path

from tests.netns import teardown as netns
from tests.netns.namespace import run
from tests.netns.teardown import is_owned, notes
from tests.systemd.system import kill_cgroups

BEDS = Path("/run/pyvpn-test-systemd")  # one folder per bed of a test run


def take_down(folder: Path) -> None:
    """End the systems of a bed, unmount their disks, delete the network and the folder."""
    kill_cgroups(notes(folder / "cgroups"))
    for path in reversed(notes(folder / "mounts")):
        run("umount", path, check=False)
    for path in notes(folder / "mounts"):
        if Path(path).is_mount():
            run("umount", "--lazy", path)
    netns.take_down(folder)
    shutil.rmtree(folder, ignore_errors=True)


def take_down_dead() -> list[str]:
    """Take down the beds whose owner is no longer alive; return their names."""
    dead = [f for f in BEDS.iterdir() if not is_owned(f)] if BEDS.is_dir() else []
    for folder in dead:
        take_down(folder)
    return [folder.name for folder in dead]


if __name__ == "__main__":
    for bed in take_down_dead():
        print(f"took down the systems of {bed}, whose test run had died")
