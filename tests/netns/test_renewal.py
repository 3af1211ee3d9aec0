"""A client whose certificate ends in ten days gets another one over its session, and stays in."""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.netns.bed import PORT, SERVER4
from tests.netns.client import Client, Profile, endpoint, new_client
from tests.netns.daemons import CA_USER, SERVER_NAME, Daemons
from tests.netns.numbered import Stream, serve_numbered
from tests.netns.site import Site
from vpnctl.connection import call
from vpnctl.homes import Home
from vpnd.pki import jobs, keys
from vpnd.pki.certificates import serial_text
from vpnd.pki.child import Account
from vpnd.pki.keys import encode_key
from vpnd.pki.reading import load_certificates, not_after
from vpnd.worker.client_renewal import WAITS

pytestmark = [pytest.mark.netns, pytest.mark.once, pytest.mark.timeout(180)]
DAY = 86400
LEFT = 10 * DAY
ASKED_S = 3 * WAITS[0]
FETCHED_S = 3 * WAITS[1]


def ending_profile(daemons: Daemons, name: str, left_s: float) -> Profile:
    """Make a client as `client add` does, most of whose certificate's life is over."""
    key = keys.generate("p256")
    ca = Home(daemons.folder / "ca", Account.named(CA_USER))
    signed = ca.run(
        jobs.sign_client, request=keys.request(key).decode(), user=name, client=name,
        foreign=False, now=time.time() + left_s - 90 * DAY,
    )  # fmt: skip
    leaf, _ = load_certificates(signed["certificate"].encode())
    serial, end = serial_text(leaf), int(not_after(leaf).timestamp())
    at = argparse.Namespace(run_dir=daemons.folder / "run")
    call(at, lambda daemon: daemon.add_client(name, name, serial, end, foreign=False))
    remote = {
        "address": endpoint(SERVER4),
        "server_name": SERVER_NAME,
        "pins": list(daemons.pins()),
    }
    tls = {
        "ca": (daemons.folder / "ca/root.crt").read_text(),
        "certificate": signed["certificate"],
        "key": encode_key(key).decode(),
    }
    return {"client": {"user": name, "name": name}, "remotes": [remote], "tls": tls}


def known(site: Site, name: str) -> dict[str, Any]:
    listed = json.loads(site.daemons.vpnctl("--json", "client", "list").stdout)["clients"]
    (client,) = (entry for entry in listed if entry["name"] == name)
    found: dict[str, Any] = client
    return found


def test_a_certificate_is_renewed_over_the_session(make_site: Callable[..., Site]) -> None:
    """No packet is lost, nobody is asked anything, and the old certificate is nobody's then."""
    site = make_site(config={"server": {"remotes": [f"{SERVER4}:{PORT}"]}})
    daemons = site.daemons
    profile = ending_profile(daemons, "alice", LEFT)
    own = new_client(site.bed.client)
    own.connect(profile)
    before, session = known(site, "alice"), site.session("alice")
    assert before["not_after"] < time.time() + LEFT + 60
    serve_numbered(site.bed.server, site.gateway4)
    stream = Stream.start(site.bed.client, site.gateway4)

    daemons.vpnd.wait_for("certificate to be renewed: user=alice", timeout_s=ASKED_S)
    (request,) = (daemons.folder / "state/requests").iterdir()
    assert request.stem == before["serial"]
    said = daemons.vpnctl("pki", "renew").stdout
    assert "renewed the certificate of client alice of user alice" in said
    assert not list((daemons.folder / "state/requests").iterdir())
    assert known(site, "alice")["serial"] == before["serial"]  # until the client shows another

    own.vpnd.wait_for("certificate renewed", timeout_s=FETCHED_S)
    daemons.vpnd.wait_for("certificate renewed: user=alice", timeout_s=ASKED_S)
    after = known(site, "alice")
    assert after["serial"] != before["serial"]
    assert after["not_after"] > time.time() + 89 * DAY
    assert site.session("alice")["id"] == session["id"]
    assert not list((daemons.folder / "state/answers").iterdir())
    shown = own.status()["client"]
    assert shown["certificate_not_after"] == after["not_after"]
    assert shown["certificate_renewed"] is True
    no_secret_is_shown(site, profile)
    for way, counted in stream.finish().items():
        assert (counted["lost"], counted["twice"]) == (0, 0), way
        assert counted["sent"] > 0, way
    comes_back_with_it(site, own, profile)
    the_old_one_is_refused(site, own, profile)


def no_secret_is_shown(site: Site, profile: Profile) -> None:
    """No key is in a log, an argument, an environment, or what any client leaves in the spool."""
    daemons = site.daemons
    keys_pem = [profile["tls"]["key"]]
    keys_pem += [path.read_text() for path in daemons.folder.rglob("*.key")]
    assert len(keys_pem) == 5
    lines = [line for pem in keys_pem for line in pem.splitlines() if not line.startswith("---")]
    shown = [path.read_bytes() for path in (site.bed.folder / "log").iterdir()]
    shown += [path.read_bytes() for path in (daemons.folder / "state").glob("*/*")]
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            with suppress(OSError):
                shown.append((process / name).read_bytes())
    assert not [line for line in lines if any(line.encode() in text for text in shown)]


def comes_back_with_it(site: Site, own: Client, profile: Profile) -> None:
    """From the client's own directory: the profile still holds the old one."""
    own.stop()
    own.connect(profile)
    assert own.logins() == 1
    assert site.session("alice")["method"] == "certificate"
    own.stop()


def the_old_one_is_refused(site: Site, own: Client, profile: Profile) -> None:
    """Whoever has a copy of the profile only is told so."""
    for path in own.state_dir.iterdir():
        path.unlink()
    own.start(profile)
    assert own.vpnd.wait(timeout_s=20) != 0
    site.daemons.vpnd.wait_for("serial number is not that of the client's certificate")


def test_without_a_place_to_keep_it_nothing_is_asked(make_site: Callable[..., Site]) -> None:
    """And it is said at the start, while there is time."""
    site = make_site(config={"server": {"remotes": [f"{SERVER4}:{PORT}"]}})
    own = new_client(site.bed.client)
    shutil.rmtree(own.state_dir)
    own.folder.chmod(0o755)
    own.connect(ending_profile(site.daemons, "alice", LEFT))
    own.vpnd.wait_for("certificate ends soon, and was not renewed")
    assert "cannot be written" in own.vpnd.text()
    own.stop()
    assert "to be renewed" not in site.daemons.vpnd.text()


def test_a_session_ends_with_its_certificate(make_site: Callable[..., Site]) -> None:
    """A client that could not renew is let go on time, with the reason, and does not come back."""
    site = make_site(config={"server": {"remotes": [f"{SERVER4}:{PORT}"]}})
    own = new_client(site.bed.client)
    shutil.rmtree(own.state_dir)
    own.connect(ending_profile(site.daemons, "alice", 12))
    own.vpnd.wait_for("certificate has expired", timeout_s=3 * 17)
    assert own.vpnd.wait(timeout_s=20) != 0
    assert site.daemons.sessions() == []
