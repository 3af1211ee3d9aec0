"""What certificates contain, judged by OpenSSL where it can judge."""

import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from vpnd.errors import ConfigError, Malformed
from vpnd.pki import ca, keys, names
from vpnd.pki.certificates import (
    load_chain,
    parse_client_identity,
    serial_text,
    server_names,
)
from vpnd.pki.reading import load_certificates, not_after, not_before

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> ca.Authority:
    return ca.create(tmp_path, "p256", NOW)


def client_chain(authority: ca.Authority, **changes: object) -> list[x509.Certificate]:
    wanted = {"user": "alice", "client": "laptop", "now": NOW, "foreign": False} | changes
    request = keys.request(keys.generate("p256"))
    return load_certificates(authority.sign_client(request, **wanted))  # type: ignore[arg-type]


def purposes(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def openssl_verify(tmp_path: Path, chain: bytes, root: x509.Certificate, *options: str) -> str:
    (tmp_path / "chain.pem").write_bytes(chain)
    (tmp_path / "root.pem").write_bytes(root.public_bytes(Encoding.PEM))
    at = str(int(NOW.timestamp()) + 60)
    result = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-attime", at, "-CAfile", "root.pem",
         "-untrusted", "chain.pem", *options, "chain.pem"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return result.stdout + result.stderr


@pytest.mark.parametrize("key_type", ["p256", "p384", "rsa3072"])
def test_openssl_accepts_chains_of_every_key_type(tmp_path: Path, key_type: keys.KeyType) -> None:
    """Peers judge by OpenSSL's strict reading of RFC 5280, not by ours."""
    authority = ca.create(tmp_path, key_type, NOW)
    request = keys.request(keys.generate(key_type))
    server = authority.sign_server(request, ["vpn.example.org", "192.0.2.1"], NOW)
    client = authority.sign_client(request, "alice", "laptop", NOW, foreign=False)
    for chain, purpose in ((server, "sslserver"), (client, "sslclient")):
        assert openssl_verify(tmp_path, chain, authority.root, "-purpose", purpose).endswith(
            ": OK\n"
        )
    names_ok = ("-verify_hostname", "vpn.example.org")
    assert openssl_verify(tmp_path, server, authority.root, *names_ok).endswith(": OK\n")
    assert openssl_verify(tmp_path, server, authority.root, "-verify_ip", "192.0.2.1").endswith(
        ": OK\n"
    )


def test_client_certificate_cannot_play_the_server_nor_the_reverse(
    tmp_path: Path, authority: ca.Authority
) -> None:
    """A stolen laptop must not become a gateway."""
    request = keys.request(keys.generate("p256"))
    server = authority.sign_server(request, ["vpn.example.org"], NOW)
    client = authority.sign_client(request, "alice", "laptop", NOW, foreign=False)
    for chain, purpose in ((client, "sslserver"), (server, "sslclient")):
        said = openssl_verify(tmp_path, chain, authority.root, "-purpose", purpose)
        assert re.search("unsuitable|unsupported certificate purpose", said)


def test_leaf_cannot_sign(authority: ca.Authority) -> None:
    """Only the two CA certificates are CAs, and the issuing one ends the chain."""
    leaf, issuing = client_chain(authority)
    for certificate, is_ca, length in (
        (leaf, False, None),
        (issuing, True, 0),
        (authority.root, True, 1),
    ):
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (found.critical, found.value.ca, found.value.path_length) == (True, is_ca, length)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        assert (usage.key_cert_sign, usage.digital_signature) == (is_ca, not is_ca)


@pytest.mark.parametrize(("foreign", "days"), [(False, 90), (True, 730)])
def test_client_life_is_90_days_or_2_years_for_foreign_ones(
    authority: ca.Authority, foreign: bool, days: int
) -> None:
    """Stock clients cannot renew by themselves."""
    leaf = client_chain(authority, foreign=foreign)[0]
    assert not_after(leaf) == NOW + timedelta(days=days)
    assert not_before(leaf) == NOW - timedelta(hours=1)
    assert purposes(leaf) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_ca_lives_10_years_and_issuing_ca_2(authority: ca.Authority) -> None:
    """The design's figures."""
    assert not_after(authority.root) == NOW + timedelta(days=3652)
    assert not_after(authority.issuer.certificate) == NOW + timedelta(days=730)


def test_no_certificate_outlives_its_issuer(authority: ca.Authority) -> None:
    """A chain is only as long-lived as its shortest link."""
    late = NOW + timedelta(days=700)
    leaf = client_chain(authority, now=late, foreign=True)[0]
    assert not_after(leaf) == not_after(authority.issuer.certificate)


def test_ended_authority_signs_nothing(authority: ca.Authority) -> None:
    """Better a sentence now than a client that never connects."""
    with pytest.raises(ConfigError, match=r"ended on 2032-01-01.*check the clock"):
        client_chain(authority, now=NOW + timedelta(days=731))


def test_identity_survives_the_certificate(authority: ca.Authority) -> None:
    """The server learns user and client from nothing but the URI."""
    leaf = client_chain(authority, user="a.b@example", client="tab-2")[0]
    assert parse_client_identity(leaf) == ("a.b@example", "tab-2")
    assert re.fullmatch("[0-9a-f]+", serial_text(leaf))
    assert int(serial_text(leaf), 16) == leaf.serial_number


def make_leaf(authority: ca.Authority, *entries: x509.GeneralName) -> x509.Certificate:
    from vpnd.pki import profiles
    from vpnd.pki.certificates import issue

    key = keys.generate("p256").public_key()
    return issue(profiles.CLIENT, "x", key, entries, issuer=authority.issuer, now=NOW)


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["pyvpn:user/alice"],
        ["pyvpn:user/alice/client/laptop/x"],
        ["pyvpn:user/../client/laptop"],
        ["pyvpn:user/Alice/client/laptop"],
        ["PYVPN:user/alice/client/laptop"],
        ["pyvpn:user/alice/client/laptop\n"],
        ["x pyvpn:user/alice/client/laptop"],
        ["pyvpn:user/alice/client/laptop", "pyvpn:user/root/client/laptop"],
        ["pyvpn:user/alice/client/laptop", "https://example.org"],
        [f"pyvpn:user/{'a' * 65}/client/laptop"],
    ],
)
def test_identity_is_one_uri_or_none(authority: ca.Authority, uris: list[str]) -> None:
    """Two identities in one certificate would let its holder choose."""
    leaf = make_leaf(authority, *map(x509.UniformResourceIdentifier, uris))
    with pytest.raises(Malformed):
        parse_client_identity(leaf)


