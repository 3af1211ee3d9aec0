"""`vpnctl user`: secrets come from the terminal or from standard input only."""

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vpnctl.program import ROOT, Daemon, vpnctl
from vpnd.ipc.api import User

ON_TERMINAL = """
import os, sys
os.open(sys.argv.pop(1), os.O_RDWR)  # a session leader's first terminal controls it
from vpnctl.main import main
sys.exit(main())
"""


class Terminal:
    """vpnctl on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        try:
            self._master, slave = pty.openpty()
        except OSError:
            pytest.skip("there are no terminals here: mount -t devpts devpts /dev/pts")
        self._process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, os.ttyname(slave), *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            start_new_session=True,
        )
        os.close(slave)
        self.screen = ""

    def answer(self, prompt: str, typed: str) -> None:
        start = len(self.screen)
        while prompt not in self.screen[start:]:
            assert self._read(), self.screen
        os.write(self._master, typed.encode() + b"\n")

    def end(self) -> int:
        while self._read():
            pass
        os.close(self._master)
        return self._process.wait(10)

    def _read(self) -> bool:
        assert select.select([self._master], [], [], 20)[0], self.screen
        try:
            data = os.read(self._master, 4096)
        except OSError:  # EIO: the program has gone
            return False
        self.screen += data.decode()
        return bool(data)


def test_a_password_is_asked_for_twice_and_not_shown(daemon: Daemon) -> None:
    """What is typed appears nowhere."""
    terminal = Terminal("--run-dir", str(daemon.run_dir), "user", "add", "alice")
    terminal.answer("New password for alice: ", "open sesame")
    terminal.answer("Once more: ", "open sesame")
    assert terminal.end() == 0
    assert "user alice added" in terminal.screen
    assert "sesame" not in terminal.screen
    assert daemon.backend.passwords == {"alice": "open sesame"}


@pytest.mark.parametrize(
    ("typed", "says"), [(("one-two-3", "one-two-4"), "differ"), (("", ""), "is empty")]
)
def test_a_mistyped_password_changes_nothing(
    daemon: Daemon, typed: tuple[str, str], says: str
) -> None:
    """Better asked again than locked out."""
    terminal = Terminal("--run-dir", str(daemon.run_dir), "user", "add", "alice")
    terminal.answer("New password for alice: ", typed[0])
    terminal.answer("Once more: ", typed[1])
    assert terminal.end() == 1
    assert says in terminal.screen
    assert not daemon.backend.users


def test_no_password_is_asked_for_what_cannot_be_done(daemon: Daemon, run_dir: Path) -> None:
    """Nobody types a secret twice to learn that the daemon is down or the name taken."""
    daemon.backend.users["alice"] = User("alice")
    terminal = Terminal("--run-dir", str(daemon.run_dir), "user", "add", "alice")
    assert terminal.end() == 1
    assert "assword for" not in terminal.screen
    # without a terminal to ask on, status 2 would show that it came to asking
    assert daemon.vpnctl("user", "passwd", "nobody").returncode == 1
    assert vpnctl("--run-dir", str(run_dir / "none"), "user", "add", "bob").returncode == 3


@pytest.mark.parametrize("line", ["open sesame\n", "open sesame", "open sesame\r\n"])
def test_scripts_give_the_password_on_standard_input(daemon: Daemon, line: str) -> None:
    """One line, however it ends."""
    done = daemon.vpnctl("user", "add", "alice", "--password-stdin", "--group", "vip", stdin=line)
    assert (done.returncode, done.stdout, done.stderr) == (0, "user alice added\n", "")
    assert daemon.backend.passwords == {"alice": "open sesame"}
    assert daemon.backend.users["alice"].groups == ["vip"]


def test_without_a_terminal_the_way_is_shown(daemon: Daemon) -> None:
    """A cron job must not hang on a prompt."""
    done = daemon.vpnctl("user", "add", "alice")
    assert done.returncode == 2
    assert "--password-stdin" in done.stderr


def test_a_password_is_no_argument() -> None:
    """Arguments are in every process list and in the shell's history."""
    assert vpnctl("user", "add", "alice", "--password", "x").returncode == 2
    assert vpnctl("user", "passwd", "alice", "x").returncode == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [("", "is empty"), ("\n", "is empty"), ("x" * 300, "longer than 256"), ("a\tb\n", "printed")],
)
def test_a_password_that_cannot_work_is_refused(daemon: Daemon, given: str, says: str) -> None:
    """And it is not quoted."""
    done = daemon.vpnctl("user", "add", "alice", "--password-stdin", stdin=given)
    assert done.returncode == 1
    assert says in done.stderr
    assert "a\tb" not in done.stderr
    assert not daemon.backend.users


def test_a_short_password_is_warned_of(daemon: Daemon) -> None:
    """The operator decides; we say what it means."""
    done = daemon.vpnctl("user", "add", "alice", "--password-stdin", stdin="1234\n")
    assert done.returncode == 0
    assert "warning" in done.stderr


def test_a_user_may_have_certificates_only(daemon: Daemon) -> None:
    """Then there is no password to guess."""
    assert daemon.vpnctl("user", "add", "alice", "--no-password").returncode == 0
    assert daemon.backend.users["alice"] == User("alice")


def test_a_new_password_replaces_the_old(daemon: Daemon) -> None:
    """And the line says what does not happen."""
    daemon.vpnctl("user", "add", "alice", "--no-password")
    done = daemon.vpnctl("user", "passwd", "alice", "--password-stdin", stdin="open sesame\n")
    assert "stay open" in done.stdout
    assert daemon.backend.passwords == {"alice": "open sesame"}


def test_one_schema_for_a_user_wherever_it_is_printed(daemon: Daemon) -> None:
    """What `add` prints is what `list` prints."""
    added = daemon.vpnctl("--json", "user", "add", "alice", "--no-password")
    listed = daemon.vpnctl("--json", "user", "list")
    assert json.loads(listed.stdout) == {"users": [json.loads(added.stdout)]}


def test_the_list_shows_state_and_groups(daemon: Daemon) -> None:
    """Who may log in, how, and until when."""
    daemon.backend.users = {
        "zoe": User("zoe", ["a", "b"], has_password=True, clients=2, sessions=1),
        "alice": User("alice", disabled=True, valid_until=1_767_225_600),
    }
    assert [line.split("\t") for line in daemon.vpnctl("user", "list").stdout.splitlines()] == [
        ["USER", "GROUPS", "PASSWORD", "CLIENTS", "SESSIONS", "STATE"],
        ["alice", "-", "no", "0", "0", "disabled until 2026-01-01"],
        ["zoe", "a,b", "yes", "2", "1", "enabled"],
    ]
