"""`vpnctl pki rotate-server-key`: the announced key comes into use, and nobody is surprised."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.vpnctl.homes import homes, open_place
from vpnctl.pki_init import initialise
from vpnctl.pki_rotate import rotate
from vpnd.errors import VpnError
from vpnd.ipc.api import Client
from vpnd.pki import ca, renewal_jobs, server_files
from vpnd.pki.certificates import load_chain
from vpnd.pki.files import replace as replace_file
from vpnd.pki.keys import encode_key, generate, is_same_key, load_key
from vpnd.pki.pins import server_pins

NOW = datetime.now(UTC)
LATER = int(NOW.timestamp()) + 100_000  # whenever in a long run the test comes
LAPTOP = Client("alice", "laptop", "1f", LATER, foreign=False, created=LATER)


class Site:
    """A host with both homes."""

    def __init__(self, place: Path) -> None:
        both = homes(place)
        self.ca, self.server = both["ca_home"], both["server_home"]
        self.state = place / "state"
        self.clients = [LAPTOP]
        initialise(["vpn.example.org", "192.0.2.1"], "p256", **both)

    def rotate(self, *, force: bool = False) -> dict[str, list[str]]:
        return rotate(
            self.ca, self.server, "p256", NOW, force=force, list_clients=lambda: self.clients
        )

    def pins(self) -> tuple[str, ...]:
        return server_pins(self.state / "server.crt", self.state / "server-next.pub")

    def fits(self) -> bool:
        """Return whether the server could start, and announces the right key."""
        leaf = load_chain(self.state / "server.crt")[0]
        key = load_key(self.state / "server.key").public_key()
        following = load_key(self.state / "server-next.key").public_key()
        public = (self.state / "server-next.pub").read_bytes()
        announced = server_files.encode_public_key(following) == public
        in_use = is_same_key(leaf.public_key(), key)
        return in_use and announced and not is_same_key(following, key)

    def repair(self) -> None:
        self.server.run(renewal_jobs.complete)


@pytest.fixture
def site() -> Iterator[Site]:
    with open_place() as place:
        yield Site(place)


def test_the_next_key_comes_into_use_and_another_one_follows(site: Site) -> None:
    """Whoever knew both pins knows the new key."""
    before = site.pins()
    made = site.rotate()
    assert site.pins() == tuple(made["pins"])
    assert site.pins()[0] == before[1]
    assert site.pins()[1] not in before
    assert site.fits()
    assert made["locked_out"] == []
    assert {p.name for p in site.state.iterdir()} == set(server_files.FILES)


def test_profiles_that_do_not_know_the_key_are_named_first(site: Site) -> None:
    """A second change soon after the first would lock them out: nothing is done."""
    site.clients = [replace(LAPTOP, created=1000), replace(LAPTOP, name="new"),
                    replace(LAPTOP, name="gone", created=1000, revoked_at=2000)]  # fmt: skip
    before = site.pins()
    with pytest.raises(VpnError, match=r"older profiles do not know it: alice/laptop; revoke"):
        site.rotate()
    assert site.pins() == before
    assert site.rotate(force=True)["locked_out"] == ["alice/laptop"]
    assert site.fits()


def interrupt(site: Site, step: int) -> None:
    """Leave the files as a power cut after so many steps does."""
    request = site.server.run(renewal_jobs.next_key)["request"].encode()
    authority = ca.load(site.ca.directory)
    chain = authority.sign_server(request, ["vpn.example.org"], NOW)
    state = site.state
    after = generate("p256")
    replace_file(state / server_files.AFTER, encode_key(after))
    if step >= 1:
        replace_file(state / "server.crt", chain, 0o644)
    if step >= 2:
        (state / "server-next.key").rename(state / "server.key")
    if step >= 3:
        public = server_files.encode_public_key(after.public_key())
        replace_file(state / "server-next.pub", public, 0o644)
    for path in state.iterdir():
        os.chown(path, site.server.account.uid, site.server.account.gid)


@pytest.mark.parametrize("step", range(4))
def test_a_change_that_was_interrupted_is_completed_or_taken_back(site: Site, step: int) -> None:
    """By the next renewal, whichever file the power went at."""
    before = site.pins()
    interrupt(site, step)
    site.repair()
    assert site.fits()
    assert site.pins()[0] == before[1 if step else 0]
    assert not (site.state / server_files.AFTER).exists()
    site.rotate()
    assert site.fits()


def test_files_that_fit_nowhere_are_not_touched(site: Site) -> None:
    """Somebody has put another certificate there."""
    interrupt(site, 0)
    with open_place() as place:
        other = Site(place)
        data = (other.state / "server.crt").read_bytes()
    (site.state / "server.crt").write_bytes(data)
    with pytest.raises(VpnError, match="fits neither"):
        site.repair()
