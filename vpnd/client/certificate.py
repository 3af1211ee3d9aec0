"""The client's certificate: the profile's, or the one that has followed it.

The profile belongs to root.  What the server has renewed is kept in the client's own state
directory, and is shown instead as long as it fits the profile: who puts a new profile in
place has the last word.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from vpnd import log
from vpnd.config.profile_options import ClientConfig
from vpnd.errors import ConfigError
from vpnd.pki.files import replace
from vpnd.pki.reading import load_certificates, not_after
from vpnd.pki.succession import check_successor

FILE = "certificate.pem"
MAX_FILE = 64 * 1024  # bytes; a chain with two RSA certificates has 4,500
SOON = timedelta(days=14)  # renewed at 30: what ends so soon needs somebody to look


class ClientCertificate:
    """What is shown to servers, and where its successor is kept."""

    renewed_pem: str
    """The certificate that has followed the profile's, with its chain; "" if none has."""

    def __init__(
        self,
        config: ClientConfig,
        state_dir: Path,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pem = config.tls.certificate
        self._trusted = _certificates(config.tls.ca)
        self._path = state_dir / FILE
        self._now = now
        self.renewed_pem = self._load() if self._pem else ""
        self._warn()

    @property
    def not_after(self) -> int | None:
        """The end of the certificate that is shown, in Unix seconds; None without one."""
        found = _certificates(self.renewed_pem or self._pem)
        return int(not_after(found[0]).timestamp()) if found else None

    def can_keep(self) -> bool:
        """Return whether a successor has a place, which is made where its parent is ours."""
        folder = self._path.parent
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            return False
        return bool(self._pem) and os.access(folder, os.W_OK | os.X_OK)

    def keep(self, pem: str) -> str:
        """Keep a successor; return why it was not, or ""."""
        try:
            self._check(pem)
            replace(self._path, pem.encode())
        except ConfigError as exc:
            return str(exc)
        except OSError as exc:
            return f"{self._path}: cannot be written ({exc.strerror})"
        self.renewed_pem = pem
        log.event("certificate renewed", certificate=f"valid until {self._day()}")
        return ""

    def _load(self) -> str:
        try:
            with self._path.open("rb") as file:
                pem = file.read(MAX_FILE).decode("ascii", "replace")
        except OSError:
            return ""
        try:
            self._check(pem)
        except ConfigError as exc:
            log.event("renewed certificate left aside", name=str(self._path), reason=str(exc))
            return ""
        return pem

    def _check(self, pem: str) -> None:
        check_successor(_certificates(pem), _certificates(self._pem), self._trusted, self._now())

    def _day(self) -> str:
        return f"{datetime.fromtimestamp(self.not_after or 0, UTC):%Y-%m-%d}"

    def _warn(self) -> None:
        end = self.not_after
        if end is None or self._now() < datetime.fromtimestamp(end, UTC) - SOON:
            return
        ended = self._now().timestamp() >= end
        log.warning(
            "the certificate has ended: ask for a new profile"
            if ended
            else "the certificate ends soon, and was not renewed so far",
            certificate=f"valid until {self._day()}",
            reason="" if self.can_keep() else f"{self._path.parent} cannot be written",
        )


def _certificates(pem: str) -> list[x509.Certificate]:
    """Return certificates; what cannot be read is none."""
    try:
        return load_certificates(pem.encode())
    except ValueError:
        return []
