"""What was changed for each interface, on disk before it is changed.

One file an interface, replaced whole and fsynced, in a directory only root may enter.  A helper
that was killed finds here what to keep for its caller, or to undo.  Order of undoing: the kernel
settings first (nothing is forwarded any more), then the firewall, then the interface.
"""

import dataclasses
import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helper.messages import Refused

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Claim:
    """A kernel setting that was `old` and that we made `new`.

    `links` holds the old values of the settings that the kernel changes along with it.
    """

    old: str
    new: str
    links: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Journal:
    """All that has been changed for `interface`, which belongs to `uid`."""

    interface: str
    uid: int
    link_index: int | None = None
    firewall: str | None = None  # the backend whose rules are, or may be, in place
    filter: dict[str, Any] | None = None  # the fields of the SetFirewall in force
    claims: dict[str, Claim] = field(default_factory=dict)  # by path below /proc/sys, in order
    inner: list[str] = field(default_factory=list)  # addresses for which only the tunnel brings


class JournalDirectory:
    """The journals of one helper.  Locked: two helpers cannot share it."""

    def __init__(self, path: Path) -> None:
        """Make or open the directory; raise Refused when it is not safe, or in use."""
        self.path = path
        path.mkdir(mode=0o700, exist_ok=True)
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        status = os.fstat(self._fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise Refused(f"{path}: must be root's and closed to others: chmod 0700 {path}")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Refused(f"{path}: in use by another pyvpn-helper; stop that first") from exc

    def close(self) -> None:
        """Let another helper have the directory; the journals stay."""
        os.close(self._fd)

    def load(self) -> dict[str, Journal]:
        """Return the journals of this boot by interface; raise Refused for an unreadable one."""
        found = {}
        for path in sorted(self.path.glob("pyvpn*.json")):
            try:
                stored = json.loads(path.read_text())
                if stored.pop("boot") == BOOT_ID.read_text():  # else it ended with that boot
                    claims = {key: Claim(**claim) for key, claim in stored.pop("claims").items()}
                    found[path.stem] = Journal(**stored, claims=claims)
            except (ValueError, TypeError, KeyError, AttributeError) as exc:
                raise Refused(f"{path}: unreadable ({exc}); remove it and reboot") from exc
        return found

    def save(self, journal: Journal) -> None:
        """Store `journal`; it is on disk when this returns."""
        stored = {**dataclasses.asdict(journal), "boot": BOOT_ID.read_text()}
        new = self.path / f"{journal.interface}.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump(stored, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path / f"{journal.interface}.json")
        os.fsync(self._fd)

    def remove(self, interface: str) -> None:
        """Forget `interface`: nothing of it is left on the host."""
        (self.path / f"{interface}.json").unlink(missing_ok=True)
        os.fsync(self._fd)
