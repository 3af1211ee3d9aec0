"""Renewing clients' certificates: the request out, the answer in, the store in its time."""

import json
from base64 import b64decode, b64encode
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vpnd.auth.contract import CertificateFacts
from vpnd.auth.login import LoginAccepted
from vpnd.config.model import ServerConfig
from vpnd.errors import StoreError
from vpnd.pki import ca, keys, spool
from vpnd.pki.certificates import serial_text
from vpnd.pki.reading import load_certificates, not_after
from vpnd.policy.leases import Pool
from vpnd.server.renewal import Renewals
from vpnd.server.sessions import Sessions
from vpnd.store.contract import Client, Store, User
from vpnd.store.memory import MemoryStore
from vpnd.worker.messages import OpenQuery, OpenReply

NOW = 10_000.0
AT = datetime.fromtimestamp(NOW, UTC)
REQUEST = b64encode(b"a request").decode()


class Gate:
    """One client of a server, and the authority beside it."""

    def __init__(self, place: Path) -> None:
        (place / "ca").mkdir()
        self.state = place / "state"
        self.state.mkdir()
        self.authority = ca.create(place / "ca", "p256", AT)
        self.key = keys.generate("p256")
        self.old = self.sign()
        self.store: Store = MemoryStore()
        self.store.users.put(User("alice"))
        facts = self.facts(self.old)
        self.store.clients.put(
            Client("alice", "laptop", facts.serial, created=0.0, not_after=facts.not_after)
        )
        self.told: list[tuple[int, str]] = []
        self.sessions = Sessions(
            ServerConfig(),
            self.store,
            Pool(IPv4Network("10.8.0.0/24"), None),
            lambda number, why: self.told.append((number, why)),
        )
        self.renewals = Renewals(self.state, self.store, self.sessions)
        self.cookie = self.sessions.begin(
            LoginAccepted("alice", "laptop", "certificate", facts.serial), NOW
        )

    def sign(self) -> bytes:
        return self.authority.sign_client(
            keys.request(self.key), "alice", "laptop", AT, foreign=False
        )

    @staticmethod
    def facts(chain: bytes) -> CertificateFacts:
        leaf = load_certificates(chain)[0]
        return CertificateFacts("alice", "laptop", serial_text(leaf), not_after(leaf).timestamp())

    def connect(
        self,
        chain: bytes,
        *,
        renewal: str = "",
        rekey: bool = False,
        facts: CertificateFacts | None = None,
        now: float = NOW + 1,
    ) -> OpenReply:
        query = OpenQuery(
            self.cookie, "192.0.2.9:4000", facts or self.facts(chain), "host", "agent", True, True,
            is_own=True, rekey=rekey, renewal=renewal,
            certificate_der=b64encode(b"a certificate").decode() if renewal else "",
        )  # fmt: skip
        return self.renewals.open(query, now)

    def requests(self) -> dict[str, str]:
        folder = self.state / "requests"
        return {path.stem: path.read_text() for path in folder.iterdir()}

    def serial(self) -> str:
        known = self.store.clients.get("alice", "laptop")
        assert known is not None
        return known.serial

    def answer(self) -> bytes:
        """Answer as the authority does."""
        new = self.sign()
        spool.answer(self.state, self.facts(self.old).serial, new.decode())
        return new


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def test_a_request_is_left_for_the_authority(gate: Gate) -> None:
    """Under the serial number that TLS has verified, with the certificate that was shown."""
    reply = gate.connect(gate.old, renewal=REQUEST)
    assert (reply.refused, reply.renewed) == (0, [])
    ((serial, text),) = gate.requests().items()
    assert serial == gate.facts(gate.old).serial
    entry = json.loads(text)
    assert b64decode(entry["request"]) == b"a request"
    assert b64decode(entry["certificate"]) == b"a certificate"


def test_the_answer_comes_with_the_next_connect(gate: Gate) -> None:
    """And again with the one after it, if the client has lost it; the store waits."""
    gate.connect(gate.old, renewal=REQUEST)
    new = gate.answer()
    for _ in range(2):
        reply = gate.connect(gate.old, renewal=REQUEST)
        chain = [x509.load_der_x509_certificate(b64decode(each)) for each in reply.renewed]
        assert chain == load_certificates(new)
        assert gate.serial() == gate.facts(gate.old).serial
    assert gate.requests() == {}


def test_asking_without_end_writes_nothing_more(gate: Gate) -> None:
    """Each write starts the authority; a client that asks again later wakes it again."""
    gate.connect(gate.old, renewal=REQUEST)
    (path,) = (gate.state / "requests").iterdir()
    path.unlink()
    for second in range(9):
        gate.connect(gate.old, renewal=REQUEST, now=NOW + 1 + second)
    assert gate.requests() == {}
    gate.connect(gate.old, renewal=REQUEST, now=NOW + 11)
    assert len(gate.requests()) == 1


