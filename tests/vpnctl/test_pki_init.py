"""`vpnctl pki init` that is killed, or finds the disk full: the next one begins from nothing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vpnctl.homes import homes, open_place
from vpnctl import pki_init
from vpnctl.pki_init import chosen_names, initialise, own_address
from vpnd.errors import ConfigError, VpnError
from vpnd.pki import unfinished

ROOT = Path(__file__).parents[2]
KINDS = {
    "ca": {"root.key", "root.crt", "issuing.key", "issuing.crt"},
    "state": {"server.key", "server-next.key", "server-next.pub", "server.crt", "ca.crt"},
}
KILLED = """
import mmap, os, signal, sys
from pathlib import Path
from tests.vpnctl.homes import homes
from vpnctl.pki_init import initialise
last = int(sys.argv[2])
count = mmap.mmap(-1, 8)  # shared with the children: all count the same steps
def hook(event, arguments):
    steps = int.from_bytes(count[:8], "little")
    if event in ("os.link", "os.rename", "os.remove", "os.mkdir"):
        steps += 1
        count[:8] = steps.to_bytes(8, "little")
    if steps >= last and event != "os.kill":  # the child first, then the parent at its next move
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
initialise(["vpn.example.org"], "p256", **homes(Path(sys.argv[1])))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    with open_place() as path:
        yield path


def files(place: Path) -> dict[str, set[str]]:
    return {name: {p.name for p in (place / name).iterdir()} for name in KINDS}


def killed_at(place: Path, step: int) -> int:
    """Run init in processes that all die at one step; return the exit status."""
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(place), str(step)],
        cwd=ROOT, check=False,
    ).returncode  # fmt: skip


@pytest.mark.parametrize(("if_missing", "stride"), [(True, 4), (False, 5)])
def test_killed_anywhere_the_next_one_makes_it_whole(if_missing: bool, stride: int) -> None:
    """Whatever step the power went at; nothing of the first attempt is left."""
    step = 0
    while True:
        step += stride
        with open_place() as place:
            status = killed_at(place, step)
            assert status in (0, -signal.SIGKILL)
            if status == 0:
                break
            assert "server.crt" not in {p.name for p in place.rglob("*")} or (
                files(place)["state"] >= KINDS["state"]
            )
            if not (place / "state/server.crt").exists():
                initialise(["vpn.example.org"], "p256", if_missing=if_missing, **homes(place))
                assert files(place) == KINDS, step
            shown = subprocess.run(
                ["openssl", "verify", "-CAfile", "ca.crt", "server.crt"],
                cwd=place / "state", capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert shown.stdout == "server.crt: OK\n", (step, shown.stderr)
    assert step > 20, "the steps were counted"


FULL = """
import json, subprocess, sys
from pathlib import Path
from tests.vpnctl.homes import homes
from vpnctl.pki_init import initialise
from vpnd.errors import VpnError
place, inodes = Path(sys.argv[1]), sys.argv[2]
mount = ["mount", "-t", "tmpfs", "-o", f"nr_inodes={inodes},mode=755", "tmpfs", str(place)]
subprocess.run(mount, check=True)
both = homes(place)
try:
    initialise(["vpn.example.org"], "p256", **both)
    said = ""
except VpnError as exc:
    said = str(exc)
left = sorted(p.name for p in place.rglob("*") if p.is_file())
print(json.dumps({"said": said, "left": left}))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, which root alone can")
def test_a_full_disk_leaves_nothing_half_made(place: Path) -> None:
    """Whichever file did not fit, what came before it is taken back, and the line says why."""
    for inodes in range(4, 20):
        argv = ["unshare", "--mount", sys.executable, "-c", FULL, str(place), str(inodes)]
        shown = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
        result = json.loads(shown.stdout)
        if not result["said"]:
            break
        assert "No space left on device" in result["said"], result
        assert result["left"] == []
    assert inodes > 8
    assert len(result["left"]) == len(KINDS["ca"] | KINDS["state"])


def test_missing_means_nothing_to_do_where_a_server_has_its_certificate(place: Path) -> None:
    """The unit runs it at every start that it is asked to."""
    both = homes(place)
    initialise(["vpn.example.org"], "p256", if_missing=True, **both)
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    assert initialise(["another.example"], "p256", if_missing=True, **both) is None
    assert {p: p.read_bytes() for p in place.rglob("*") if p.is_file()} == before


def test_missing_server_keys_are_made_with_the_authority_that_is_there(place: Path) -> None:
    """An authority that was put back from a copy is not replaced behind its clients' backs."""
    both = homes(place)
    initialise(["vpn.example.org"], "p256", **both)
    root = (place / "ca/root.crt").read_bytes()
    for path in (place / "state").iterdir():
        path.unlink()
    made = initialise(["vpn.example.org"], "p256", if_missing=True, **both)
    assert made is not None
    assert (place / "ca/root.crt").read_bytes() == root
    assert (place / "state/ca.crt").read_bytes().startswith(root)


def test_half_an_authority_without_a_mark_is_not_touched(place: Path) -> None:
    """Somebody has moved its key away: that is not ours to repair."""
    both = homes(place)
    initialise(["vpn.example.org"], "p256", **both)
    (place / "ca/issuing.key").unlink()
    for path in (place / "state").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="exist already and will not be overwritten"):
        initialise(["vpn.example.org"], "p256", if_missing=True, **both)
    assert files(place)["state"] == set()


