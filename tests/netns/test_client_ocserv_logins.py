"""Our client at an ocserv that asks for more: groups, one-time codes; and with IPv6 inside."""

import hashlib
import hmac
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w

from tests.netns.bed import Bed
from tests.netns.client import INTERFACE, USER, Client, Profile
from tests.netns.namespace import PYTHON
from tests.netns.ocserv import TARGET, TLS13, Ocserv
from tests.netns.person import Person

pytestmark = [pytest.mark.netns, pytest.mark.once, pytest.mark.timeout(120)]
PASSWORD = "correct horse battery staple"
SECRET = bytes(range(20))
TARGET6 = "fd00:77::1"  # ocserv's own address in the tunnel
STRICT = {
    "auth": "plain[passwd={folder}/passwd,otp={folder}/otp]",
    "select-group": ("staff[Our staff]", "guests[For guests]"),
    "ipv6-network": "fd00:77::/64",
    "ipv6-subnet-prefix": "128",
    "route": (f"{TARGET}/32", "fd00:77::/64"),
}


class Tablet(Client):
    """A client that a person or three descriptors answer for."""

    def argv(self, profile: Profile, *arguments: str) -> list[str]:
        """Write a profile; return how vpnd is started with it."""
        helper = {"socket": str(self.socket)}
        self._write(self.profile, tomli_w.dumps(profile | {"helper": helper}))
        where = (f"--run-dir={self.run_dir}", f"--interface={INTERFACE}")
        return [*PYTHON, "vpnd", "client", str(self.profile), *where, *arguments]

    def start_with_codes(self, profile: Profile, password: str, *codes: str) -> None:
        """Start vpnd with a password on one descriptor and one-time codes on another."""
        file = self.folder / "codes"
        self._write(file, "".join(f"{code}\n" for code in codes))
        argv = self.argv(profile, "--password-fd", "0", "--otp-fd", "3")
        opening = ("sh", "-c", 'exec "$@" 3<"$0"', str(file))
        secret = f"{password}\n".encode()
        self.vpnd = self.namespace.start("vpnd-tablet", *opening, *argv, user=USER, stdin=secret)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o600)
        shutil.chown(path, USER, USER)


def code(counter: int) -> str:
    """Return a one-time code, RFC 4226 section 5.3."""
    mac = hmac.digest(SECRET, counter.to_bytes(8, "big"), hashlib.sha1)
    start = mac[-1] & 15
    return f"{int.from_bytes(mac[start : start + 4], 'big') % (1 << 31) % 10**6:06}"


@pytest.fixture(scope="module")
def bed(make_bed: Callable[[int], Bed]) -> Bed:
    return make_bed(1)


@pytest.fixture(scope="module")
def ocserv(bed: Bed) -> Iterator[Ocserv]:
    ocserv = Ocserv(bed.server)
    ocserv.prepare()
    ocserv.add_user("dora", PASSWORD, groups="staff,guests")
    (ocserv.folder / "otp").write_text(f"HOTP dora - {SECRET.hex()}\n")
    ocserv.start(**TLS13, **STRICT)
    yield ocserv
    ocserv.stop()


@pytest.fixture(scope="module")
def _client(bed: Bed) -> Tablet:
    tablet = Tablet(bed.client)
    tablet.prepare()
    tablet.start_helper()
    return tablet


@pytest.fixture
def client(_client: Tablet) -> Iterator[Tablet]:
    """A client that may be started; it has ended after the test."""
    yield _client
    if _client.vpnd.is_alive:
        _client.stop()
    _client.wait_undone()


def test_group_password_and_code_wrong_then_right_and_ipv6_inside(
    client: Tablet, ocserv: Ocserv
) -> None:
    """From descriptors: the profile's group, a wrong code and the right one; both families."""
    profile = ocserv.profile(user="dora")
    profile["client"]["group"] = "For guests"
    client.start_with_codes(profile, PASSWORD, "000000", code(0))
    client.wait_connected()
    (user,) = ocserv.users()
    assert (user["Username"], user["Groupname"]) == ("dora", "guests")
    assert "group chosen: name=guests" in client.vpnd.text()
    assert client.logins() == 1
    assert {address.count(":") > 0 for address in client.link()["inner"]} == {True, False}
    client.namespace.ping(TARGET)
    client.namespace.ping(TARGET6)


def test_a_person_is_asked_for_group_password_and_code(client: Tablet, ocserv: Ocserv) -> None:
    """On a terminal, in the server's words."""
    profile = ocserv.profile(user="dora")
    person = Person([*client.namespace.enter(USER), *client.argv(profile)])
    person.wait_for("Group (Our staff, For guests): ")
    person.type("nonsense")
    person.wait_for("Choose one of those that are offered.")
    person.type("our staff")
    person.wait_for("Password: ")
    person.type(PASSWORD)
    person.wait_for("Password: ")
    person.type(code(1))
    person.wait_for("INFO connected")
    (user,) = ocserv.users()
    assert user["Groupname"] == "staff"
    assert PASSWORD not in person.seen
    os.kill(person.pid, signal.SIGTERM)
    person.wait_for("vpnd is stopping")
    assert person.wait() == 0
    client.wait_undone()
