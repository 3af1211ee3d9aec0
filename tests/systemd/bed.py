"""The test bed of whole systems: Debian machines on a bridge, and an internet.

      server 203.0.113.2 ──┐
             2001:db8:2::2 │  br0 203.0.113.1    web 192.0.2.80, 2001:db8:80::80 (on lo)
      client 203.0.113.3 ──┼───── internet ──────┘
             2001:db8:2::3 │
      ...                ──┘

The internet knows no route to the tunnel's addresses: what reaches the web was translated.

python -m tests.systemd.bed ROOT     a bed with one system, until it is killed
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from tests.netns.bed import CACHE, WEB4, WEB6
from tests.netns.namespace import PYTHON, ROOT, Namespace, run
from tests.netns.process import BedError, Pid
from tests.systemd.system import System
from tests.systemd.teardown import BEDS, take_down

ROOTS = CACHE / "rig"
CONTROL = ROOT / "packaging/debian/control"


class Bed:
    """A network namespace and the systems on its bridge."""

    def __init__(self, prefix: str, folder: Path) -> None:
        self.prefix = prefix
        self.folder = folder
        self.internet = Namespace(f"{prefix}-internet", folder)
        self.systems: list[System] = []

    @classmethod
    def for_test(cls, number: int) -> "Bed":
        """Return a bed whose folder names this process as its owner."""
        name = f"{os.getpid()}-{number}"
        bed = cls(f"pyvpn-s-{name}", BEDS / name)
        bed.folder.mkdir(parents=True, mode=0o755)
        (bed.folder / "log").mkdir()
        (bed.folder / "owner").write_text(str(Pid.of(os.getpid())))
        return bed

    def build(self) -> None:
        """Create bridge, internet and web."""
        self.internet.create()
        self.internet.sysctl("net/ipv4/ip_forward", "1")
        self.internet.sysctl("net/ipv6/conf/all/forwarding", "1")
        self.internet.ip(
            f"address add {WEB4}/32 dev lo",
            f"address add {WEB6}/128 dev lo",
            "link add br0 type bridge",
            "address add 203.0.113.1/24 dev br0",
            "address add 2001:db8:2::1/64 dev br0 nodad",
            "link set br0 up",
        )
        web = self.internet.start("web", *PYTHON, "tests.netns.web", WEB4, WEB6)
        web.wait_for("^ready")

    def add(self, name: str, base: Path) -> System:
        """Boot one more system."""
        number = len(self.systems) + 2
        system = System(name, self.prefix, base, self.folder, self.internet)
        self.systems.append(system)
        system.create(
            "[Match]\nName=host0\n\n[Network]\nLinkLocalAddressing=ipv6\n"
            "IPv6AcceptRA=no\nIPv6DuplicateAddressDetection=0\n"
            f"Address=203.0.113.{number}/24\nGateway=203.0.113.1\n"
            f"Address=2001:db8:2::{number}/64\nGateway=2001:db8:2::1\n"
        )
        system.boot()
        return system

    def keep_logs(self, to: Path) -> None:
        """Copy logs and journals to a place that outlives the bed."""
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.folder / "log", to)
        for system in self.systems:
            journal = run(
                "journalctl", "-D", str(system.folder / "journal"), "--no-pager", check=False
            )
            (to / f"{system.name}.journal").write_text(journal.stdout)

    def close(self) -> None:
        """Power everything off and leave nothing behind."""
        for system in self.systems:
            system.close()
        for process in self.internet.processes:
            process.pid.end()
            process.wait()  # reaped: take_down knows processes by number only
        take_down(self.folder)


def root(suite: str) -> Path:
    """Return the folder of a suite's roots `bare` and `ready`, made where they are missing."""
    ROOTS.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("root.sh")
    done = run(str(script), suite, str(ROOTS), *dependencies(), timeout_s=900.0, env=os.environ)
    return Path(done.stdout.strip())


def dependencies() -> list[str]:
    """Return what our package depends on, from its control file."""
    text = CONTROL.read_text()
    _, _, rest = text.partition("\nDepends:")
    lines = []
    for line in rest.splitlines()[1:]:
        if not line.startswith(" "):
            break
        lines.append(line.strip().rstrip(",").split(" ")[0])
    found = [line for line in lines if not line.startswith("$")]
    if not found:
        raise BedError(f"{CONTROL}: no Depends")
    return [*found, "python3"]


if __name__ == "__main__":
    alone = Bed.for_test(0)
    alone.build()
    alone.add("server", Path(sys.argv[1]))
    print(f"running {alone.prefix}", flush=True)
    signal.pause()
