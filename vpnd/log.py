"""Log lines: one event a person acts on, its fields behind it as key=value.

    INFO session opened: user=alice client=phone address=203.0.113.7 inner=10.8.0.2

Lines go to standard error; under systemd each carries its priority (sd-daemon(3)).  Only
the field names below may be used, so that nobody logs a secret by a new name.
"""

import logging
import os
import sys

FIELDS = frozenset(
    {
        "address",
        "attempt",
        "backend",
        "certificate",
        "channel",
        "cipher",
        "client",
        "count",
        "error",
        "exit_status",
        "inner",
        "interface",
        "listen",
        "method",
        "name",
        "pid",
        "reason",
        "role",
        "rx_bytes",
        "session",
        "state",
        "tx_bytes",
        "user",
        "version",
        "worker",
    }
)
MAX_VALUE = 256  # characters of one value; the rest is cut
_PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
_logger = logging.getLogger("pyvpn")


class _Formatter(logging.Formatter):
    def __init__(self, *, systemd: bool) -> None:
        super().__init__("%(message)s" if systemd else "%(asctime)s %(levelname)s %(message)s")
        self._systemd = systemd

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{text}" if self._systemd else text


def setup(level: str) -> None:
    """Send log lines of this process to standard error from `level` (a config word) on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(systemd="JOURNAL_STREAM" in os.environ))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def event(text: str, /, *, level: int = logging.INFO, **values: object) -> None:
    """Log one event.  Empty values are left out; unknown field names are a bug."""
    if not values.keys() <= FIELDS:
        raise ValueError(f"log fields {sorted(values.keys() - FIELDS)} are not in the table")
    shown = " ".join(
        f"{key}={_show(value)}" for key, value in values.items() if value or value == 0
    )
    _logger.log(level, "%s", f"{text}: {shown}" if shown else text)


def endpoint(address: tuple[str, int]) -> str:
    """Return a socket address as people write it: 192.0.2.7:443 or [2001:db8::7]:443."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def warning(text: str, /, **values: object) -> None:
    """Log an event that somebody should look at."""
    event(text, level=logging.WARNING, **values)


def error(text: str, /, **values: object) -> None:
    """Log an event that somebody has to act on."""
    event(text, level=logging.ERROR, **values)


def _show(value: object) -> str:
    """Return the value on one line of printable characters, quoted where it has spaces."""
    text = "".join(c if c.isprintable() else "?" for c in str(value)[:MAX_VALUE])
    return '"' + text.replace('"', "'") + '"' if " " in text or '"' in text else text
