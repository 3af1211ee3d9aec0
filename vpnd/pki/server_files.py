"""The server's own keys and certificates, in the state directory of its user.

server.key       the key in use            server.crt  its certificate and the issuing CA's
server-next.key  the key that follows it   server-next.pub  its public half, for the pin
ca.crt           root and issuing CA, to check clients against
"""

from pathlib import Path

from vpnd.pki.files import PRIVATE, PUBLIC, replace, write_all_new
from vpnd.pki.keys import KeyType, encode_key, encode_public_key, generate, request

KEY_FILES = ("server.key", "server-next.key", "server-next.pub")
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
