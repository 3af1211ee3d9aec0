"""`./run.sh server` and `./run.sh clean`, in a namespace that plays the user's machine."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.bed import PORT, SERVER4, Bed
from tests.netns.daemons import Certificate
from tests.netns.namespace import ENVIRONMENT, ROOT, run
from tests.netns.openconnect import OpenConnect
from tests.netns.process import Pid, Process
from tests.netns.snapshot import differences, snapshot

pytestmark = [pytest.mark.netns, pytest.mark.once, pytest.mark.timeout(180)]


class Machine:
    """A user's machine: the server's namespace and folders of its own."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.folder = bed.folder / "machine"
        self.folder.mkdir()
        names = ("ETC", "STATE", "CA", "RUN", "HELPER_RUN", "HELPER_SOCKET")
        self.env = {f"PYVPN_{name}": str(self.folder / name.lower()) for name in names}
        (self.folder / "etc").mkdir()
        sample = (ROOT / "etc/pyvpn/server.toml").read_text()
        socket = f'socket = "{self.env["PYVPN_HELPER_SOCKET"]}"'
        changed = sample.replace('socket = "/run/pyvpn-helper.sock"', socket)
        assert changed != sample
        (self.folder / "etc/server.toml").write_text(changed)

    def start(self) -> Process:
        server = self.bed.server.start("run.sh", str(ROOT / "run.sh"), "server", env=self.env)
        server.wait_for("Ctrl-C ends the server", timeout_s=60)
        return server

    def run_sh(self, *arguments: str) -> str:
        inside = self.bed.server.enter()
        return run(*inside, str(ROOT / "run.sh"), *arguments, env=ENVIRONMENT | self.env).stdout

    def pids(self) -> list[Pid]:
        """The programs that run.sh started, by its own notes."""
        return [Pid.parse(p.read_text()) for p in sorted(self.folder.glob("helper_run.*.pid"))]


@pytest.fixture(scope="module")
def machine(make_bed: Callable[..., Bed]) -> Machine:
    return Machine(make_bed())


def test_server_says_how_to_connect_and_ctrl_c_leaves_nothing(machine: Machine) -> None:
    """The lines it prints are all a new user needs, and they work as they stand."""
    before = snapshot(machine.bed.server)
    server = machine.start()
    line = server.wait_for(r"openconnect (.*) --certificate NAME\.p12 (https://\S+)")
    pins = re.findall(r"--servercert (pin-sha256:\S{44})", line[1])
    assert len(set(pins)) == 2
    assert line[2] == f"https://{SERVER4}:{PORT}"

    add = ("--json", "client", "add", "alice", "--foreign", "--output", str(machine.folder))
    added = json.loads(machine.run_sh("vpnctl", *add))
    certificate = Certificate(Path(added["bundle"]), added["bundle_password"])
    client = OpenConnect.start(machine.bed.client, pins=pins, certificate=certificate)
    client.wait_connected()
    assert "alice" in machine.run_sh("vpnctl", "status")
    client.disconnect()

    assert server.stop(signal.SIGINT) == 0
    assert differences(before, snapshot(machine.bed.server)) == []
    assert machine.pids() == []


def test_clean_puts_the_network_back_after_kill_9_of_everything(machine: Machine) -> None:
    """Nobody has to know what a VPN server changes to get rid of it."""
    before = snapshot(machine.bed.server)
    server = machine.start()
    programs = machine.pids()
    assert len(programs) == 2
    server.kill()
    for program in programs:
        program.send(signal.SIGKILL)
        program.wait(10)
    assert differences(before, snapshot(machine.bed.server))
    machine.run_sh("clean")
    assert differences(before, snapshot(machine.bed.server)) == []


def test_clean_ends_what_a_killed_run_sh_left_running(machine: Machine) -> None:
    """Its programs live on without it; `clean` knows them by number and start time."""
    before = snapshot(machine.bed.server)
    server = machine.start()
    programs = machine.pids()
    server.kill()
    assert all(program.is_alive() for program in programs)
    machine.run_sh("clean")
    assert not any(program.is_alive() for program in programs)
    assert differences(before, snapshot(machine.bed.server)) == []


def test_a_second_server_is_refused(machine: Machine) -> None:
    """Two servers on one state folder would fight over it."""
    server = machine.start()
    second = machine.bed.server.start("second", str(ROOT / "run.sh"), "server", env=machine.env)
    assert second.wait(30) == 1
    assert "a server runs already" in second.text()
    assert server.is_alive
    assert server.stop(signal.SIGINT) == 0


def test_a_server_that_cannot_start_leaves_no_helper_and_ends_with_its_status(
    machine: Machine,
) -> None:
    """vpnd's line names file, key and remedy; 2 says that another try would not help."""
    config = machine.folder / "etc/server.toml"
    good = config.read_text()
    config.write_text(good + "\n[server]\n")
    server = machine.bed.server.start("bad", str(ROOT / "run.sh"), "server", env=machine.env)
    assert server.wait(60) == 2
    config.write_text(good)
    lines = server.text().splitlines()
    end = lines.index("run.sh: vpnd ended with 2: its last line above says why")
    assert str(config) in lines[end - 1]
    assert "Ctrl-C" not in server.text()  # nor how to go on with what does not run
    assert "Traceback" not in server.text()
    assert machine.pids() == []
