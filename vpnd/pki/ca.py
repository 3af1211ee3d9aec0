"""The certificate authority: root CA, issuing CA, and what they sign.

Its directory (0700, a user of its own) holds

    root.key  root.crt  issuing.key  issuing.crt  issued.jsonl

`root.key` is needed only for a new issuing CA and may be exported and removed.  Nothing here
overwrites a key.  Callers run this as the CA's user: see `vpnd.pki.child`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from vpnd.errors import ConfigError
from vpnd.pki import profiles
from vpnd.pki.certificates import (
    Issuer,
    encode_chain,
    issue,
    load_chain,
    self_sign,
    server_alternative_names,
    subject_name,
)
from vpnd.pki.files import PRIVATE, PUBLIC, replace, write_all_new
from vpnd.pki.keys import (
    KeyType,
    PrivateKey,
    encode_key,
    generate,
    is_same_key,
    load_key,
    requested_key,
)
from vpnd.pki.names import identity_uri
from vpnd.pki.reading import is_issued_by

FILES = ("root.key", "root.crt", "issuing.key", "issuing.crt")


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that can sign leaves."""

    root: x509.Certificate
    issuer: Issuer

    @property
    def ca_pem(self) -> bytes:
        """The root and the issuing certificate: what peers are checked against."""
        return encode_chain([self.root, self.issuer.certificate])

    def sign_server(self, request: bytes, names: Sequence[str], now: datetime) -> bytes:
        """Return a server's certificate with the issuing one behind it, PEM.

        `names` are host names and addresses, the one that profiles use first.  Raises
        ConfigError for a request that cannot be used or an authority that has ended.
        """
        key = requested_key(request)
        alternatives = server_alternative_names(names)
        leaf = issue(profiles.SERVER, names[0], key, alternatives, issuer=self.issuer, now=now)
        return encode_chain([leaf, self.issuer.certificate])

    def sign_client(
        self, request: bytes, user: str, client: str, now: datetime, *, foreign: bool
    ) -> bytes:
        """Return a client's certificate with the issuing one behind it, PEM.

        `foreign` clients cannot renew by themselves and get a long life.  Raises ConfigError.
        """
        profile = profiles.FOREIGN_CLIENT if foreign else profiles.CLIENT
        names = [x509.UniformResourceIdentifier(identity_uri(user, client))]
        key = requested_key(request)
        leaf = issue(profile, client, key, names, issuer=self.issuer, now=now)
        return encode_chain([leaf, self.issuer.certificate])

    def has_issued(self, certificate: x509.Certificate) -> bool:
        """Return whether a certificate was signed by the issuing CA's key."""
        return is_issued_by(certificate, self.issuer.certificate)


def create(directory: Path, key_type: KeyType, now: datetime) -> Authority:
    """Make a new authority and write its files, all or none.

    Raises FileExistsError where there is one already.
    """
    root_key, key = generate(key_type), generate(key_type)
    root = self_sign(profiles.ROOT, f"pyvpn root CA {now:%Y-%m-%d}", root_key, now)
    certificate = issue(
        profiles.ISSUING,
        f"pyvpn issuing CA {now:%Y-%m-%d}",
        key.public_key(),
        (),
        issuer=Issuer(root, root_key),
        now=now,
    )
    write_all_new(
        {
            directory / "root.key": (encode_key(root_key), PRIVATE),
            directory / "root.crt": (encode_chain([root]), PUBLIC),
            directory / "issuing.key": (encode_key(key), PRIVATE),
            directory / "issuing.crt": (encode_chain([certificate]), PUBLIC),
        }
    )
    return Authority(root, Issuer(certificate, key))


def load(directory: Path) -> Authority:
    """Return the authority in a directory.  Raises ConfigError."""
    root = load_chain(directory / "root.crt")[0]
    certificate = load_chain(directory / "issuing.crt")[0]
    key = load_key(directory / "issuing.key")
    if not is_same_key(key.public_key(), certificate.public_key()):
        raise ConfigError(
            f"{directory}: issuing.key does not belong to issuing.crt; restore the right pair"
        )
    return Authority(root, Issuer(certificate, key))


def renew_issuing(directory: Path, now: datetime) -> Authority:
    """Give the issuing CA a certificate with a new life, of the same name and key.

    What the earlier certificate has signed stays valid under either.  Raises ConfigError, also
    where the root's key has been taken off this machine.
    """
    before = load(directory)
    root = Issuer(before.root, _root_key(directory))
    certificate = issue(
        profiles.ISSUING,
        subject_name(before.issuer.certificate),
        before.issuer.key.public_key(),
        (),
        issuer=root,
        now=now,
    )
    replace(directory / "issuing.crt", encode_chain([certificate]), PUBLIC)
    return Authority(before.root, Issuer(certificate, before.issuer.key))


def _root_key(directory: Path) -> PrivateKey:
    path = directory / "root.key"
    if not path.exists():
        raise ConfigError(
            f"{path}: is not here, and the issuing CA cannot be renewed without it; bring it "
            "back, run vpnctl pki renew, and take it away again"
        )
    return load_key(path)
