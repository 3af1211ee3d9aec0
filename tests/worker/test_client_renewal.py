"""When a client asks for its next certificate, what it takes, and what it shows."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vpnd.pki import ca, keys
from vpnd.pki.certificates import encode_chain
from vpnd.pki.keys import PrivateKey, encode_key, is_same_key
from vpnd.pki.reading import load_certificates
from vpnd.wire.params_client import ServerParams
from vpnd.worker.client_renewal import WAITS, ClientRenewal
from vpnd.worker.messages import (
    CertificateKept,
    CertificateRenewed,
    Message,
    RemoteEntry,
    StartClient,
)

START = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Bench:
    """A client of an authority, with a clock and a master that the test plays."""

    def __init__(self, place: Path) -> None:
        self.authority = ca.create(place, "p256", START)
        self.key = keys.generate("p256")
        self.pem = self.sign(START).decode()
        self.wall, self.clock = START, 0.0
        self.kept: list[str] = []
        self.refusal = ""

    def sign(
        self, at: datetime, *, key: PrivateKey | None = None, client: str = "laptop"
    ) -> bytes:
        request = keys.request(key or self.key)
        return self.authority.sign_client(request, "alice", client, at, foreign=False)

    async def ask(self, message: Message) -> Message:
        assert isinstance(message, CertificateRenewed)
        self.kept.append(message.certificate_pem)
        return CertificateKept(self.refusal)

    def renewal(
        self, *, renew: bool = True, renewed_pem: str = "", ca_pem: str | None = None
    ) -> ClientRenewal:
        root = encode_chain([self.authority.root]).decode()
        settings = StartClient(
            remotes=[RemoteEntry("vpn", 443, "vpn", [], root if ca_pem is None else ca_pem)],
            path="/",
            user="alice",
            certificate_pem=self.pem,
            key_pem=encode_key(self.key).decode(),
            allow_tls12=False,
            dtls=True,
            mtu=0,
            hostname="h",
            rekey_s=3600,
            reconnect_timeout_s=0,
            log_level="info",
            sessions=[],
            renewed_pem=renewed_pem,
            renew=renew,
        )
        return ClientRenewal(settings, self.ask, wall=self._timestamp, clock=lambda: self.clock)

    def _timestamp(self) -> float:
        return self.wall.timestamp()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def offer(chain: bytes = b"") -> ServerParams:
    certificates = load_certificates(chain) if chain else []
    return ServerParams(renewed=tuple(c.public_bytes(Encoding.DER) for c in certificates))


def contact(renewal: ClientRenewal, chain: bytes = b"") -> bool:
    return asyncio.run(renewal.contact(offer(chain)))


def test_nothing_is_asked_before_the_last_thirty_days(bench: Bench) -> None:
    """Then a request for the same key, the same each time."""
    renewal = bench.renewal()
    for day, wanted in ((0, False), (59, False), (61, True), (89, True), (100, True)):
        bench.wall = START + day * DAY
        assert bool(renewal.request()) is wanted
        bench.clock += 1e6
        assert renewal.take_turn() is wanted
    request = x509.load_der_x509_csr(renewal.request())
    assert is_same_key(request.public_key(), bench.key.public_key())
    assert request.is_signature_valid
    assert renewal.request() == renewal.request()


@pytest.mark.parametrize("renew", [True, False])
def test_without_a_place_to_keep_it_nothing_is_asked(bench: Bench, renew: bool) -> None:
    """A certificate that is lost at the next start would lock the client out."""
    bench.wall = START + 80 * DAY
    assert bool(bench.renewal(renew=renew).request()) is renew


def test_a_client_without_a_certificate_asks_for_none(bench: Bench) -> None:
    """It logs in by password."""
    bench.pem = ""
    bench.wall = START + 80 * DAY
    renewal = bench.renewal()
    assert renewal.request() == b""
    assert not renewal.take_turn()


def test_an_answer_is_kept_first_and_shown_then(bench: Bench) -> None:
    """And the next contact comes soon, so that the server knows the client by it."""
    bench.wall = START + 61 * DAY
    renewal = bench.renewal()
    assert not contact(renewal)
    bench.clock += WAITS[0] + 1
    assert renewal.take_turn()
    new = bench.sign(bench.wall)
    assert contact(renewal, new)
    assert bench.kept == [new.decode()]
    assert renewal.shown_pem == new.decode()
    assert renewal.request() == b""
    assert not renewal.take_turn()
    bench.clock += WAITS[0] + 1
    assert renewal.take_turn()
    assert not contact(renewal)
    bench.clock += 1e9
    assert not renewal.take_turn()


def test_a_certificate_that_cannot_be_kept_is_not_shown(bench: Bench) -> None:
    """The old one goes on, and the client asks again."""
    bench.wall, bench.refusal = START + 61 * DAY, "the disk is full"
    renewal = bench.renewal()
    assert not contact(renewal, bench.sign(bench.wall))
    assert renewal.shown_pem == bench.pem
    assert renewal.request()


def test_a_server_that_never_answers_is_asked_less_and_less(bench: Bench) -> None:
    """Each time costs a TLS handshake."""
    bench.wall = START + 61 * DAY
    renewal = bench.renewal()
    turns = []
    while bench.clock < 86400:
        if renewal.take_turn():
            turns.append(bench.clock)
        bench.clock += 1
    pauses = [after - before for before, after in pairwise(turns)]
    assert pauses[:3] == list(WAITS[1:4])
    assert set(pauses[3:]) == {WAITS[-1]}


def test_the_first_two_contacts_are_seconds_apart(bench: Bench) -> None:
    """Signing takes seconds: a client that connects for minutes gets its certificate too."""
    bench.wall = START + 61 * DAY
    renewal = bench.renewal()
    contact(renewal)
    for wait in WAITS[:2]:
        assert not renewal.take_turn()
        bench.clock += wait
        assert renewal.take_turn()
        bench.clock += 1
        contact(renewal)


@pytest.mark.parametrize(
    "case", ["another key", "another client", "not longer", "not yet valid", "no chain", "junk"]
)
def test_what_does_not_follow_is_not_taken(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    """A server that was taken over must not lock the client out of others."""
    bench.wall = START + 61 * DAY
    renewal = bench.renewal()
    if case == "another key":
        chain = bench.sign(bench.wall, key=keys.generate("p256"))
    elif case == "another client":
        chain = bench.sign(bench.wall, client="phone")
    elif case == "not longer":
        chain = bench.sign(START)
    elif case == "not yet valid":
        chain = bench.sign(bench.wall + DAY)
    else:
        (tmp_path / "other").mkdir()
        bench.authority = ca.create(tmp_path / "other", "p256", START)
        chain = bench.sign(bench.wall)
    params = ServerParams(renewed=(b"junk",)) if case == "junk" else offer(chain)
    assert not asyncio.run(renewal.contact(params))
    assert bench.kept == []
    assert renewal.shown_pem == bench.pem
    assert "certificate is not taken" in caplog.text


def test_servers_of_a_public_ca_do_not_stand_in_the_way(bench: Bench, tmp_path: Path) -> None:
    """The profile's CA is then not the one that signs clients, before and after."""
    (tmp_path / "public").mkdir()
    public = encode_chain([ca.create(tmp_path / "public", "p256", START).root]).decode()
    bench.wall = START + 61 * DAY
    for ca_pem in (public, ""):
        assert contact(bench.renewal(ca_pem=ca_pem), bench.sign(bench.wall))


def test_what_is_refused_gives_way_to_the_other_one_once(bench: Bench) -> None:
    """A server that was put back from a copy knows the earlier one; others the later."""
    new = bench.sign(START + 61 * DAY).decode()
    renewal = bench.renewal(renewed_pem=new)
    assert renewal.shown_pem == new
    assert renewal.swap()
    assert renewal.shown_pem == bench.pem
    assert not renewal.swap()
    contact(renewal)
    assert renewal.swap()
    assert renewal.shown_pem == new


def test_with_one_certificate_there_is_nothing_to_swap(bench: Bench) -> None:
    """A refusal is then final."""
    assert not bench.renewal().swap()
