"""Keys on disk: private, whole, never overwritten."""

import base64
import hashlib
import stat
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vpnd.errors import ConfigError
from vpnd.pki import ca, files, keys, pins, server_files

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def modes(directory: Path) -> dict[str, int]:
    return {p.name: stat.S_IMODE(p.lstat().st_mode) for p in directory.iterdir()}


def test_keys_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    """Certificates are public, keys are not, and no temporary file stays."""
    ca.create(tmp_path, "p256", NOW)
    assert modes(tmp_path) == {
        "root.key": 0o600,
        "root.crt": 0o644,
        "issuing.key": 0o600,
        "issuing.crt": 0o644,
    }


def test_server_files_have_their_modes(tmp_path: Path) -> None:
    """Both private keys are private; the next key's public half is for the pin."""
    server_files.make_keys(tmp_path, "p256")
    server_files.install_certificates(tmp_path, b"chain", b"ca")
    assert modes(tmp_path) == {
        "server.key": 0o600,
        "server-next.key": 0o600,
        "server-next.pub": 0o644,
        "server.crt": 0o644,
        "ca.crt": 0o644,
    }


def test_second_authority_does_not_touch_the_first(tmp_path: Path) -> None:
    """Overwriting a root key would lock out everyone."""
    ca.create(tmp_path, "p256", NOW)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FileExistsError):
        ca.create(tmp_path, "p256", NOW)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_single_old_file_leaves_nothing_half_made(tmp_path: Path) -> None:
    """All or none: also when the last of four files is in the way."""
    (tmp_path / "issuing.crt").write_text("mine")
    with pytest.raises(FileExistsError):
        ca.create(tmp_path, "p256", NOW)
    assert modes(tmp_path).keys() == {"issuing.crt"}
    assert (tmp_path / "issuing.crt").read_text() == "mine"


def test_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    """A planted link must not make us write elsewhere."""
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "a", b"secret")
    files.replace(tmp_path / "a", b"secret")
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "a").read_bytes() == b"secret"
    assert modes(tmp_path) == {"a": 0o600}


def test_authority_comes_back_without_the_root_key(tmp_path: Path) -> None:
    """The root key may be kept off the machine."""
    made = ca.create(tmp_path, "p384", NOW)
    (tmp_path / "root.key").unlink()
    loaded = ca.load(tmp_path)
    assert loaded.ca_pem == made.ca_pem
    request = keys.request(keys.generate("p256"))
    assert loaded.sign_client(request, "alice", "alice", NOW, foreign=False)


def test_authority_with_the_wrong_key_is_refused(tmp_path: Path) -> None:
    """A half-restored backup is found before it signs anything."""
    ca.create(tmp_path, "p256", NOW)
    files.replace(tmp_path / "issuing.key", keys.encode_key(keys.generate("p256")))
    with pytest.raises(ConfigError, match="does not belong to"):
        ca.load(tmp_path)


def test_open_or_broken_key_files_are_explained(tmp_path: Path) -> None:
    """A key that others could read is no secret any more."""
    path = tmp_path / "a.key"
    with pytest.raises(ConfigError, match="cannot be read"):
        keys.load_key(path)
    files.write_new(path, keys.encode_key(keys.generate("p256")), 0o640)
    with pytest.raises(ConfigError, match="others can read this key; chmod 600"):
        keys.load_key(path)
    files.replace(path, b"junk")
    with pytest.raises(ConfigError, match="not an unencrypted private key"):
        keys.load_key(path)


def test_pins_are_what_openssl_computes(tmp_path: Path) -> None:
    """Stock openconnect must accept the line we print."""
    authority = ca.create(tmp_path, "p256", NOW)
    request = server_files.make_keys(tmp_path, "p256")
    chain = authority.sign_server(request, ["vpn.example.org"], NOW)
    server_files.install_certificates(tmp_path, chain, authority.ca_pem)
    expected = []
    for name in ("server.key", "server-next.key"):
        der = subprocess.run(
            ["openssl", "pkey", "-in", tmp_path / name, "-pubout", "-outform", "der"],
            check=True,
            capture_output=True,
        ).stdout
        digest = base64.b64encode(hashlib.sha256(der).digest()).decode()
        expected.append(f"pin-sha256:{digest}")
    found = pins.server_pins(tmp_path / "server.crt", tmp_path / "server-next.pub")
    assert list(found) == expected
    assert pins.server_pins(tmp_path / "server.crt", tmp_path / "absent") == found[:1]


def test_secrets_do_not_show(tmp_path: Path) -> None:
    """A traceback or log line must not hold a key."""
    assert "key=" not in repr(ca.create(tmp_path, "p256", NOW).issuer)
