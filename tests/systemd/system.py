"""A Debian system with systemd as its first process, booted by systemd-nspawn(1).

Its disk is an overlay: a root of root.sh below, a layer in memory above, which a reboot keeps.
Its network is a link to the bridge of the namespace that it was started in.
"""

import re
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tests.netns.namespace import Namespace, run
from tests.netns.process import BedError, Pid, Process

BOOT_S = 90.0
POWEROFF_S = 30.0
KILL_S = 20.0
COMMAND_S = 120.0
LAYER_SIZE = "3g"  # of memory, at most: an installation of everything has 300 MB
CGROUPS = Path("/sys/fs/cgroup")
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
}
APT = ("apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", "--no-install-recommends")


class System:
    """One system: `boot` it, run commands in it, look at its files from outside."""

    def __init__(self, name: str, bed: str, base: Path, folder: Path, outside: Namespace) -> None:
        self.name = name
        self.machine = f"{bed}-{name}"
        self.folder = folder / name
        self._base = base
        self._notes = folder
        self._outside = outside
        self._nspawn: Process | None = None
        self._leader: Pid | None = None
        self._uuid = uuid.uuid4().hex

    @property
    def root(self) -> Path:
        """Its file system, as long as it is mounted."""
        return self.folder / "root"

    @property
    def leader(self) -> Pid:
        """Its systemd, as it is called out here."""
        if self._leader is None:
            raise BedError(f"{self.name} is not running")
        return self._leader

    def create(self, network: str) -> None:
        """Mount its disk and write its network configuration (systemd.network(5))."""
        layer = self.folder / "layer"
        for folder in (layer, self.root, self.folder / "journal"):
            folder.mkdir(parents=True)
        self._note("mounts", str(layer))
        run("mount", "-t", "tmpfs", "-o", f"size={LAYER_SIZE},mode=0755", self.machine, str(layer))
        for name in ("upper", "work"):
            (layer / name).mkdir()
        self._note("mounts", str(self.root))
        options = f"lowerdir={self._base},upperdir={layer}/upper,workdir={layer}/work"
        run("mount", "-t", "overlay", "-o", options, self.machine, str(self.root))
        self.write("/etc/systemd/network/10-host0.network", network)
        self.write("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {self.name}\n")
        wants = self.root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "systemd-networkd.service").symlink_to(
            "/usr/lib/systemd/system/systemd-networkd.service"
        )

    def boot(self) -> None:
        """Start it; return when systemd says that everything runs."""
        cgroups = [f"{path}/cgroup.procs" for path in self._make_cgroups()]
        into_cgroups = 'for file in "$@"; do [ "$file" = -- ] && break; echo $$ >"$file"; done; '
        shift = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'
        self._nspawn = self._outside.start(
            f"{self.name}-console",
            *("sh", "-ec", into_cgroups + shift, "sh", *cgroups, "--"),
            *("systemd-nspawn", "--quiet", "-D", str(self.root), "-M", self.machine),
            *(f"--hostname={self.name}", f"--uuid={self._uuid}", "--boot"),
            f"--bind={self.folder / 'journal'}:/var/log/journal",
            *("--network-bridge=br0", "--register=no", "--keep-unit", "--console=read-only"),
            # else systemd cannot enforce DeviceAllow= and IPAddressDeny=, and does not say so
            "--system-call-filter=bpf",
            env={"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )
        self._leader = self._wait_for_leader(time.monotonic() + BOOT_S)
        state = self.run("systemctl", "is-system-running", "--wait", check=False, timeout_s=BOOT_S)
        if state.stdout.strip() != "running":
            failed = self.run("systemctl", "--failed", "--no-legend", check=False).stdout
            raise BedError(f"{self.name} is {state.stdout.strip()}: {failed}")

    def _make_cgroups(self) -> Iterator[Path]:
        """Make a cgroup in each hierarchy that systemd uses; shared ones would mix systems up."""
        for hierarchy in (CGROUPS / "unified", CGROUPS / "systemd", CGROUPS):
            if (hierarchy / "cgroup.procs").exists():
                path = hierarchy / self.machine
                self._note("cgroups", str(path))
                path.mkdir(exist_ok=True)
                yield path

    def _wait_for_leader(self, deadline: float) -> Pid:
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid.number}/task/{self._nspawn.pid.number}/children")
        while time.monotonic() < deadline:
            if not self._nspawn.is_alive:
                break
            for number in children.read_text().split():
                manager = Path(f"/proc/{number}/root/run/systemd/private")
                if manager.is_socket():
                    return Pid.of(int(number))
            time.sleep(0.02)
        raise BedError(f"{self.name} does not boot: read {self._nspawn.log}")

    def power_off(self) -> None:
        """Shut it down in order, as its power button does."""
        if self._nspawn is None:
            return
        self._nspawn.send(signal.SIGTERM)
        try:
            self._nspawn.wait(POWEROFF_S)
        finally:
            self._nspawn = self._leader = None

    def reboot(self) -> None:
        """Shut it down and boot it again with the same disk."""
        self.power_off()
        self.boot()

    def enter(self) -> tuple[str, ...]:
        """Return the command prefix that runs a program in it, as root, beside its services."""
        environment = (f"{name}={value}" for name, value in ENVIRONMENT.items())
        return ("nsenter", "-t", str(self.leader.number), "-a", "env", "-i", *environment)

    def run(
        self,
        *argv: str,
        stdin: str | None = None,
        check: bool = True,
        timeout_s: float = COMMAND_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in it to its end; with check, a bad exit status is a BedError."""
        return run(*self.enter(), *argv, stdin=stdin, check=check, timeout_s=timeout_s)

    def shell(self, script: str, *, check: bool = True, timeout_s: float = COMMAND_S) -> str:
        """Run what a person types, one or more lines; return what it prints, errors too."""
        done = self.run("sh", "-ec", f"exec 2>&1\n{script}", check=False, timeout_s=timeout_s)
        if check and done.returncode:
            raise BedError(f"{self.name}: `{script}` ended with {done.returncode}: {done.stdout}")
        return done.stdout

    def start(self, name: str, *argv: str) -> Process:
        """Start a program in it; its log is log/SYSTEM-NAME.log of the bed."""
        process = Process.start(
            f"{self.name}-{name}",
            # nsenter waits for a child, which ends with it
            [*self.enter(), "setpriv", "--pdeathsig", "KILL", *argv],
            log=self._notes / "log" / f"{self.name}-{name}.log",
            env=ENVIRONMENT,
        )
        self._note("processes", f"{process.pid} {process.name}")
        self._outside.processes.append(process)
        return process

    def apt(self, *arguments: str) -> str:
        """Run apt-get without questions."""
        return self.run(*APT, *arguments, timeout_s=300.0).stdout

    def install(self, package: Path) -> str:
        """`apt install ./FILE.deb`."""
        self.put(package, "/root/")
        return self.apt("install", f"/root/{package.name}")

    def path(self, inside: str) -> Path:
        """Return where a file of it is found from out here."""
        return self.root / inside.lstrip("/")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Write a file of root's."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def put(self, file: Path, inside: str) -> None:
        """Copy a file into it."""
        run("cp", str(file), str(self.path(inside)))

    def journal(self, *options: str) -> str:
        """Return the lines of this boot's journal, without times and names."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "-b", "-q", "-o", "cat", "--no-pager", *options).stdout

    def cursor(self) -> str:
        """Return the place in the journal behind which everything is new."""
        self.run("journalctl", "--sync")
        said = self.run("journalctl", "-n", "1", "-o", "cat", "--show-cursor", "-q").stdout
        return said.rpartition("-- cursor: ")[2].strip()

    def wait_journal(
        self, pattern: str, *, since: str = "", unit: str = "pyvpn-*", timeout_s: float = 30.0
    ) -> re.Match[str]:
        """Return the first match in what units write to the journal, since a cursor."""
        place = [f"--after-cursor={since}"] if since else ["--boot"]
        follower = self.start(
            "journal",
            *("journalctl", "--follow", "--lines=all", "-q", "-o", "cat", "-u", unit, *place),
        )
        try:
            return follower.wait_for(pattern, timeout_s=timeout_s)
        finally:
            follower.kill()

    def wait_until(self, script: str, *, timeout_s: float = 30.0) -> str:
        """Ask again and again until a shell script succeeds: for what nobody announces."""
        deadline = time.monotonic() + timeout_s
        while True:
            done = self.run("sh", "-ec", script, check=False)
            if done.returncode == 0:
                return done.stdout
            if time.monotonic() > deadline:
                said = done.stdout + done.stderr
                raise BedError(f"{self.name}: `{script}` fails for {timeout_s:.0f} s: {said}")
            time.sleep(0.1)

    def property(self, unit: str, name: str) -> str:
        """Return a property of a unit, see `systemctl show`."""
        return self.run("systemctl", "show", "-P", name, unit).stdout.strip()

    def close(self) -> None:
        """Power it off, or else end it; take_down does the rest."""
        try:
            self.power_off()
        except BedError:
            kill_cgroups([str(CGROUPS / "unified" / self.machine)])

    def _note(self, what: str, line: str) -> None:
        with (self._notes / what).open("a") as notes:
            notes.write(f"{line}\n")


def kill_cgroups(paths: Sequence[str]) -> None:
    """End every process of these cgroups and remove them.

    A killed systemd-nspawn leaves its system running, which goes on making cgroups.
    """
    deadline = time.monotonic() + KILL_S
    for path in map(Path, paths):
        while path.exists() and time.monotonic() < deadline:
            folders = [path, *(found for found in path.rglob("*") if found.is_dir())]
            for folder in folders:
                _kill(folder / "cgroup.procs")
            for folder in reversed(folders):  # the deepest first
                with suppress(OSError):  # busy until the last one is reaped
                    folder.rmdir()
            time.sleep(0.02)


def _kill(procs: Path) -> None:
    with suppress(OSError):
        for number in procs.read_text().split():
            with suppress(ProcessLookupError):
                Pid.of(int(number)).send(signal.SIGKILL)
