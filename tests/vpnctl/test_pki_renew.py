"""`vpnctl pki renew`: what is due is renewed, in time, for years, and for nobody else.

The clock is an argument, the authority and the server are two users where root runs this.
"""

import base64
import os
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.vpnctl.homes import homes, homes_of_one_user, open_place
from vpnctl.commands.pki import status_of
from vpnctl.connection import DaemonAbsent
from vpnctl.homes import Home
from vpnctl.pki_init import initialise
from vpnctl.pki_renew import Renewed, renew
from vpnd.errors import VpnError
from vpnd.ipc.api import Client
from vpnd.pki import jobs, keys, spool
from vpnd.pki.certificates import load_chain, serial_text
from vpnd.pki.keys import PrivateKey, is_same_key
from vpnd.pki.pins import certificate_pin
from vpnd.pki.reading import load_certificates, not_after, not_before

START = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


class Device:
    """A client as it holds its own key and certificate, and as the store knows it."""

    def __init__(self, site: "Site", user: str, name: str, at: datetime) -> None:
        self.key: PrivateKey = keys.generate("p256")
        self.user, self.name = user, name
        signed = site.ca.run(
            jobs.sign_client, request=keys.request(self.key).decode(), user=user, client=name,
            foreign=False, now=at.timestamp(),
        )  # fmt: skip
        self.take(signed["certificate"].encode())
        site.clients.append(
            Client(user, name, self.serial, self.end, foreign=False, created=int(at.timestamp()))
        )

    def take(self, chain: bytes) -> None:
        self.chain = load_certificates(chain)
        self.serial = serial_text(self.chain[0])
        self.end = int(not_after(self.chain[0]).timestamp())

    def request(self, key: PrivateKey | None = None) -> dict[str, str]:
        request = x509.load_pem_x509_csr(keys.request(key or self.key))
        return {
            "request": base64.b64encode(request.public_bytes(Encoding.DER)).decode(),
            "certificate": base64.b64encode(self.chain[0].public_bytes(Encoding.DER)).decode(),
        }


class Site:
    """A host with both homes, and a server that knows some clients."""

    def __init__(self, place: Path, both: Mapping[str, Home]) -> None:
        self.place = place
        self.ca: Home = both["ca_home"]
        self.server: Home = both["server_home"]
        self.clients: list[Client] = []
        self.told = 0
        self.is_running = True
        self.is_stubborn = False
        initialise(["vpn.example.org", "192.0.2.1"], "p256", **both)
        self.as_server(spool.prepare)

    def as_server(self, what: object) -> None:
        assert callable(what)
        self.server.run(lambda request: what(Path(request["directory"])) or {})

    def list_clients(self) -> list[Client]:
        if not self.is_running:
            raise DaemonAbsent("vpnd is not running")
        return self.clients

    def tell(self) -> str:
        if self.is_stubborn:
            raise VpnError("server.toml is broken")
        self.told += 1
        return "told"

    def renew(self, now: datetime, *, force: bool = False) -> Renewed:
        return renew(
            self.ca, self.server, now,
            force=force, list_clients=self.list_clients, tell_server=self.tell,
        )  # fmt: skip

    def ask(self, device: Device, **wrong: str) -> None:
        entry = device.request() | wrong
        self.as_server(lambda d: spool.put_request(d, device.serial, **entry) and None)

    def answer(self, device: Device) -> bytes:
        path = self.place / "state/answers" / f"{device.serial}.pem"
        return path.read_bytes() if path.exists() else b""

    def requests(self) -> list[str]:
        return [path.name for path in (self.place / "state/requests").iterdir()]

    @property
    def leaf(self) -> x509.Certificate:
        return load_chain(self.place / "state/server.crt")[0]

    def verify(self, chain: str, at: datetime, ca: str = "state/ca.crt") -> str:
        said = subprocess.run(
            ["openssl", "verify", "-attime", str(int(at.timestamp())), "-CAfile", ca,
             "-untrusted", chain, chain],
            cwd=self.place, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return said.stdout + said.stderr


@pytest.fixture
def site() -> Iterator[Site]:
    with open_place() as place:
        yield Site(place, homes(place))


@pytest.fixture
def site_of_one_user() -> Iterator[Site]:
    with open_place() as place:
        yield Site(place, homes_of_one_user(place))


def test_nothing_is_renewed_before_two_thirds_of_its_life(site: Site) -> None:
    """And then once, with the same key and the same names."""
    before = site.leaf
    assert site.renew(START + 59 * DAY).done == []
    assert site.leaf == before
    assert "renewed the server's certificate" in site.renew(START + 61 * DAY).done
    after = site.leaf
    assert after.serial_number != before.serial_number
    assert certificate_pin(after) == certificate_pin(before)
    assert after.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ) == before.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert not_after(after) > START + 150 * DAY
    assert site.renew(START + 62 * DAY).done == []
    assert site.told == 1


