"""`vpnctl up`, `status` and `down`: a client in the background, with the person in front."""

import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.bed import PORT, SERVER4
from tests.netns.namespace import ENVIRONMENT, PYTHON
from tests.netns.own_client import OwnClient
from tests.netns.site import Site

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]
PASSWORD = "correct horse"
WAIT_S = 30.0


class Laptop(OwnClient):
    """A machine whose vpnctl is used."""

    def vpnctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        where = ("--run-dir", str(self.run_dir))
        return self.namespace.run(*PYTHON, "vpnctl", *where, *arguments, check=check)

    def up_argv(self, *arguments: str) -> list[str]:
        up = ("vpnctl", "--run-dir", str(self.run_dir), "up", *arguments)
        return [*self.namespace.enter(), *PYTHON, *up, "--helper-socket", str(self.socket),
                "--log-dir", str(self.folder)]  # fmt: skip


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    site = make_site(config={"server": {"remotes": [f"{SERVER4}:{PORT}"]}})
    site.daemons.add_user("bob", PASSWORD)
    return site


@pytest.fixture
def laptop(site: Site, request: pytest.FixtureRequest) -> Iterator[Laptop]:
    laptop = Laptop(site.bed.client, re.sub(r"\W", "", request.node.name)[5:30])
    laptop.prepare()
    laptop.start_helper()
    yield laptop
    laptop.vpnctl("down", check=False)
    laptop.helper.stop()


def url(site: Site) -> list[str]:
    pins = [word for pin in site.daemons.pins() for word in ("--pin", pin)]
    return [f"https://{SERVER4}:{PORT}", "--user", "bob", *pins]


class Person:
    """Types on a terminal of vpnctl's own."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, ENVIRONMENT)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while text not in self.seen:
            ready = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]
            try:
                data = os.read(self._fd, 4096) if ready else b""
            except OSError:  # the terminal's other side is closed
                data = b""
            assert data, f"{text!r} did not come: {self.seen}"
            self.seen += data.decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._fd, f"{text}\n".encode())

    def wait(self) -> int:
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._fd)
        return status


def test_a_person_is_asked_and_then_left_alone(site: Site, laptop: Laptop) -> None:
    """A wrong password, the right one, and the tunnel outlives the terminal."""
    person = Person(laptop.up_argv(*url(site)))
    person.wait_for("Password: ")
    person.seen = ""
    person.type("wrong")
    person.wait_for("Password: ")
    person.type(PASSWORD)
    person.wait_for("is up")
    assert person.wait() == 0
    site.bed.client.ping(site.gateway4)
    shown = laptop.vpnctl("--table", "status").stdout
    for text in ("client", "connected", "bob", SERVER4, "DTLS", "0.0.0.0/0"):
        assert text in shown, shown
    assert "users" not in shown
    assert "is down" in laptop.vpnctl("down").stdout
    assert laptop.vpnctl("status", check=False).returncode == 3


def test_a_refused_login_says_so_and_leaves_nothing_running(site: Site, laptop: Laptop) -> None:
    """The exit status is not 0 and the reason is on the screen."""
    read, write = os.pipe()
    os.write(write, b"wrong\n")
    os.close(write)
    done = subprocess.run(
        laptop.up_argv(*url(site), "--password-fd", str(read)),
        capture_output=True, text=True, timeout=60, check=False, pass_fds=[read],
        env=ENVIRONMENT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(read)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("vpnctl: ")
    assert not (laptop.run_dir / "vpnd.sock").exists()


def test_a_profile_of_roots_is_enough(site: Site, laptop: Laptop, tmp_path: Path) -> None:
    """It is opened by vpnctl; the daemon could not read it."""
    site.daemons.vpnctl("client", "add", "desk", "--output", str(tmp_path))
    done = subprocess.run(
        laptop.up_argv(str(tmp_path / "desk.toml")),
        capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "client desk is up" in done.stdout
    status = json.loads(laptop.vpnctl("--json", "status").stdout)
    assert status["client"]["name"] == "desk"
    assert status["sessions"][0]["user"] == "desk"
