"""Login by client certificate: TLS proved the key, the store says whose it is."""

from vpnd.auth.contract import Accepted, Outcome, Rejected, Request
from vpnd.auth.standing import certificate_refusal, shown
from vpnd.store.contract import Store

REFUSAL = "This certificate is not accepted."  # whatever the reason: it is for the log


class CertificateMethod:
    """A certificate that the store knows suffices; one that it does not is refused."""

    name = "certificate"

    def __init__(self, store: Store) -> None:
        self._store = store

    async def start(self, request: Request) -> Outcome | None:
        certificate = request.certificate
        if certificate is None:
            return None
        reason = certificate_refusal(self._store, certificate, request.now)
        user = None if certificate.user is None else shown(certificate.user)
        if reason is not None:
            return Rejected(f"{reason} (serial {shown(certificate.serial)})", REFUSAL, user)
        assert user is not None, "certificate_refusal lets no nameless certificate pass"
        return Accepted(user, certificate.client, certificate.serial)

    async def answer(self, state: str | None, request: Request) -> Outcome:  # noqa: ARG002
        """Refuse: this method asks nothing, so there is nothing to answer."""
        return Rejected("answer to no question", REFUSAL, None)
