"""What the library read is said in the same way, whatever its generation."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from vpnd.pki import ca, keys, reading
from vpnd.pki.certificates import encode_chain

NOW = datetime(2030, 1, 1, tzinfo=UTC)
Loader = Callable[[bytes], list[x509.Certificate]]
READERS = [reading.load_certificates, reading._load_each]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> ca.Authority:
    return ca.create(tmp_path_factory.mktemp("ca"), "p256", NOW)


def test_dates_have_their_time_zone(authority: ca.Authority) -> None:
    """A naive date compared with ours raises, and taken as local time it is hours off."""
    assert reading.not_after(authority.root) == NOW + timedelta(days=3652)
    assert reading.not_before(authority.root) == NOW - timedelta(hours=1)


def test_the_date_of_a_revocation_list_too(authority: ca.Authority) -> None:
    """The timer compares it with now."""
    issuer, end = authority.issuer, NOW + timedelta(days=1)
    builder = x509.CertificateRevocationListBuilder(issuer.certificate.subject, NOW, end)
    signed = builder.sign(issuer.key, keys.signature_hash(issuer.key))
    assert reading.next_update(signed) == end


@pytest.mark.parametrize("checks", {False, reading._CHECKS_ISSUERS})
@pytest.mark.parametrize("key_type", ["p256", "p384", "rsa3072"])
def test_an_issuer_is_known_by_name_and_key(
    key_type: keys.KeyType, checks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client takes no next certificate from anybody else, also where we have to check."""
    monkeypatch.setattr(reading, "_CHECKS_ISSUERS", checks)
    (tmp_path / "ours").mkdir()
    (tmp_path / "other").mkdir()
    ours = ca.create(tmp_path / "ours", key_type, NOW)
    other = ca.create(tmp_path / "other", key_type, NOW)  # of the same names
    issuing = ours.issuer.certificate
    assert reading.is_issued_by(issuing, ours.root)
    assert reading.is_issued_by(ours.root, ours.root)
    assert not reading.is_issued_by(issuing, other.root)
    assert not reading.is_issued_by(ours.root, issuing)


@pytest.mark.parametrize("load", READERS)
def test_a_chain_is_read_in_its_order(load: Loader, authority: ca.Authority) -> None:
    """With what people and programs write between certificates."""
    chain = [authority.issuer.certificate, authority.root]
    assert load(encode_chain(chain)) == chain
    assert load(b"subject=CN = x\r\n" + encode_chain(chain).replace(b"\n", b"\r\n")) == chain
    key = keys.encode_key(keys.generate("p256"))
    assert load(key + encode_chain(chain[:1]) + key) == chain[:1]


@pytest.mark.parametrize("load", READERS)
def test_what_holds_no_certificate_is_an_error(load: Loader, authority: ca.Authority) -> None:
    """Callers wait for ValueError and nothing else."""
    pem = encode_chain([authority.root])
    broken = pem.replace(b"M", b"!", 1)
    for text in (b"", b"\xff", pem[:-40], broken, keys.encode_key(keys.generate("p256"))):
        with pytest.raises(ValueError):  # noqa: PT011 - the texts are the library's
            load(text)