def test_answers_that_are_nobodys_are_removed_at_the_start(gate: Gate) -> None:
    """Of clients that were made anew; those that wait for their client stay."""
    gate.answer()
    spool.answer(gate.state, "1f", "PEM")
    Renewals(gate.state, gate.store, gate.sessions)
    assert spool.answered(gate.state) == [gate.facts(gate.old).serial]


def test_without_a_request_nothing_is_given_or_left(gate: Gate) -> None:
    """Stock clients never see any of it."""
    gate.answer()
    assert gate.connect(gate.old).renewed == []
    assert gate.requests() == {}


def test_who_shows_the_new_certificate_is_known_by_it(gate: Gate) -> None:
    """From then on the old one is nobody's, and the session goes on."""
    first = gate.connect(gate.old, renewal=REQUEST)
    new = gate.answer()
    gate.connect(gate.old, renewal=REQUEST)
    reply = gate.connect(new)
    assert (reply.refused, reply.session) == (0, first.session)
    assert gate.serial() == gate.facts(new).serial
    known = gate.store.clients.get("alice", "laptop")
    assert known is not None
    assert known.not_after == gate.facts(new).not_after
    assert list((gate.state / "answers").iterdir()) == []
    assert gate.connect(gate.old).refused == 401
    gate.sessions.expire(NOW + 5)
    assert [why for _, why in gate.told if why != "the client connected again"] == []


def test_a_tunnel_with_the_old_certificate_is_not_ended_by_the_new_one(gate: Gate) -> None:
    """The overlap of a rotation: the clock that looks at everybody sees the same session."""
    gate.connect(gate.old)
    new = gate.answer()
    reply = gate.connect(new, rekey=True)
    assert reply.beside
    gate.sessions.expire(NOW + 5)
    assert gate.told == []
    assert {t.session.serial for t in gate.sessions.live.values()} == {gate.facts(new).serial}


def test_a_login_with_the_new_certificate_makes_it_the_clients(gate: Gate) -> None:
    """The client came back after its session had ended."""
    new = gate.answer()
    gate.renewals.adopt(gate.facts(new))
    assert gate.serial() == gate.facts(new).serial


@pytest.mark.parametrize("waits", [True, False])
def test_a_certificate_that_was_not_made_for_it_changes_nothing(gate: Gate, waits: bool) -> None:
    """One that the authority has signed for other reasons, say, before a revocation."""
    if waits:
        gate.answer()
    stranger = gate.sign()
    assert gate.connect(stranger).refused == 401
    assert gate.serial() == gate.facts(gate.old).serial


def test_a_revoked_client_gets_nothing_and_becomes_nothing(gate: Gate) -> None:
    """Also where its certificate has been made already."""
    new = gate.answer()
    known = gate.store.clients.get("alice", "laptop")
    assert known is not None
    gate.store.clients.put(replace(known, revoked_at=NOW))
    for chain in (gate.old, new):
        reply = gate.connect(chain, renewal=REQUEST)
        assert (reply.refused, reply.renewed) == (401, [])
    assert gate.serial() == gate.facts(gate.old).serial
    assert gate.requests() == {}


def test_another_makers_client_leaves_no_request(gate: Gate) -> None:
    """It would not know what to do with the answer."""
    known = gate.store.clients.get("alice", "laptop")
    assert known is not None
    gate.store.clients.put(replace(known, foreign=True))
    assert gate.connect(gate.old, renewal=REQUEST).refused == 0
    assert gate.requests() == {}


def test_a_cookie_without_its_certificate_asks_for_nothing(gate: Gate) -> None:
    """Whoever has stolen a cookie must not turn it into a certificate."""
    query = OpenQuery(gate.cookie, "192.0.2.9:1", None, "h", "a", True, True, True, False, REQUEST)
    assert gate.renewals.open(query, NOW + 1).renewed == []
    assert gate.requests() == {}


def test_a_disk_that_is_full_costs_no_tunnel(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """The client asks again; an operator reads why."""
    (gate.state / "requests").rmdir()
    assert gate.connect(gate.old, renewal=REQUEST).refused == 0
    assert "certificate not renewed" in caplog.text


def test_junk_in_place_of_an_answer_is_none(gate: Gate) -> None:
    """Half a file from a bad disk."""
    spool.answer(gate.state, gate.facts(gate.old).serial, "junk")
    assert gate.connect(gate.old, renewal=REQUEST).renewed == []
    assert len(gate.requests()) == 1


def test_folders_that_cannot_be_made_are_told(gate: Gate, tmp_path: Path) -> None:
    """At the start, with the remedy."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="no folder can be made"):
        Renewals(tmp_path / "file", gate.store, gate.sessions)


def test_answers_are_der_on_the_wire(gate: Gate) -> None:
    """One certificate in a field."""
    new = gate.answer()
    reply = gate.connect(gate.old, renewal=REQUEST)
    ders = [c.public_bytes(Encoding.DER) for c in load_certificates(new)]
    assert [b64decode(each) for each in reply.renewed] == ders
