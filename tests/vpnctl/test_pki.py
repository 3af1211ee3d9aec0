"""`vpnctl pki init`: whose files it makes, and that it makes all of them or none.

What needs several users runs as root with numeric ones that nobody else has.
"""

import argparse
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from vpnctl.commands import pki
from vpnctl.homes import Home
from vpnctl.pki_init import initialise
from vpnd.errors import ConfigError, VpnError
from vpnd.pki import jobs
from vpnd.pki.child import Account, run_as

CA = Account("the CA's user", 64321, 64322)
SERVER = Account("the server's user", 64323, 64324)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes users, which root alone can")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users may pass through, as /var/lib is."""
    path = Path(tempfile.mkdtemp(prefix="pyvpn-t-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def homes(place: Path) -> dict[str, Home]:
    """Return the two homes, of two users where root runs this."""
    ca, server = (CA, SERVER) if os.geteuid() == 0 else (Account.current(), Account.current())
    return {"ca_home": Home(place / "ca", ca), "server_home": Home(place / "state", server)}


def owners_and_modes(directory: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in (directory, *directory.iterdir()):
        at = path.lstat()
        found[path.name] = (at.st_uid, at.st_gid, stat.S_IMODE(at.st_mode))
    return found


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    pki.register(parser)
    args = parser.parse_args(words)
    return argparse.Namespace(
        **({"json": False, "table": False, "ca_dir": "/x", "state_dir": "/y"} | vars(args))
    )


def test_every_file_has_its_owner_and_mode(place: Path) -> None:
    """The server never owns a CA file, the CA never a server's, and keys are private."""
    both = homes(place)
    made = initialise(["vpn.example.org"], "p256", **both)
    ca, server = both["ca_home"].account, both["server_home"].account
    assert owners_and_modes(place / "ca") == {
        "ca": (ca.uid, ca.gid, 0o700),
        "root.key": (ca.uid, ca.gid, 0o600),
        "root.crt": (ca.uid, ca.gid, 0o644),
        "issuing.key": (ca.uid, ca.gid, 0o600),
        "issuing.crt": (ca.uid, ca.gid, 0o644),
    }
    assert owners_and_modes(place / "state") == {
        "state": (server.uid, server.gid, 0o700),
        "server.key": (server.uid, server.gid, 0o600),
        "server-next.key": (server.uid, server.gid, 0o600),
        "server-next.pub": (server.uid, server.gid, 0o644),
        "server.crt": (server.uid, server.gid, 0o644),
        "ca.crt": (server.uid, server.gid, 0o644),
    }
    assert len(set(made["pins"])) == 2


def test_openssl_accepts_what_was_installed(place: Path) -> None:
    """The server's chain ends at the CA that clients are given, and the key fits."""
    initialise(["vpn.example.org", "192.0.2.1"], "p256", **homes(place))
    state = place / "state"
    said = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "ca.crt",
         "-verify_hostname", "vpn.example.org", "server.crt"],
        cwd=state, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "server.crt: OK\n"
    for command in (["x509", "-in", "server.crt", "-pubkey"], ["pkey", "-in", "server.key"]):
        made = ["openssl", *command, "-noout"] + (["-pubout"] if command[0] == "pkey" else [])
        subprocess.run(made, cwd=state, capture_output=True, check=True)


@needs_root
def test_the_server_cannot_read_the_ca(place: Path) -> None:
    """A server that was taken over must not be able to make clients."""
    both = homes(place)
    initialise(["vpn.example.org"], "p256", **both)
    with pytest.raises(VpnError, match="ermission denied"):
        run_as(SERVER, jobs.existing, {"directory": str(place / "ca"), "files": []})


def test_existing_pki_is_never_touched(place: Path) -> None:
    """A second init by mistake must not lock out every client."""
    both = homes(place)
    initialise(["vpn.example.org"], "p256", **both)
    files = [p for p in place.rglob("*") if p.is_file()]
    before = {p: p.read_bytes() for p in files}
    with pytest.raises(ConfigError, match=r"root.key, .* exist already .* move what is there"):
        initialise(["vpn.example.org"], "p256", **both)
    shutil.rmtree(place / "ca")
    with pytest.raises(ConfigError, match=r"state: server.key, .* exist already"):
        initialise(["vpn.example.org"], "p256", **both)
    assert {p: p.read_bytes() for p in files if p.exists()} == {
        p: data for p, data in before.items() if p.parent.name == "state"
    }


class FailingHome(Home):
    """A server's home on a disk that is full when the certificates come."""

    def run(self, job: Any, **request: Any) -> Any:
        """Fail at the last step."""
        if job is jobs.install_server_certificates:
            raise VpnError("no space left")
        return super().run(job, **request)


def test_failure_at_the_last_step_leaves_nothing(place: Path) -> None:
    """The next attempt begins from a clean table."""
    both = homes(place)
    failing = FailingHome(both["server_home"].directory, both["server_home"].account)
    with pytest.raises(VpnError, match="no space left"):
        initialise(["vpn.example.org"], "p256", ca_home=both["ca_home"], server_home=failing)
    assert not [p for p in place.rglob("*") if p.is_file()]


def test_failure_of_the_ca_leaves_nothing(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not even the server's keys, whose certificate was never made."""
    with pytest.raises(VpnError, match="ended without an answer"):
        initialise(["no ascii: \u00e4"], "p256", **homes(place))
    assert not [p for p in place.rglob("*") if p.is_file()]
    assert "ValueError" in capfd.readouterr().err


def test_directory_of_somebody_else_is_refused(place: Path) -> None:
    """The remedy is in the sentence."""
    both = homes(place)
    (place / "ca").mkdir(mode=0o700)
    stranger = Home(place / "ca", Account("stranger", 64999, 64999))
    with pytest.raises(VpnError, match=r"belongs to .*, not to stranger; "):
        initialise(["a.example"], "p256", ca_home=stranger, server_home=both["server_home"])


def run_init(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Run the command and return its exit status and what it printed."""
    folders = ("--ca-dir", request["ca"], "--state-dir", request["state"])
    with redirect_stdout(StringIO()) as printed:
        status = pki.run(parse("init", "--name", "vpn.example.org", *folders))
    return {"status": status, "printed": printed.getvalue()}


def test_command_works_for_the_owner_of_both_directories(place: Path) -> None:
    """A trial needs neither root nor system users."""
    owner = CA if os.geteuid() == 0 else Account.current()
    folders = {"ca": str(place / "ca"), "state": str(place / "state")}
    os.chown(place, owner.uid, owner.gid)
    done = run_as(owner, run_init, folders)
    assert done["status"] == 0
    assert "vpnctl client add" in done["printed"]


def test_what_was_made_can_be_shown(place: Path) -> None:
    """Both pins are there for people and for programs."""
    made = initialise(["vpn.example.org"], "p256", **homes(place))
    assert json.loads(json.dumps(made)) == made
    shown = dict(pki._facts(made))
    assert {shown["pin of the key in use"], shown["pin of the next key"]} == set(made["pins"])


def test_bad_host_name_is_refused_before_anything_is_made() -> None:
    """A name with a space would be in every profile."""
    with pytest.raises(ConfigError, match=r'--name: "vpn example" is no host name or address'):
        pki.run(parse("init", "--name", "vpn example"))


CHILD_IMPORTS = """
import base64, sys, tempfile
from vpnctl.commands import client, pki
from vpnd.pki import jobs, keys, renewal_jobs, server_files
from vpnd.pki.child import Account, run_as
def spy(job):
    before = set(sys.modules)
    def run(request):
        answer = job(request)
        return answer | {"new": sorted(set(sys.modules) - before)}
    return run
with tempfile.TemporaryDirectory() as place:
    request = {"directory": place, "key_type": "p256", "names": ["a.example"],
               "request": keys.request(keys.generate("p256")).decode(),
               "user": "a", "client": "a", "foreign": False, "files": [], "clients": [],
               "at_most": 5, "requests": [{"serial": "1f", "request": "", "certificate": ""}]}
    for job in (jobs.existing, jobs.begin, jobs.create_authority, jobs.sign_client,
                jobs.make_server_keys, jobs.sign_server, jobs.install_server_certificates,
                jobs.end, renewal_jobs.server_state, renewal_jobs.renew,
                renewal_jobs.authority_state, renewal_jobs.make_list, renewal_jobs.install_list,
                renewal_jobs.next_key, renewal_jobs.rotate, renewal_jobs.complete,
                renewal_jobs.pending, renewal_jobs.sign_clients, renewal_jobs.answer):
        answer = run_as(Account.current(), spy(job), request | {"force": True})
        print(answer.pop("new"))
        request |= answer
"""


def test_child_imports_nothing_after_it_has_changed_its_user() -> None:
    """Its user may not be able to read the program: a checkout in root's home, for example."""
    shown = subprocess.run(
        [sys.executable, "-c", CHILD_IMPORTS],
        cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.stdout.split() == ["[]"] * 19