def test_force_renews_at_once_and_keeps_the_key(site: Site) -> None:
    """For an operator who wants to see it work."""
    before = site.leaf
    assert site.renew(START + DAY, force=True).done == ["renewed the server's certificate", "told"]
    assert site.leaf.serial_number != before.serial_number
    assert certificate_pin(site.leaf) == certificate_pin(before)
    assert site.verify("state/server.crt", START + DAY).endswith("OK\n")


@pytest.mark.timeout(300)  # more than a thousand jobs, each a process
def test_in_five_years_of_days_nobody_is_locked_out(site_of_one_user: Site) -> None:
    """Not the server, whose first profiles know the root only; not a client."""
    site = site_of_one_user
    (site.place / "profile-ca.crt").write_bytes((site.place / "ca/root.crt").read_bytes())
    pin = certificate_pin(site.leaf)
    device = Device(site, "alice", "laptop", START)
    now, renewals = START, 0
    while now < START + 5 * 365 * DAY:
        now += 10 * DAY
        renewed = site.renew(now)
        assert renewed.alerts == [], now
        assert not_after(site.leaf) > now + 14 * DAY
        assert certificate_pin(site.leaf) == pin
        if device.end - now.timestamp() < 30 * 86400:
            site.ask(device)
            assert site.renew(now).clients == 1
            old = site.clients.pop()
            device.take(site.answer(device))
            site.clients.append(replace(old, serial=device.serial, not_after=device.end))
            renewals += 1
        assert device.end > now.timestamp() + 14 * 86400
        (site.place / "laptop.crt").write_bytes(
            b"".join(c.public_bytes(Encoding.PEM) for c in device.chain)
        )
        if now.day < 11:
            assert site.verify("state/server.crt", now, "profile-ca.crt").endswith("OK\n")
            assert site.verify("laptop.crt", now).endswith("OK\n"), now
    assert renewals > 20
    assert site.told > 25


def test_a_certificate_of_the_first_issuing_ca_outlives_its_renewal(site: Site) -> None:
    """The new one has the same name and key: whoever holds the old chain stays in."""
    device = Device(site, "alice", "laptop", START + 360 * DAY)
    now = START + 370 * DAY
    assert "renewed the issuing CA's certificate" in site.renew(now).done
    (site.place / "laptop.crt").write_bytes(
        b"".join(c.public_bytes(Encoding.PEM) for c in device.chain)
    )
    assert site.verify("laptop.crt", now).endswith("OK\n")


def test_a_root_key_that_is_elsewhere_is_asked_for_a_year_ahead(site: Site) -> None:
    """The server's certificate goes on being renewed; each run says what is missing."""
    (site.place / "ca/root.key").rename(site.place / "elsewhere")
    renewed = site.renew(START + 370 * DAY)
    (alert,) = renewed.alerts
    assert "root.key: is not here" in alert
    assert "bring it back, run vpnctl pki renew" in alert
    assert "renewed the server's certificate" in renewed.done
    late = site.renew(START + 725 * DAY)
    assert any("the issuing CA ends on" in alert for alert in late.alerts)
    (site.place / "elsewhere").rename(site.place / "ca/root.key")
    assert site.renew(START + 726 * DAY).alerts == []


def test_without_a_server_running_its_certificate_is_renewed_nevertheless(site: Site) -> None:
    """What needs the store waits, and says so."""
    site.is_running = False
    device = Device(site, "alice", "laptop", START - 70 * DAY)
    site.ask(device)
    renewed = site.renew(START + 61 * DAY)
    assert "renewed the server's certificate" in renewed.done
    assert "wait for it" in renewed.done[-1]
    assert site.requests() != []