def test_server_certificate_is_no_client(authority: ca.Authority) -> None:
    """A server's key must not log in as anyone."""
    request = keys.request(keys.generate("p256"))
    chain = authority.sign_server(request, ["vpn.example.org", "2001:db8::1"], NOW)
    leaf = load_certificates(chain)[0]
    assert server_names(leaf) == ("vpn.example.org", "2001:db8::1")
    with pytest.raises(Malformed):
        parse_client_identity(leaf)


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a/b", "A", "ä", "a b", "a\n", "a" * 65])
def test_names_that_could_be_paths_are_refused(name: str) -> None:
    """A user name becomes a file name sooner or later."""
    with pytest.raises(ConfigError, match="begin with a-z"):
        names.check_name(name, "user")


def test_altered_request_is_refused(authority: ca.Authority) -> None:
    """Nobody gets a certificate for somebody else's key."""
    made = x509.load_pem_x509_csr(keys.request(keys.generate("p256")))
    der = bytearray(made.public_bytes(Encoding.DER))
    der[-1] ^= 1
    try:
        altered = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    except ValueError:
        altered = b"junk"
    for request in (altered, b"junk", b""):
        with pytest.raises(ConfigError, match="certificate request"):
            authority.sign_client(request, "alice", "laptop", NOW, foreign=False)


def test_weak_keys_are_not_certified(authority: ca.Authority) -> None:
    """The certificate is the login: its key has to be worth it."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    for key in (rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP256K1())):
        with pytest.raises(ConfigError, match="the key is neither"):
            authority.sign_client(keys.request(key), "alice", "laptop", NOW, foreign=False)


def test_chain_file_that_holds_none_is_explained(tmp_path: Path) -> None:
    """The operator is told which file, not which line of ours."""
    with pytest.raises(ConfigError, match="no such file; make the PKI with"):
        load_chain(tmp_path / "server.crt")
    (tmp_path / "server.crt").write_text("junk")
    with pytest.raises(ConfigError, match="holds no certificate"):
        load_chain(tmp_path / "server.crt")
