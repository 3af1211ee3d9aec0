"""Whether a certificate may take the place of the one that a client has.

A client gets its next certificate from its server.  What it takes must be what it would have
asked for, or a server that was taken over, or one that is wrong, could lock it out elsewhere.
"""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509

from vpnd.errors import ConfigError, Malformed
from vpnd.pki.certificates import parse_client_identity
from vpnd.pki.keys import is_same_key
from vpnd.pki.reading import is_issued_by, not_after, not_before


def check_successor(
    chain: Sequence[x509.Certificate],
    before: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate],
    now: datetime,
) -> None:
    """Raise ConfigError unless `chain`, the client's own first, may follow the chain `before`.

    `trusted` holds the CA certificates that servers are checked against: if `before` leads to
    one of them, `chain` must.
    """
    if not chain:
        raise ConfigError("there is no certificate in it")
    leaf, *above = chain
    try:
        same_name = parse_client_identity(leaf) == parse_client_identity(before[0])
        same_key = is_same_key(leaf.public_key(), before[0].public_key())
    except (Malformed, ValueError):
        same_name = same_key = False
    if not same_key or not same_name:
        raise ConfigError("it is for another client, or for another key")
    if not_after(leaf) <= not_after(before[0]):
        raise ConfigError("it ends no later than the one in use")
    if not not_before(leaf) <= now < not_after(leaf):
        raise ConfigError("it is not valid now; is this host's clock right?")
    for certificate, issuer in zip(chain, above, strict=False):
        if not is_issued_by(certificate, issuer):
            raise ConfigError("its chain is not one")
    if _leads_to(before, trusted) and not _leads_to(chain, trusted):
        raise ConfigError("it does not lead to the CA of the one in use")


def _leads_to(chain: Sequence[x509.Certificate], trusted: Sequence[x509.Certificate]) -> bool:
    return any(chain[-1] == ca or is_issued_by(chain[-1], ca) for ca in trusted)
