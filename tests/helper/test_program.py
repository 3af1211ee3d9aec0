"""pyvpn-helper as a program: its socket, its exit status, what it says."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helper.messages import FrameReader

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
ACTIVATED = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, "-m", "helper", *sys.argv[2:]])
"""


def options(folder: Path) -> list[str]:
    socket_, policy = str(folder / "helper.sock"), str(folder / "helper.toml")
    return ["--socket", socket_, "--policy", policy, "--run-dir", str(folder / "run")]


@contextmanager
def running(*argv: str) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, *argv]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stderr
        try:
            assert "ready on" in process.stderr.readline()
            yield process
        finally:
            process.kill()


def greeting(path: Path) -> str:
    """Return what the helper says to this user before being asked."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        reader, found = FrameReader(), [b""]
        while data := sock.recv(4096):
            found += reader.receive(data)
    return found[-1].decode()


def test_a_stranger_is_told_so_and_the_helper_ends_on_request(tmp_path: Path) -> None:
    """Whoever runs the tests has no table in the built-in policy."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "helper.sock"))
    with running("-m", "helper", *options(tmp_path)) as process:
        assert "may not use the helper; add a table [user." in greeting(tmp_path / "helper.sock")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_socket_of_systemds_is_taken(tmp_path: Path) -> None:
    """Socket activation: the listening socket is descriptor 3."""
    path = tmp_path / "activated.sock"
    with running("-c", ACTIVATED, str(path), *options(tmp_path)):
        assert "may not use the helper" in greeting(path)
        assert not (tmp_path / "helper.sock").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("helper.toml", "[user", "helper.toml"), ("run", "", "File exists")],
)
def test_what_cannot_work_is_one_line_and_status_2(
    tmp_path: Path, name: str, content: str, says: str
) -> None:
    """Never a traceback for expected trouble."""
    (tmp_path / name).write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "helper", *options(tmp_path)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("<4>pyvpn-helper: ")
    assert says in done.stderr
