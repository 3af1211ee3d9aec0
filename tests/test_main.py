"""The command `vpnd`: what an operator's mistake looks like."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.protocol.authority import TestSite
from vpnd import __version__
from vpnd.main import main

Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def _own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A daemon sets up the logging of its process; the tests after this one are no daemon's."""
    root = logging.getLogger()
    level = root.level
    monkeypatch.setattr(root, "handlers", [])
    yield
    root.setLevel(level)


@pytest.fixture
def run(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    _own_logging: None,
) -> Run:
    """Run `vpnd server` in this process as somebody who is not root; return status and lines."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def call(text: str | None, *, state: Path = tmp_path) -> tuple[int, list[str]]:
        config = tmp_path / "server.toml"
        if text is not None:
            config.write_text(text)
        status = main(
            ["server", "--config", str(config), "--state-dir", str(state),
             "--run-dir", str(tmp_path)]
        )  # fmt: skip
        return status, capfd.readouterr().err.splitlines()

    return call


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[network]\nmtu = 400\n", ["server.toml", "network.mtu", "576"]),
        ("[network]\nmut = 1400\n", ["server.toml", "network.mut"]),
        ("[nonsense]\n", ["server.toml", "nonsense"]),
        ("this is not toml", ["server.toml"]),
        (None, ["server.toml"]),
        ("\x00", ["server.toml"]),
    ],
)
def test_a_bad_configuration_is_one_line_and_exit_2(
    run: Run, text: str | None, words: list[str]
) -> None:
    """File, key and remedy; never a traceback."""
    status, (line,) = run(text)
    assert status == 2
    assert line.startswith("vpnd: ")
    assert all(word in line for word in words)


def test_why_it_ends_is_an_error_in_the_journal_even_if_nothing_is_logged(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`journalctl -p err` must find it (sd-daemon(3))."""
    monkeypatch.setenv("JOURNAL_STREAM", "9:9")
    _, (line,) = run('[log]\nlevel = "none"\n')
    assert line.startswith("<3>vpnd: ")
    logging.disable(logging.NOTSET)


def test_missing_keys_are_one_line_and_exit_2(run: Run) -> None:
    """A server that was never set up: the remedy is the command that does it."""
    status, (line,) = run("")
    assert status == 2
    assert "server.key" in line or "server.crt" in line
    assert "pki init" in line


def test_root_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that faces the network has no privilege, or it does not run."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    status, (line,) = run("")
    assert status == 2
    assert "root" in line


def test_no_helper_is_one_sentence(tmp_path: Path) -> None:
    """Everything is in order but the privileged half is not running."""
    TestSite(tmp_path)
    config = tmp_path / "server.toml"
    config.write_text(f'[helper]\nsocket = "{tmp_path}/absent.sock"\n')
    code = (
        "import os, sys; os.geteuid = lambda: 1000\n"  # this suite may well run as root
        "from vpnd.main import main; sys.exit(main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "server", "--config", config, "--state-dir", tmp_path,
         "--run-dir", tmp_path],
        capture_output=True, text=True, timeout=60, check=False,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("vpnd: ")
    assert "absent.sock" in last


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """For bug reports."""
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert __version__ in capsys.readouterr().out


def test_a_role_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    """Usage, and the status of every bad command line."""
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "usage: vpnd" in capsys.readouterr().err