def test_a_mark_that_was_left_behind_does_no_harm(place: Path) -> None:
    """Power cut after the last file: the server runs, and its keys are safe."""
    both = homes(place)
    initialise(["vpn.example.org"], "p256", **both)
    both["server_home"].run(lambda r: unfinished.begin(Path(r["directory"]), ()) or {})  # type: ignore[func-returns-value]
    before = (place / "state/server.key").read_bytes()
    assert initialise(["vpn.example.org"], "p256", if_missing=True, **both) is None
    with pytest.raises(VpnError, match="exist already"):
        initialise(["vpn.example.org"], "p256", **both)
    assert (place / "state/server.key").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('[server]\nname = "vpn.example.org"\n', ["vpn.example.org"]),
        ('[server]\nremotes = ["gate.example.org:443"]\n', ["gate.example.org"]),
        ('[server]\nremotes = ["[2001:db8::7]:443"]\n', ["2001:db8::7"]),
        (
            '[server]\nname = "vpn.example.org"\nremotes = ["192.0.2.1:1", "192.0.2.1:2"]\n',
            ["vpn.example.org", "192.0.2.1"],
        ),
    ],
)
def test_the_configuration_names_the_server(tmp_path: Path, text: str, names: list[str]) -> None:
    """What clients connect to must be in the certificate."""
    config = tmp_path / "server.toml"
    config.write_text(text)
    assert chosen_names(None, config, needed=False) == names
    assert chosen_names(["other.example"], config, needed=False) == ["other.example"]


@pytest.mark.parametrize("hostname", ["vpn.example.org", "vpn"])
def test_without_a_configuration_the_host_names_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hostname: str
) -> None:
    """Profiles carry the first name, and nobody but this host knows one without dots."""
    monkeypatch.setattr(pki_init.socket, "gethostname", lambda: hostname)
    monkeypatch.setattr(pki_init.socket, "getfqdn", lambda name: name)
    missing = tmp_path / "server.toml"
    names, address = chosen_names(None, missing, needed=False), own_address()
    wanted = [hostname, address] if "." in hostname else [address, hostname]
    assert names == [name for name in wanted if name]
    with pytest.raises(ConfigError, match="no such file"):
        chosen_names(None, missing, needed=True)


def test_a_broken_configuration_is_told_before_anything_is_made(tmp_path: Path) -> None:
    """The unit fails with one line, and the next start begins from nothing."""
    config = tmp_path / "server.toml"
    config.write_text("[server\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        chosen_names(None, config, needed=False)


@pytest.mark.parametrize(
    "name", ["localhost", "localhost.localdomain", "debian.localdomain", "debian", "127.0.0.1"]
)
def test_names_that_mean_another_host_elsewhere_are_passed_over(name: str) -> None:
    """A profile with such a name would connect a laptop to itself."""
    assert not pki_init._is_full(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace, which root alone can")
def test_an_address_is_found_without_a_default_route() -> None:
    """First start on a host that has a network and no way out."""
    program = "from vpnctl.pki_init import own_address; print(own_address())"
    script = (
        "ip link add d0 type veth peer name d1; ip addr add 192.0.2.77/24 dev d0; "
        "ip link set d0 up; "
        f"exec {sys.executable} -c '{program}'"
    )
    argv = ["unshare", "--net", "sh", "-c", script]
    shown = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "192.0.2.77"
    alone = ["unshare", "--net", sys.executable, "-c", program]
    shown = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ""
    assert own_address() != "127.0.0.1"