def test_a_server_that_cannot_reload_holds_up_nobody(site: Site) -> None:
    """An operator is in the middle of an edit: clients get their certificates nevertheless."""
    site.is_stubborn = True
    site.ask(Device(site, "alice", "laptop", START - 65 * DAY))
    renewed = site.renew(START, force=True)
    assert renewed.clients == 1
    (alert,) = renewed.alerts
    assert "did not take its new certificate: server.toml is broken" in alert


def test_a_client_gets_a_certificate_for_its_own_name_and_key(site: Site) -> None:
    """And the request is gone, so that it is answered once."""
    device = Device(site, "alice", "laptop", START - 65 * DAY)
    site.ask(device)
    renewed = site.renew(START)
    assert renewed.done == ["renewed the certificate of client laptop of user alice"]
    chain = load_certificates(site.answer(device))
    assert is_same_key(chain[0].public_key(), device.key.public_key())
    assert not_after(chain[0]) == START + 90 * DAY
    assert chain[0].extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ) == device.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert site.requests() == []
    (answer,) = (site.place / "state/answers").iterdir()
    assert stat.S_IMODE(answer.stat().st_mode) == 0o600


def test_many_requests_are_answered_in_one_run(site: Site) -> None:
    """More than fit in one answer of the authority's process."""
    devices = [Device(site, "alice", f"d{n}", START - 65 * DAY) for n in range(40)]
    for device in devices:
        site.ask(device)
    assert site.renew(START).clients == 40
    assert all(site.answer(device) for device in devices)


def refused(site: Site, device: Device, now: datetime = START) -> str:
    renewed = site.renew(now)
    assert site.answer(device) == b""
    assert site.requests() == []
    assert renewed.clients == 0
    (line,) = renewed.refused
    return line


def test_another_key_is_refused(site: Site) -> None:
    """Whoever took the server over cannot make a certificate for a key of its own."""
    device = Device(site, "alice", "laptop", START - 65 * DAY)
    site.ask(device, request=device.request(keys.generate("p256"))["request"])
    assert "for another key" in refused(site, device)


def test_a_request_without_the_key_itself_is_refused(site: Site) -> None:
    """The signature is the proof."""
    device = Device(site, "alice", "laptop", START - 65 * DAY)
    der = bytearray(base64.b64decode(device.request()["request"]))
    der[-1] ^= 1
    site.ask(device, request=base64.b64encode(bytes(der)).decode())
    assert "certificate request" in refused(site, device)


def test_a_revoked_client_is_refused(site: Site) -> None:
    """The store says so, at the moment of signing."""
    device = Device(site, "alice", "laptop", START - 65 * DAY)
    site.clients[0] = replace(site.clients[0], revoked_at=int(START.timestamp()) - 5)
    site.ask(device)
    assert "the client is revoked" in refused(site, device)


def test_a_certificate_that_was_replaced_is_refused(site: Site) -> None:
    """A client that was made anew does not live on in its old profile."""
    device = Device(site, "alice", "laptop", START - 65 * DAY)
    site.clients[0] = replace(site.clients[0], serial="1f")
    site.ask(device)
    assert "not the client's" in refused(site, device)


def test_a_serial_number_of_somebody_else_is_refused(site: Site) -> None:
    """The certificate says who asks; the name of the file says nothing."""
    alice = Device(site, "alice", "laptop", START - 65 * DAY)
    bob = Device(site, "bob", "phone", START - 65 * DAY)
    site.as_server(lambda d: spool.put_request(d, alice.serial, **bob.request()) and None)
    assert "not the client's" in refused(site, alice)


def test_a_certificate_of_another_authority_is_refused(site: Site) -> None:
    """With the right names in it, and a serial number that the store knows."""
    with open_place() as place:
        other = Site(place, homes(place))
        device = Device(other, "alice", "laptop", START - 65 * DAY)
    site.clients.append(other.clients[0])
    site.ask(device)
    assert "not of this authority" in refused(site, device)


