"""Password hashes: scrypt (RFC 7914) by OpenSSL, in the PHC string format.

    $scrypt$ln=15,r=8,p=3$SALT$HASH      salt and hash in base64 without padding

Hashing takes a third of a second, by intent; the caller keeps it off the loop.
"""

import hashlib
import hmac
import re
import secrets
import unicodedata
from base64 import b64decode, b64encode
from dataclasses import dataclass

from vpnd.errors import AuthError

MAX_PASSWORD = 256  # characters; what a login form carries at most
SALT_SIZE = 16
HASH_SIZE = 32
FORMAT = re.compile(
    r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)"
)
MAX_MEMORY = 256 * 2**20  # bytes; a damaged store must not eat the machine


@dataclass(frozen=True, slots=True)
class Cost:
    """scrypt's parameters; memory is 128 * r * 2**ln bytes (32 MiB), p the number of rounds.

    The default is one of the equivalent settings that OWASP recommends.
    """

    ln: int = 15
    r: int = 8
    p: int = 3

    @property
    def memory(self) -> int:
        return 128 * self.r << self.ln


@dataclass(frozen=True, slots=True, repr=False)
class PasswordHash:
    """A hash and all it takes to make it again."""

    cost: Cost
    salt: bytes
    digest: bytes

    def __str__(self) -> str:
        return (
            f"$scrypt$ln={self.cost.ln},r={self.cost.r},p={self.cost.p}"
            f"${_encode(self.salt)}${_encode(self.digest)}"
        )


def hash_password(password: str, cost: Cost) -> PasswordHash:
    """Return a fresh hash with a random salt."""
    salt = secrets.token_bytes(SALT_SIZE)
    return PasswordHash(cost, salt, _derive(password, salt, cost))


def matches(password: str, expected: PasswordHash) -> bool:
    """Return True for the right password; takes equally long for any other."""
    digest = _derive(password[:MAX_PASSWORD], expected.salt, expected.cost)
    return hmac.compare_digest(digest, expected.digest) and len(password) <= MAX_PASSWORD


def parse_hash(text: str) -> PasswordHash:
    """Read what `str(PasswordHash)` wrote.  Raises AuthError."""
    found = FORMAT.fullmatch(text)
    if found is None:
        raise AuthError("the stored password hash is damaged; set the password again")
    cost = Cost(*(int(number) for number in found.groups()[:3]))
    try:
        salt, digest = (_decode(part) for part in found.groups()[3:])
    except ValueError:
        salt = digest = b""
    if len(digest) != HASH_SIZE or not cost.ln or not cost.p or not 0 < cost.memory <= MAX_MEMORY:
        raise AuthError("the stored password hash is damaged; set the password again")
    return PasswordHash(cost, salt, digest)


def check_new_password(password: str) -> None:
    """Raise AuthError for a password that no login form could send."""
    if not password:
        raise AuthError("the password is empty; choose one with at least one character")
    if len(password) > MAX_PASSWORD:
        raise AuthError(f"the password is too long; use at most {MAX_PASSWORD} characters")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in password):
        raise AuthError("the password has control characters; leave them out")


def _derive(password: str, salt: bytes, cost: Cost) -> bytes:
    # One password is typed in two encodings of the same letters: NFC, as RFC 8265 4.2.2 says.
    secret = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
    n, memory = 1 << cost.ln, cost.memory + 2**20  # OpenSSL counts its own part too
    return hashlib.scrypt(
        secret, salt=salt, n=n, r=cost.r, p=cost.p, maxmem=memory, dklen=HASH_SIZE
    )


def _encode(raw: bytes) -> str:
    return b64encode(raw).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return b64decode(text + "=" * (-len(text) % 4), validate=True)
