"""`vpnctl status` in its three forms."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from tests.ipc.caller import STRANGER, as_user, needs_root
from tests.ipc.memory_backend import SESSION, STATUS
from tests.vpnctl.program import Daemon
from vpnctl.main import main
from vpnd.ipc.api import SessionStatus, Status


def show(daemon: Daemon, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["--run-dir", str(daemon.run_dir), "status", *arguments]) == 0
    return capsys.readouterr().out


def test_json_is_the_interfaces_own_schema(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a Varlink caller gets and what --json prints are the same object."""
    assert json.loads(show(daemon, capsys, "--json")) == asdict(STATUS)


def test_json_has_every_field_also_of_an_empty_server(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program must not have to ask whether a key is there."""
    daemon.backend.status = Status("server", "0.1.0", "up", users=0, sessions_count=0)
    shown = json.loads(show(daemon, capsys, "--json"))
    assert set(shown) == {field.name for field in fields(Status)}
    assert shown["sessions"] == []
    assert shown["keys"] is None


@pytest.mark.parametrize("form", ["--table", None])
def test_people_and_scripts_see_all_that_matters(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], form: str | None
) -> None:
    """Who, from where, on which channel, how strong, how much, what was dropped, how old."""
    shown = show(daemon, capsys, *([form] if form else []))
    for text in (
        "up",
        "0.1.0",
        "pyvpn0",
        "10.8.0.1/24",
        "[::]:55555",
        "nftables",
        "TUN TSO",
        "the kernel lacks it",
        SESSION.user,
        "laptop",
        "10.8.0.2",
        "fd5e:1::2",
        SESSION.outer,
        "DTLS",
        SESSION.cipher,
        SESSION.tls_cipher,
        SESSION.tls_version,
        SESSION.key_exchange_group,
        "certificate",
        "1200",
        "1900000",
        "source",
        "replayed",
    ):
        assert text in shown, text
    for text in ("2.5 GB", "23 min", "1 h 23 min") if form else ("2500000000", "1400"):
        assert text in shown, text


def test_scripts_cut_sessions_by_column(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tab between, the field's name above, a dash for nothing."""
    bob = replace(SESSION, id="s-2", user="bob", client=None, user_agent="a\tb\nc", drops={})
    daemon.backend.status = replace(STATUS, sessions=[SESSION, bob], sessions_count=2)
    facts, _, table = show(daemon, capsys).partition("\n\n")
    assert dict(line.split("\t") for line in facts.splitlines())["sessions_count"] == "2"
    rows = [line.split("\t") for line in table.splitlines()]
    assert rows[0] == [field.name for field in fields(SessionStatus)]
    assert [len(row) for row in rows] == [len(rows[0])] * 3
    shown = dict(zip(rows[0], rows[2], strict=True))
    assert (shown["user"], shown["client"], shown["drops"]) == ("bob", "-", "-")


@pytest.mark.parametrize("form", ["--table", "--json", None])
def test_what_peers_say_of_themselves_cannot_steer_the_terminal(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], form: str | None
) -> None:
    """A user agent may hold any bytes; an operator's terminal must not obey them."""
    evil = "\x1b]0;owned\x07\x9b31m\u202e[bold]\r\nroot"
    session = replace(SESSION, user_agent=evil, hostname=evil, outer=evil, key_exchange_group=evil)
    daemon.backend.status = replace(STATUS, sessions=[session], drops={evil: 1})
    shown = show(daemon, capsys, *([form] if form else []))
    assert all(char.isprintable() or char in "\n\t" for char in shown)
    assert not any(line.startswith("root") for line in shown.splitlines())


def test_a_daemon_that_is_down_is_status_1(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status is the truth, for monitoring too."""
    daemon.backend.status = replace(STATUS, state="down", interface=None, sessions=[])
    assert main(["--run-dir", str(daemon.run_dir), "status"]) == 1
    assert "down" in capsys.readouterr().out


def test_what_is_down_is_not_said_to_be_so_since_the_start(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """A client may have lost its server a second ago; what is told is how long it runs."""
    daemon.backend.status = replace(STATUS, state="down", uptime_s=127, sessions=[])
    main(["--run-dir", str(daemon.run_dir), "status", "--table"])
    shown = capsys.readouterr().out
    assert "down, started 2 min 7 s ago" in shown
    assert "down for" not in shown


@needs_root
@pytest.mark.parametrize("form", ["--table", "--json", None])
def test_a_stranger_sees_counts(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], form: str | None
) -> None:
    """Any local user may know that it runs, and how busy it is."""
    with as_user(STRANGER):
        shown = show(daemon, capsys, *([form] if form else []))
    assert "alice" not in shown
    assert "10.8" not in shown
    if form == "--json":
        assert json.loads(shown) == asdict(STATUS.for_stranger())


def test_a_file_gets_no_escape_codes(daemon: Daemon, tmp_path: Path) -> None:
    """--table into a file is for mail and bug reports."""
    done = daemon.vpnctl("status", "--table")
    (tmp_path / "status").write_text(done.stdout)
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
