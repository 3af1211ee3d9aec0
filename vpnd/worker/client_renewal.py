"""The client's certificate, and how the next one comes before it ends.

    30 days before the end ─► a CONNECT with a request ─► a later one with the certificate
                           ─► the master keeps it ─► a connection that shows it

Each step is a rotation of the session's keys, or a reconnect that comes anyway.  The key stays
what it is: the request is signed with it, which proves to the authority, past everybody
between, that the holder of the certificate asks.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vpnd import log
from vpnd.errors import ConfigError
from vpnd.pki import keys
from vpnd.pki.certificates import encode_chain
from vpnd.pki.reading import load_certificates, not_after
from vpnd.pki.succession import check_successor
from vpnd.wire.params_client import ServerParams
from vpnd.worker.messages import (
    CertificateKept,
    CertificateRenewed,
    Message,
    StartClient,
)

BEFORE = timedelta(days=30)  # a third of its life
WAITS = (5.0, 20.0, 300.0, 3600.0, 21600.0)  # seconds between two contacts, the last for good


class ClientRenewal:
    """Which certificate is shown, and what a CONNECT asks for beside the tunnel."""

    def __init__(
        self,
        settings: StartClient,
        ask: Callable[[Message], Awaitable[Message]],
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wall` is compared with certificates, `clock` counts the pauses."""
        self._key_pem = settings.key_pem
        self._may_renew = settings.renew and bool(settings.certificate_pem)
        self._trusted = _trusted(settings) if self._may_renew else []
        self._ask = ask
        self._wall, self._clock = wall, clock
        self._other_pem = settings.certificate_pem if settings.renewed_pem else ""
        self._has_swapped = False
        self._is_new = False
        self._tries = 0
        self._not_before = 0.0
        self._request = b""
        self._show(settings.renewed_pem or settings.certificate_pem)

    def _show(self, pem: str) -> None:
        self.shown_pem = pem
        """The certificate in use and its chain; "" without one."""
        self._chain = load_certificates(pem.encode()) if self._may_renew else []

    def request(self) -> bytes:
        """Return the request that belongs into a CONNECT now, b"" for none."""
        if not self._is_wanted():
            return b""
        if not self._request:
            key = keys.parse_key(self._key_pem.encode(), "tls.key")
            request = x509.load_pem_x509_csr(keys.request(key))
            self._request = request.public_bytes(Encoding.DER)
        return self._request

    def _is_wanted(self) -> bool:
        """Return whether the certificate ends soon and there is no other yet."""
        if not self._chain or self._is_new:
            return False
        return self._now() >= not_after(self._chain[0]) - BEFORE

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall(), UTC)

    def take_turn(self) -> bool:
        """Return whether another contact with the server would get us on; then wait for it."""
        if self._clock() < self._not_before or not (self._is_new or self._is_wanted()):
            return False
        self._tries += 1
        self._put_off()
        return True

    def _put_off(self) -> None:
        self._not_before = self._clock() + WAITS[min(self._tries, len(WAITS) - 1)]

    async def contact(self, params: ServerParams) -> bool:
        """A CONNECT was granted: take what came with it; return whether to show it from now on."""
        self._has_swapped = False
        if self._is_new:  # the connection has shown it
            self._is_new, self._tries, self._other_pem = False, 0, ""
        self._put_off()
        if not params.renewed or not self._is_wanted():
            return False
        try:
            pem = self._checked(params.renewed)
        except ConfigError as exc:
            log.error("the server's new certificate is not taken", reason=str(exc))
            return False
        reply = await self._ask(CertificateRenewed(pem))
        refusal = reply.refusal if isinstance(reply, CertificateKept) else "no answer"
        if refusal:
            log.error("the new certificate is not used", reason=refusal)
            return False
        self._other_pem = self.shown_pem
        self._show(pem)
        self._is_new, self._tries = True, 0
        self._put_off()
        return True

    def _checked(self, found: tuple[bytes, ...]) -> str:
        """Return the chain in PEM.  Raises ConfigError."""
        try:
            chain = [x509.load_der_x509_certificate(each) for each in found]
        except ValueError:
            raise ConfigError("it cannot be read") from None
        check_successor(chain, self._chain, self._trusted, self._now())
        return encode_chain(chain).decode()

    def swap(self) -> bool:
        """The server refuses this certificate: return whether there is another one to try."""
        if not self._other_pem or self._has_swapped:
            return False
        other, self._other_pem = self._other_pem, self.shown_pem
        self._show(other)
        self._has_swapped, self._is_new = True, False
        return True


def _trusted(settings: StartClient) -> list[x509.Certificate]:
    """Return the CA certificates of the profile's servers."""
    pems = {remote.ca_pem for remote in settings.remotes if remote.ca_pem}
    return [each for pem in pems for each in load_certificates(pem.encode())]
