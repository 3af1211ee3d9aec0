"""`./run.sh client` and `vpnctl up|down|status`, in a namespace that plays the user's machine."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.bed import PORT, SERVER4
from tests.netns.namespace import ENVIRONMENT, ROOT, run
from tests.netns.person import Person
from tests.netns.process import Pid, Process
from tests.netns.site import Site
from tests.netns.snapshot import differences, snapshot

pytestmark = [pytest.mark.netns, pytest.mark.once, pytest.mark.timeout(180)]
PASSWORD = "correct horse"
CTRL_C = "\x03"


class Machine:
    """A user's machine: a client's namespace and folders of its own."""

    def __init__(self, site: Site) -> None:
        self.host = site.bed.client
        self.folder = site.bed.folder / "laptop"
        self.folder.mkdir()
        names = (
            "ETC",
            "STATE",
            "CA",
            "RUN",
            "CLIENT_RUN",
            "CLIENT_STATE",
            "HELPER_RUN",
            "HELPER_SOCKET",
        )
        self.env = {f"PYVPN_{name}": str(self.folder / name.lower()) for name in names}
        site.daemons.vpnctl("client", "add", "laptop", "--output", str(self.folder))
        self.profile = self.folder / "laptop.toml"

    def start(self, *arguments: str, ready: bool = True) -> Process:
        client = self.host.start(
            "run.sh", str(ROOT / "run.sh"), "client", str(self.profile), *arguments, env=self.env
        )
        if ready:
            client.wait_for("INFO connected", timeout_s=60)
        return client

    def run_sh(self, *arguments: str) -> str:
        inside = self.host.enter()
        return run(*inside, str(ROOT / "run.sh"), *arguments, env=ENVIRONMENT | self.env).stdout

    def pids(self) -> list[Pid]:
        """The programs that run.sh started, by its own notes."""
        return [Pid.parse(p.read_text()) for p in sorted(self.folder.glob("helper_run.*.pid"))]


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    site = make_site(config={"server": {"remotes": [f"{SERVER4}:{PORT}"]}})
    site.daemons.add_user("bob", PASSWORD)
    return site


@pytest.fixture(scope="module")
def machine(site: Site) -> Machine:
    return Machine(site)


def test_client_connects_and_ctrl_c_leaves_nothing(site: Site, machine: Machine) -> None:
    """With a profile that only root can read, as `client add` writes it."""
    assert Path(machine.profile).stat().st_mode & 0o077 == 0
    before = snapshot(machine.host)
    client = machine.start()
    machine.host.ping(site.gateway4)
    where = ("--run-dir", machine.env["PYVPN_CLIENT_RUN"])
    status = json.loads(machine.run_sh("vpnctl", *where, "--json", "status"))
    assert status["client"]["name"] == "laptop"
    second = machine.start(ready=False)
    assert second.wait(30) == 1
    assert "this client runs already" in second.text()
    assert client.stop(signal.SIGINT) == 0
    assert differences(before, snapshot(machine.host)) == []
    assert machine.pids() == []


def test_a_person_is_asked_on_the_terminal(site: Site, machine: Machine) -> None:
    """A wrong password, the right one, and Ctrl-C on the same terminal."""
    before = snapshot(machine.host)
    pins = [word for pin in site.daemons.pins() for word in ("--pin", pin)]
    url = f"https://{SERVER4}:{PORT}"
    argv = (*machine.host.enter(), str(ROOT / "run.sh"), "client", url, "--user", "bob", *pins)
    person = Person(argv, ENVIRONMENT | machine.env)
    person.wait_for("Password: ")
    person.type("wrong")
    person.wait_for("Password: ")
    person.type(PASSWORD)
    person.wait_for("INFO connected")
    assert PASSWORD not in person.seen
    machine.host.ping(site.gateway4)
    person.type("", end=CTRL_C)
    person.wait_for("vpnd is stopping")
    assert person.wait() == 0
    assert differences(before, snapshot(machine.host)) == []


def test_clean_puts_the_network_back_after_kill_9_of_everything(machine: Machine) -> None:
    """Also a full tunnel's rules, which would keep everybody inside."""
    before = snapshot(machine.host)
    client = machine.start()
    programs = machine.pids()
    assert len(programs) == 2
    client.kill()
    for program in programs:
        program.send(signal.SIGKILL)
        program.wait(10)
    machine.run_sh("clean")
    assert differences(before, snapshot(machine.host)) == []


def test_vpnd_under_kill_9_takes_the_helper_and_all_it_did_along(machine: Machine) -> None:
    """One line says so; the whole machine was inside the tunnel until then."""
    before = snapshot(machine.host)
    client = machine.start()
    vpnd, helper = machine.pids()
    vpnd.send(signal.SIGKILL)
    assert client.wait(30) == 1
    assert "run.sh: vpnd was killed (signal 9)" in client.text().splitlines()
    assert "line " not in client.text()  # nor a word of bash
    assert not helper.is_alive()
    assert machine.pids() == []
    assert differences(before, snapshot(machine.host)) == []


def test_a_profile_that_is_none_is_one_line(machine: Machine) -> None:
    """Before anything of the network is touched."""
    broken = machine.folder / "broken.toml"
    broken.write_text("[[remotes]]\n")
    client = machine.host.start(
        "broken", str(ROOT / "run.sh"), "client", str(broken), env=machine.env
    )
    assert client.wait(60) == 2
    (line,) = client.text().splitlines()
    assert "remotes.address" in line