def test_foreign_clients_are_refused(site: Site) -> None:
    """They live two years and are made anew."""
    device = Device(site, "alice", "phone", START - 65 * DAY)
    site.clients[0] = replace(site.clients[0], foreign=True)
    site.ask(device)
    assert "another maker's" in refused(site, device)


@pytest.mark.parametrize(("days", "said"), [(44, "long enough"), (91, "ended on")])
def test_too_early_and_too_late_are_refused(site: Site, days: int, said: str) -> None:
    """Nobody collects certificates, and an ended one proves nothing."""
    device = Device(site, "alice", "laptop", START - days * DAY)
    site.ask(device)
    assert said in refused(site, device)


@pytest.mark.parametrize("junk", ["", "%%%", "AAAA", "A" * 5000])
def test_junk_is_refused_and_taken_away(site: Site, junk: str) -> None:
    """A request comes from the process that faces the network."""
    device = Device(site, "alice", "laptop", START - 65 * DAY)
    site.ask(device, certificate=junk)
    refused(site, device)
    site.ask(device, request=junk)
    refused(site, device)


def crl_of(site: Site) -> dict[str, x509.RevokedCertificate]:
    crl = x509.load_pem_x509_crl((site.place / "state/crl.pem").read_bytes())
    issuing = load_chain(site.place / "ca/issuing.crt")[0]
    assert crl.is_signature_valid(issuing.public_key())  # type: ignore[arg-type]
    return {format(entry.serial_number, "x"): entry for entry in crl}


def revoked_at(entry: x509.RevokedCertificate) -> datetime:
    if hasattr(entry, "revocation_date_utc"):
        return entry.revocation_date_utc
    return entry.revocation_date.replace(tzinfo=UTC)


def test_the_revocation_list_names_all_that_the_store_does_not_take(site: Site) -> None:
    """Revoked, superseded and forgotten ones, until they end; not the one in use."""
    revoked = Device(site, "alice", "laptop", START - 10 * DAY)
    superseded = Device(site, "bob", "phone", START - 65 * DAY)
    forgotten = Device(site, "carol", "tablet", START - 10 * DAY)
    Device(site, "dave", "ended", START - 95 * DAY)
    site.clients = [
        replace(site.clients[0], revoked_at=int(START.timestamp()) - 5), site.clients[1]
    ]  # fmt: skip
    site.ask(superseded)
    site.renew(START)
    assert set(crl_of(site)) == {revoked.serial, forgotten.serial}
    assert revoked_at(crl_of(site)[revoked.serial]) == START - timedelta(seconds=5)
    new = serial_text(load_certificates(site.answer(superseded))[0])
    site.clients[1] = replace(site.clients[1], serial=new)
    site.renew(START + DAY)
    assert set(crl_of(site)) == {revoked.serial, forgotten.serial, superseded.serial}
    entry = crl_of(site)[superseded.serial]
    assert revoked_at(entry) == START
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value == x509.CRLReason(
        x509.ReasonFlags.superseded
    )
    site.renew(START + 120 * DAY)
    assert set(crl_of(site)) == set()


