"""The server's own keys and certificates, in the state directory of its user.

server.key       the key in use            server.crt  its certificate and the issuing CA's
server-next.key  the key that follows it   server-next.pub  its public half, for the pin
ca.crt           root and issuing CA, to check clients against

When the next key comes into use, the files change one after the other:

    server-after.key  made        server.crt  of the next key     server-next.key ─► server.key
    server-next.pub               server-after.key ─► server-next.key

Whoever is interrupted is completed, or taken back if server.crt was not yet changed (`complete`).
"""

from pathlib import Path

from vpnd.errors import ConfigError
from vpnd.pki.certificates import load_chain
from vpnd.pki.files import (
    PRIVATE,
    PUBLIC,
    replace,
    sync_directory,
    write_all_new,
    write_new,
)
from vpnd.pki.keys import (
    KeyType,
    encode_key,
    encode_public_key,
    generate,
    is_same_key,
    load_key,
    request,
)

KEY_FILES = ("server.key", "server-next.key", "server-next.pub")
AFTER = "server-after.key"
CERTIFICATE_FILES = ("server.crt", "ca.crt")
FILES = KEY_FILES + CERTIFICATE_FILES


def make_keys(directory: Path, key_type: KeyType) -> bytes:
    """Write both key pairs, all files or none; return a certificate request for the first.

    Raises FileExistsError where there is one of them already.
    """
    key, following = generate(key_type), generate(key_type)
    write_all_new(
        {
            directory / "server.key": (encode_key(key), PRIVATE),
            directory / "server-next.key": (encode_key(following), PRIVATE),
            directory / "server-next.pub": (encode_public_key(following.public_key()), PUBLIC),
        }
    )
    return request(key)


def install_certificates(directory: Path, chain: bytes, ca: bytes) -> None:
    """Write the server's certificate chain and the CA's certificates, both or none.

    Raises FileExistsError where there is one of them already.
    """
    write_all_new({directory / "ca.crt": (ca, PUBLIC), directory / "server.crt": (chain, PUBLIC)})


def replace_certificates(directory: Path, chain: bytes, ca: bytes) -> None:
    """Put a renewed certificate, and those of the CA, in the place of the old ones.

    Each file changes in one step, and either order of old and new ones fits together: the
    key stays, and so do the CA's names and keys.
    """
    replace(directory / "ca.crt", ca, PUBLIC)
    replace(directory / "server.crt", chain, PUBLIC)


def remove(directory: Path) -> None:
    """Remove all of these files: the way back from an installation that failed half-way."""
    for name in FILES:
        (directory / name).unlink(missing_ok=True)


def next_request(directory: Path) -> bytes:
    """Return a certificate request for the key that follows."""
    return request(load_key(directory / "server-next.key"))


def rotate(directory: Path, chain: bytes, key_type: KeyType) -> None:
    """Put the next key in use, with its certificate, and another one in its place."""
    complete(directory)
    write_new(directory / AFTER, encode_key(generate(key_type)))
    replace(directory / "server.crt", chain, PUBLIC)
    complete(directory)


def complete(directory: Path) -> None:
    """Complete a change of keys that was interrupted, or take it back.  Raises ConfigError."""
    after, following = directory / AFTER, directory / "server-next.key"
    if not after.exists():
        return
    in_use = load_chain(directory / "server.crt")[0].public_key()
    if following.exists() and is_same_key(load_key(following).public_key(), in_use):
        following.rename(directory / "server.key")
    if not is_same_key(load_key(directory / "server.key").public_key(), in_use):
        raise ConfigError(
            f"{directory}: server.crt fits neither server.key nor server-next.key; put the three "
            "back from a copy"
        )
    if following.exists():  # server.crt was not changed yet
        after.unlink()
        return
    replace(directory / "server-next.pub", encode_public_key(load_key(after).public_key()), PUBLIC)
    after.rename(following)
    sync_directory(directory)
