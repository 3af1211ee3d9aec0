"""`vpnctl up`, `status` and `down`: a client in the background, with the person in front."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.bed import PORT, SERVER4
from tests.netns.client import Client
from tests.netns.namespace import ENVIRONMENT, PYTHON
from tests.netns.person import Person
from tests.netns.site import Site

pytestmark = [pytest.mark.netns, pytest.mark.once, pytest.mark.timeout(120)]
PASSWORD = "correct horse"


class Laptop(Client):
    """A machine whose vpnctl is used."""

    def up_argv(self, *arguments: str) -> list[str]:
        own = ("--helper-socket", str(self.socket), "--log-dir", str(self.folder))
        up = ("vpnctl", "--run-dir", str(self.run_dir), "up", *arguments, *own)
        return [*self.namespace.enter(), *PYTHON, *up]

    def exit_status_of_status(self) -> int:
        argv = ("vpnctl", "--run-dir", str(self.run_dir), "status")
        return self.namespace.run(*PYTHON, *argv, check=False).returncode


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    site = make_site(config={"server": {"remotes": [f"{SERVER4}:{PORT}"]}})
    site.daemons.add_user("bob", PASSWORD)
    return site


@pytest.fixture(scope="module")
def _laptop(site: Site) -> Laptop:
    laptop = Laptop(site.bed.client)
    laptop.prepare()
    laptop.start_helper()
    return laptop


@pytest.fixture
def laptop(_laptop: Laptop) -> Iterator[Laptop]:
    """Nothing is up, before and after."""
    yield _laptop
    _laptop.vpnctl("down", check=False)
    _laptop.wait_undone()


def url(site: Site) -> list[str]:
    pins = [word for pin in site.daemons.pins() for word in ("--pin", pin)]
    return [f"https://{SERVER4}:{PORT}", "--user", "bob", *pins]


def test_a_person_is_asked_and_then_left_alone(site: Site, laptop: Laptop) -> None:
    """A wrong password, the right one, and the tunnel outlives the terminal."""
    person = Person(laptop.up_argv(*url(site)))
    person.wait_for("Password: ")
    person.type("wrong")
    person.wait_for("Password: ")
    person.type(PASSWORD)
    person.wait_for("is up")
    assert person.wait() == 0
    site.bed.client.ping(site.gateway4)
    shown = laptop.vpnctl("--table", "status")
    for text in ("client", "connected", "bob", SERVER4, "DTLS", "0.0.0.0/0"):
        assert text in shown, shown
    assert "users" not in shown
    assert "is down" in laptop.vpnctl("down")
    assert laptop.exit_status_of_status() == 3


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


def test_a_password_may_come_from_standard_input(site: Site, laptop: Laptop) -> None:
    """As from a pipe; the daemon itself has none."""
    done = subprocess.run(
        laptop.up_argv(*url(site), "--password-fd", "0"), input=f"wrong\n{PASSWORD}\n",
        capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert laptop.status()["sessions"][0]["user"] == "bob"


def test_a_profile_of_roots_is_enough(site: Site, laptop: Laptop, tmp_path: Path) -> None:
    """It is opened by vpnctl; the daemon could not read it."""
    site.daemons.vpnctl("client", "add", "desk", "--output", str(tmp_path))
    done = subprocess.run(
        laptop.up_argv(str(tmp_path / "desk.toml"), "--json"),
        capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    up = {"name": "desk", "state": "connected", "remote": SERVER4}
    assert json.loads(done.stdout) == up
    status = laptop.status()
    assert status["client"]["name"] == "desk"
    assert status["sessions"][0]["user"] == "desk"
