"""The client's own place for its renewed certificate, and what it takes out of it."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vpnd.client.certificate import ClientCertificate
from vpnd.config.profile_options import ClientConfig, ClientTlsOptions, RemoteOptions
from vpnd.pki import ca, keys
from vpnd.pki.certificates import encode_chain
from vpnd.pki.keys import PrivateKey, encode_key

START = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Bench:
    """A profile, an authority, and a state directory."""

    def __init__(self, place: Path) -> None:
        (place / "ca").mkdir()
        self.authority = ca.create(place / "ca", "p256", START)
        self.state = place / "state" / "laptop"
        self.state.parent.mkdir()
        self.now = START + 61 * DAY
        self.begin(keys.generate("p256"), START)

    def begin(self, key: PrivateKey, at: datetime) -> None:
        """Put a new profile in place."""
        self.key = key
        root = encode_chain([self.authority.root]).decode()
        tls = ClientTlsOptions(root, self.sign(at), encode_key(key).decode())
        self.config = ClientConfig((RemoteOptions("vpn", 443, "vpn"),), tls=tls)

    def sign(self, at: datetime) -> str:
        request = keys.request(self.key)
        return self.authority.sign_client(request, "a", "b", at, foreign=False).decode()

    def certificate(self) -> ClientCertificate:
        return ClientCertificate(self.config, self.state, lambda: self.now)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def end(at: datetime) -> int:
    return int((at + 90 * DAY).timestamp())


def test_a_renewed_certificate_outlives_the_process(bench: Bench) -> None:
    """In a file of the client's own, that nobody else reads."""
    first = bench.certificate()
    assert (first.renewed_pem, first.not_after) == ("", end(START))
    assert first.can_keep()
    renewed = bench.sign(bench.now)
    assert first.keep(renewed) == ""
    assert first.not_after == end(bench.now)
    assert bench.certificate().renewed_pem == renewed
    file = bench.state / "certificate.pem"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(bench.state.stat().st_mode) == 0o700
    assert [path.name for path in bench.state.iterdir()] == ["certificate.pem"]
    assert "PRIVATE" not in file.read_text()


def test_a_new_profile_has_the_last_word(bench: Bench) -> None:
    """Another key, or a certificate that ends later: what was kept is left aside."""
    bench.certificate().keep(bench.sign(bench.now))
    old = bench.key
    bench.begin(keys.generate("p256"), bench.now)
    assert bench.certificate().renewed_pem == ""
    bench.begin(old, bench.now + DAY)
    bench.now += 2 * DAY
    assert bench.certificate().renewed_pem == ""


@pytest.mark.parametrize("text", ["", "junk", "-----BEGIN CERTIFICATE-----\n"])
def test_a_damaged_file_is_left_aside(bench: Bench, text: str) -> None:
    """The profile's certificate goes on."""
    bench.state.mkdir()
    (bench.state / "certificate.pem").write_text(text)
    assert bench.certificate().renewed_pem == ""


def test_what_the_worker_brings_is_judged_again(bench: Bench) -> None:
    """It faces the network, this process owns the file."""
    certificate = bench.certificate()
    renewed = bench.sign(bench.now)
    bench.key = keys.generate("p256")
    assert "another key" in certificate.keep(bench.sign(bench.now))
    assert "no certificate" in certificate.keep("junk")
    assert not (bench.state / "certificate.pem").exists()
    assert certificate.can_keep()
    assert certificate.keep(renewed) == ""


def test_without_its_parent_there_is_no_place(bench: Bench) -> None:
    """The package makes it; a clone may not have it."""
    bench.state = bench.state / "deeper"
    assert not bench.certificate().can_keep()


def test_a_client_that_logs_in_by_password_has_nothing_to_keep(bench: Bench) -> None:
    """And no end."""
    bench.config = ClientConfig((RemoteOptions("vpn", 443, "vpn"),))
    certificate = bench.certificate()
    assert certificate.not_after is None
    assert not certificate.can_keep()


@pytest.mark.parametrize(
    ("days", "said"), [(70, ""), (80, "ends soon, and was not renewed"), (91, "has ended")]
)
def test_an_end_that_comes_near_is_told_at_the_start(
    bench: Bench, caplog: pytest.LogCaptureFixture, days: int, said: str
) -> None:
    """Weeks before nobody gets in any more."""
    bench.now = START + days * DAY
    bench.certificate()
    assert (said in caplog.text) if said else not caplog.records
