"""The command line as a whole: options, exit statuses, errors in one line."""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.ipc.caller import STRANGER, as_user, needs_root
from tests.vpnctl.program import ROOT, Daemon, vpnctl
from vpnctl import connection
from vpnctl.connection import DaemonAbsent, DaemonProxy, Refused, call
from vpnctl.main import main
from vpnd import __version__
from vpnd.errors import VpnError

ONE_LINE = 1


def run(run_dir: Path, *arguments: str) -> int:
    return main(["--run-dir", str(run_dir), *arguments])


def test_nothing_but_the_name_shows_the_status(daemon: Daemon) -> None:
    """Who types only `vpnctl` wants to know how it is."""
    assert daemon.vpnctl().stdout == daemon.vpnctl("status").stdout != ""


def test_general_options_stand_before_or_after(daemon: Daemon) -> None:
    """Nobody remembers on which side of the command they belong."""
    after = vpnctl("user", "list", "--json", f"--run-dir={daemon.run_dir}")
    assert json.loads(after.stdout) == {"users": []}
    assert daemon.vpnctl("--json", "user", "list").stdout == after.stdout


def test_after_two_dashes_nothing_is_an_option(daemon: Daemon) -> None:
    """A name that looks like an option is refused as a name, not taken for one."""
    done = daemon.vpnctl("user", "add", "--no-password", "--", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "vpnctl: name: use" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["user"],
        ["status", "--nonsense"],
        ["--json", "--table"],
        ["status", "a", "b"],
    ],
)
def test_wrong_arguments_are_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As every program does."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: vpnctl" in capsys.readouterr().err


@pytest.mark.parametrize("left_behind", [False, True])
def test_no_daemon_is_status_3_and_one_line(
    run_dir: Path, left_behind: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it never ran or was killed, the operator learns how to start it."""
    if left_behind:
        with asyncio.Runner() as runner:
            runner.run(leave_a_socket(run_dir / "vpnd.sock"))
    assert run(run_dir, "status") == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == ONE_LINE
    assert "vpnd is not running" in err
    assert "systemctl start" in err


async def leave_a_socket(path: Path) -> None:
    server = await asyncio.start_unix_server(lambda _reader, writer: writer.close(), path)
    await asyncio.to_thread(os.link, path, f"{path}.kept")
    server.close()
    await server.wait_closed()
    await asyncio.to_thread(os.replace, f"{path}.kept", path)


@needs_root
def test_what_a_stranger_may_not_do_is_status_4(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names the group to be in."""
    with as_user(STRANGER):
        assert run(daemon.run_dir, "user", "list") == 4
    err = capsys.readouterr().err
    assert len(err.splitlines()) == ONE_LINE
    assert "pyvpn-admin" in err


@needs_root
def test_a_run_directory_out_of_reach_is_status_4(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the same as a daemon that does not run."""
    daemon.run_dir.chmod(0o700)
    with as_user(STRANGER):
        assert run(daemon.run_dir, "status") == 4
    assert "permission denied" in capsys.readouterr().err


def test_nobody_reading_is_no_traceback(daemon: Daemon) -> None:
    """`vpnctl | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "vpnctl", "--run-dir", str(daemon.run_dir)],
            stdout=writer,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_it_runs_as_a_module(daemon: Daemon) -> None:
    """Where no entry point is installed."""
    done = subprocess.run(
        [sys.executable, "-m", "vpnctl", "--run-dir", str(daemon.run_dir), "user", "list"],
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout.split(b"\t")[0]) == (0, b"USER")


def test_a_locale_without_unicode_is_no_traceback(daemon: Daemon) -> None:
    """A rescue console prints what it can."""
    done = subprocess.run(
        [sys.executable, "-m", "vpnctl", "--run-dir", str(daemon.run_dir), "--table"],
        env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"alice" in done.stdout


async def answering(
    path: Path, answer: bytes | None, question: Callable[[DaemonProxy], Awaitable[object]]
) -> None:
    """Ask a daemon that gives this answer to whatever; None hangs up."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\0")
        if answer is not None:
            writer.write(answer)
            await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(respond, path)
    try:
        await connection._call(path, question)
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (b'{"parameters":{"status":{"colour":"red"}}}\0', VpnError, "different versions"),
        (b'{"parameters":{}}\0', VpnError, "different versions"),
        (b'{"error":"org.varlink.service.MethodNotFound"', DaemonAbsent, "did not answer"),
        (
            b'{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"x"}}\0',
            VpnError,
            "different versions",
        ),
        (b'{"error":"org.pyvpn.Daemon.NewTrouble"}\0', Refused, "NewTrouble"),
        (b'{"parameters":7}\0', VpnError, "different versions"),
        (b"nonsense\0", DaemonAbsent, "no Varlink"),
        (b"[]\0", DaemonAbsent, "no Varlink"),
        (b"\xff\0", DaemonAbsent, "no Varlink"),
        (b"[" * 20_000 + b"\0", DaemonAbsent, "no Varlink"),
        (None, DaemonAbsent, "went away"),
        (b"", DaemonAbsent, "did not answer"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_strange_daemon_is_one_sentence(
    run_dir: Path,
    answer: bytes | None,
    error: type[Exception],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After an upgrade without a restart, or in the middle of a crash."""
    monkeypatch.setattr(connection, "TIMEOUT_S", 0.2)
    with pytest.raises(error, match=says) as caught:
        asyncio.run(answering(run_dir / "vpnd.sock", answer, lambda daemon: daemon.get_status()))
    assert isinstance(caught.value, VpnError)


def test_more_answers_than_questions_are_not_a_traceback(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first answer counts."""

    async def ask_and_wait(daemon: DaemonProxy) -> None:
        with pytest.raises(Refused):
            await daemon.get_status()
        with pytest.raises(VpnError):
            await daemon.get_status()

    answer = b'{"error":"org.pyvpn.Daemon.NewTrouble"}\0'
    asyncio.run(answering(run_dir / "vpnd.sock", answer * 2, ask_and_wait))
    assert not caplog.records


def test_commands_ask_several_things_on_one_connection(daemon: Daemon) -> None:
    """What the command itself raises comes through as it is."""

    async def add_and_fail(proxy: DaemonProxy) -> None:
        await proxy.add_client("bob", "phone", "0a", 1_800_000_000, foreign=True)
        assert [client.name for client in await proxy.list_clients()] == ["phone"]
        assert await proxy.revoke_client("phone") == 1
        assert (await proxy.get_profile()).server_name == "vpn.example.org"
        raise FileExistsError("bob.toml")

    args = argparse.Namespace(run_dir=daemon.run_dir)
    with pytest.raises(FileExistsError, match=r"bob\.toml"):
        call(args, add_and_fail)
    with pytest.raises(Refused, match="no client 'tablet'"):
        call(args, lambda proxy: proxy.revoke_client("tablet"))


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """For bug reports, and before a daemon runs."""
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert __version__ in capsys.readouterr().out


def test_help_says_what_each_command_does(capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a command inside a command."""
    with pytest.raises(SystemExit, match="0"):
        main(["user", "passwd", "--help"])
    assert "Give a user a new password." in capsys.readouterr().out
