"""PKCS #12 bundles, opened by OpenSSL and, where it is installed, GnuTLS."""

import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vpnd.pki import ca, keys
from vpnd.pki.bundle import encode_bundle, new_password
from vpnd.pki.reading import load_certificates

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def make_bundle(tmp_path: Path, password: str) -> Path:
    authority = ca.create(tmp_path, "p256", NOW)
    key = keys.generate("p256")
    pem = authority.sign_client(keys.request(key), "alice", "laptop", NOW, foreign=True)
    leaf, issuing = load_certificates(pem)
    path = tmp_path / "laptop.p12"
    path.write_bytes(encode_bundle("laptop", key, leaf, [issuing, authority.root], password))
    return path


def test_openssl_opens_the_bundle_and_finds_aes(tmp_path: Path) -> None:
    """RC2 and 3DES, the old defaults, are refused by today's libraries."""
    path = make_bundle(tmp_path, "a-b")
    shown = subprocess.run(
        ["openssl", "pkcs12", "-in", path, "-passin", "pass:a-b", "-nodes", "-info"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.stdout.count("BEGIN CERTIFICATE") == 3
    assert shown.stdout.count("BEGIN PRIVATE KEY") == 1
    assert shown.stderr.count("PBES2, PBKDF2, AES-256-CBC") == 2
    assert "MAC: sha256" in shown.stderr


def test_wrong_password_opens_nothing(tmp_path: Path) -> None:
    """The file may lie in a mailbox."""
    path = make_bundle(tmp_path, "a-b")
    command = ["openssl", "pkcs12", "-in", path, "-passin", "pass:a-c", "-nodes"]
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


@pytest.mark.skipif(not shutil.which("certtool"), reason="certtool is not installed")
def test_gnutls_opens_the_bundle(tmp_path: Path) -> None:
    """Debian's openconnect is built with GnuTLS."""
    path = make_bundle(tmp_path, "a-b")
    shown = subprocess.run(
        ["certtool", "--inder", "--p12-info", "--infile", path, "--password", "a-b"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.stdout.count("BEGIN CERTIFICATE") == 3


def test_passwords_are_random_and_easy_to_type() -> None:
    """100 bits, and no letter that is taken for a digit."""
    passwords = {new_password() for _ in range(100)}
    assert len(passwords) == 100
    assert all(re.fullmatch(r"([a-km-np-z2-9]{4}-){4}[a-km-np-z2-9]{4}", p) for p in passwords)
