"""Completions: what each shell offers, on the real shell and with the real vpnctl."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ipc.memory_backend import MemoryBackend
from tests.packaging.shells import COMPLETIONS, ROOT, offers, program
from tests.vpnctl.program import serve_in_thread
from vpnd.ipc.api import Client, User

pytestmark = pytest.mark.once
FILES = {"bash": "vpnctl", "zsh": "_vpnctl", "fish": "vpnctl.fish"}


@pytest.fixture(params=FILES)
def shell(request: pytest.FixtureRequest) -> str:
    """The name of each shell that is there."""
    name = str(request.param)
    if program(name) is None:
        pytest.skip(f"{name} is not there (./run.sh test as root fetches it)")
    return name


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the daemon's socket is."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, run_dir: Path) -> Path:
    """A folder for PATH with a vpnctl that asks the daemon of this test."""
    folder = tmp_path_factory.mktemp("bin")
    argv = shlex.join([sys.executable, "-m", "vpnctl", "--run-dir", str(run_dir)])
    starter = folder / "vpnctl"
    starter.write_text(
        "#!/bin/sh\n"
        "unset LD_LIBRARY_PATH  # of a shell that was only unpacked\n"
        f'PYTHONPATH={shlex.quote(str(ROOT))} exec {argv} "$@"\n'
    )
    starter.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def _daemon(run_dir: Path) -> Iterator[None]:
    backend = MemoryBackend()
    for name in ("alice", "bob@example.org"):
        backend.users[name] = User(name)
    for name, revoked_at in (("laptop", None), ("phone", None), ("lost", 2)):
        client = Client("alice", name, "0a", 2_000_000_000, False, 1, revoked_at)
        backend.clients["alice", name] = client
    with serve_in_thread(run_dir, backend):
        yield


def test_the_shell_understands_its_file(shell: str) -> None:
    """A mistake there is shown to everybody at every new terminal."""
    found = program(shell)
    assert found is not None
    done = subprocess.run(
        [found, "-n", COMPLETIONS / FILES[shell]], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_shellcheck_finds_nothing_in_that_of_bash() -> None:
    """The quoting of names that come from elsewhere, above all."""
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (./run.sh test as root installs it)")
    done = subprocess.run(
        ["shellcheck", "--shell=bash", COMPLETIONS / "vpnctl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout + done.stderr == ""


def test_every_command_is_offered(shell: str, path: Path) -> None:
    """Also inside of commands."""
    from generate import completion

    for command in completion.tree().everything():
        if command.commands:
            expected = {each.words[-1] for each in command.commands}
            assert offers(shell, f"{command.name} ", path) == expected


def test_every_option_is_offered(shell: str, path: Path) -> None:
    """The general ones after a command, too."""
    from generate import completion

    top = completion.tree()
    busiest = max(top.leaves(), key=lambda command: len(command.options))
    for command in (top, busiest):
        options = {*completion.general(top), *completion.own(top, command)}
        expected = {option.flags[-1] for option in options}
        assert offers(shell, f"{command.name} -", path) - {"-h"} == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vpnctl cl", {"client"}),
        ("vpnctl --json client re", {"revoke"}),
        ("vpnctl --run-dir /x client --json l", {"list"}),
        ("vpnctl client add phone --key-type p", {"p256", "p384"}),
        ("vpnctl client add --key-type=p", {"p256", "p384"}),
        ("vpnctl client add --key-type p256 --fo", {"--foreign"}),
        ("vpnctl nonsense ", None),
    ],
)
def test_what_stands_before_counts(
    shell: str, path: Path, line: str, expected: set[str] | None
) -> None:
    """Options with and without values may stand anywhere."""
    found = offers(shell, line, path)
    if expected is not None:
        assert {word.removesuffix("=") for word in found} & expected == expected
        assert not {"client", "status"} & (found - expected)


@pytest.mark.usefixtures("_daemon")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vpnctl client revoke ", {"laptop", "phone"}),
        ("vpnctl client revoke --user alice la", {"laptop"}),
        ("vpnctl user passwd al", {"alice"}),
        ("vpnctl rotate-keys --user ", {"alice", "bob@example.org"}),
        ("vpnctl client add tablet --user al", {"alice"}),
    ],
)
def test_names_come_from_the_daemon(shell: str, path: Path, line: str, expected: set[str]) -> None:
    """Those that the command can be used on: not a client that is revoked already."""
    assert offers(shell, line, path) == expected


@pytest.mark.usefixtures("_daemon")
def test_in_bash_a_name_with_an_at_sign_is_completed_behind_it(path: Path) -> None:
    """readline takes the sign for the end of a word."""
    assert offers("bash", "vpnctl user passwd bob@ex", path) == {"example.org"}


def test_without_a_daemon_there_are_no_names_and_no_message(
    shell: str, tmp_path: Path, path: Path
) -> None:
    """Nor for somebody whom the daemon refuses, which vpnctl tells in the same way."""
    absent = tmp_path / "vpnctl"
    absent.write_text((path / "vpnctl").read_text().replace("--run-dir ", "--run-dir /absent"))
    absent.chmod(0o755)
    assert {"laptop", "phone"}.isdisjoint(offers(shell, "vpnctl client revoke ", tmp_path))


@pytest.mark.parametrize("kind", ["profile", "running"])
def test_names_of_files_are_names_or_nothing(tmp_path: Path, kind: str) -> None:
    """Whoever can make a file in there must not have others type a command."""
    from generate.completion import NAMES

    for name in ("laptop", "a$(id)", "b;c", "d e", "-x"):
        (tmp_path / f"{name}.toml").touch()
        (tmp_path / f"pyvpn-client-{name}").mkdir()
        (tmp_path / f"pyvpn-client-{name}/vpnd.sock").touch()
    script = NAMES.replace("/etc/pyvpn/client", str(tmp_path)).replace("/run", str(tmp_path))
    done = subprocess.run(
        ["sh", "-c", script, "sh", kind], env={"PATH": os.environ["PATH"]}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("laptop\n", "")