def test_openssl_reads_the_revocation_list(site: Site) -> None:
    """It is for programs of others."""
    device = Device(site, "alice", "laptop", START - DAY)
    site.clients[0] = replace(site.clients[0], revoked_at=int(START.timestamp()) - 5)
    site.renew(START)
    chain = site.place / "laptop.crt"
    chain.write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in device.chain))
    said = subprocess.run(
        ["openssl", "verify", "-attime", str(int(START.timestamp())), "-crl_check",
         "-CRLfile", "state/crl.pem", "-CAfile", "state/ca.crt", "laptop.crt"],
        cwd=site.place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "certificate revoked" in said.stdout + said.stderr


def test_a_server_without_a_certificate_names_the_remedy(site: Site) -> None:
    """The timer may fire before the first start."""
    (site.place / "state/server.crt").unlink()
    with pytest.raises(VpnError, match=r"no server\.crt; make it with vpnctl pki init"):
        site.renew(START)


def test_a_server_of_another_authority_is_not_renewed(site: Site) -> None:
    """--ca-dir names the wrong pair: better a sentence than a certificate nobody trusts."""
    with open_place() as place:
        other = Site(place, homes(place))
        with pytest.raises(VpnError, match="not of this authority"):
            renew(
                other.ca, site.server, START + 61 * DAY,
                force=False, list_clients=site.list_clients, tell_server=site.tell,
            )  # fmt: skip


def test_every_file_keeps_its_owner_and_mode(site: Site) -> None:
    """Keys are private, and nothing in a home belongs to anybody else."""
    device = Device(site, "alice", "laptop", START - 65 * DAY)
    site.ask(device)
    site.renew(START + DAY, force=True)
    public = {"root.crt", "issuing.crt", "server.crt", "ca.crt", "crl.pem", "server-next.pub"}
    for home in (site.ca, site.server):
        for path in home.directory.rglob("*"):
            found = path.lstat()
            assert (found.st_uid, found.st_gid) == (home.account.uid, home.account.gid), path
            mode = 0o700 if path.is_dir() else 0o644 if path.name in public else 0o600
            assert stat.S_IMODE(found.st_mode) == mode, path
            assert not path.name.startswith("."), path


@pytest.mark.parametrize(
    ("foreign", "days", "said"),
    [
        (False, 15, ""),
        (False, 13, "has not asked for another one"),
        (True, 31, ""),
        (True, 29, "revoke it and add it anew"),
        (True, -1, ""),
    ],
)
def test_clients_about_to_be_locked_out_are_named(
    site: Site, foreign: bool, days: int, said: str
) -> None:
    """Those that cannot renew, or did not: while there is time to do something."""
    end = int((START + days * DAY).timestamp())
    site.clients = [Client("alice", "phone", "1f", end, foreign=foreign, created=0)]
    alerts = site.renew(START).alerts
    assert len(alerts) == bool(said)
    assert all("client phone of user alice ends on" in a and said in a for a in alerts)


def test_the_status_tells_ends_pins_and_what_comes_next(site: Site) -> None:
    """One look at all that may end."""
    shown = status_of(site.ca, site.server, START + DAY)
    root, issuing, server = shown["certificates"]
    assert (root["certificate"], root["renewal"]) == ("root CA", None)
    assert root["remark"] == "its key is here"
    assert server["remark"] == "vpn.example.org, 192.0.2.1"
    begin = not_before(site.leaf) + timedelta(hours=1)
    assert server["renewal"] == int((begin + 60 * DAY).timestamp())
    assert server["not_after"] == int((begin + 90 * DAY).timestamp())
    begin = not_before(load_chain(site.place / "ca/issuing.crt")[0]) + timedelta(hours=1)
    assert issuing["renewal"] == int((begin + 365 * DAY).timestamp())
    assert len(shown["pins"]) == 2
    assert shown["alerts"] == []


def test_a_late_revocation_list_is_an_alert(site: Site) -> None:
    """And nothing more: nobody is refused because of it."""
    assert status_of(site.ca, site.server, START)["revocation_list_until"] is None
    site.renew(START)
    shown = status_of(site.ca, site.server, START + DAY)
    assert shown["revocation_list_until"] == int((START + 30 * DAY).timestamp())
    assert shown["alerts"] == []
    alerts = status_of(site.ca, site.server, START + 31 * DAY)["alerts"]
    assert alerts == ["the revocation list is late; vpnctl pki renew makes another"]


@pytest.mark.parametrize(
    ("days", "said"),
    [(80, "the server's certificate ends on"), (91, "ended on"), (-30, "set this host's clock")],
)
def test_the_status_complains_of_what_was_not_renewed(site: Site, days: int, said: str) -> None:
    """A renewal that does not work is seen weeks before anybody is locked out."""
    alerts = status_of(site.ca, site.server, START + days * DAY)["alerts"]
    assert any(said in alert for alert in alerts), alerts


@pytest.mark.skipif(os.geteuid() != 0, reason="changes users, which root alone can")
def test_the_authority_never_enters_the_servers_directory(site: Site) -> None:
    """Nor the server the authority's: what crosses is text, through pipes of root's."""
    for home, other in ((site.ca, "state"), (site.server, "ca")):
        with pytest.raises(VpnError, match="ermission denied"):
            Home(site.place / other, home.account).run(jobs.existing, files=[])
