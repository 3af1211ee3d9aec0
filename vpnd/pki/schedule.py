"""When certificates are renewed, and what to say of those that were not.

    |<------------------- life of a certificate ------------------->|
    server, client     .......................renewed at 2/3.........|
    issuing CA         ............renewed at 1/2....................|

Every renewal leaves weeks for whoever has to notice that it does not work.  The issuing CA
comes earlier, because no leaf outlives it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from vpnd.pki.certificates import SKEW
from vpnd.pki.reading import not_after, not_before

LEAF_SHARE, ISSUING_SHARE = 2 / 3, 1 / 2
ALERT_BEFORE = timedelta(days=14)  # what ends so soon should have been renewed long ago
ROOT_ALERT_BEFORE = timedelta(days=365)  # a new root means new profiles for everybody
GAIN = timedelta(days=1)  # a renewal that brings less is none


@dataclass(frozen=True, slots=True)
class Life:
    """When a certificate begins, is to be renewed, and ends."""

    begin: datetime
    renewal: datetime
    end: datetime

    @classmethod
    def of(cls, certificate: x509.Certificate, share: float) -> "Life":
        """Return the life of a certificate that is renewed after `share` of it."""
        begin, end = not_before(certificate) + SKEW, not_after(certificate)
        return cls(begin, begin + (end - begin) * share, end)

    def is_due(self, now: datetime) -> bool:
        """Return whether it is time to renew."""
        return now >= self.renewal

    def complaint(self, what: str, now: datetime) -> str:
        """Return what is wrong with the certificate of `what`, "" if nothing is."""
        if now < self.begin - SKEW:
            return f"{what} is valid from {self.begin:%Y-%m-%d} only: set this host's clock"
        if now >= self.end:
            return f"{what} ended on {self.end:%Y-%m-%d}"
        if now >= self.end - ALERT_BEFORE:
            return f"{what} ends on {self.end:%Y-%m-%d}"
        return ""


def server_life(certificate: x509.Certificate) -> Life:
    """Return the life of a server's or client's certificate."""
    return Life.of(certificate, LEAF_SHARE)


def issuing_life(certificate: x509.Certificate) -> Life:
    """Return the life of an issuing CA."""
    return Life.of(certificate, ISSUING_SHARE)
