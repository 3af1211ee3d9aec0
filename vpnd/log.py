"""Log lines: one event a person acts on, its fields behind it as key=value.

    INFO session opened: user=alice client=phone address=203.0.113.7 inner=10.8.0.2

Under systemd they go to the journal with their fields (`journalctl PYVPN_USER=alice`) and
priority, everywhere else to standard error.  Only the field names below may be used, so that
nobody logs a secret by a new name.
"""

import logging
import os
import re
import sys
from ipaddress import IPv6Address, ip_address, ip_network

from vpnd import journal

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
        "settings",
        "state",
        "tx_bytes",
        "uid",
        "user",
        "version",
        "worker",
    }
)
MAX_VALUE = 256  # characters of one value; the rest is cut
NONE = "none"  # the level at which nothing is logged
IDENTIFIER = "vpnd"
PREFIX4, PREFIX6 = 24, 48  # what is left of an address where they are anonymised
_PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
_IPV4 = re.compile(
    r"(?<![\d.])(?P<host>\d{1,3}(?:\.\d{1,3}){3})(?!\d)(?::\d{1,5}\b)?(?P<length>/\d{1,2}\b)?"
)
_IPV6 = re.compile(
    r"(?<![\w:.])\[?(?P<host>(?:[0-9A-Fa-f]{0,4}:){2,8}"
    r"(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}))(?:%[\w.]+)?(?:\](?::\d{1,5})?)?"
    r"(?P<length>/\d{1,3}\b)?"
)
_logger = logging.getLogger("pyvpn")


class _Formatter(logging.Formatter):
    def __init__(self, form: str, *, anonymise: bool) -> None:
        super().__init__(form)
        self._anonymise = anonymise

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return anonymised(text) if self._anonymise else text


class _Prefixed(_Formatter):
    """With the priority in front, for whoever reads standard error (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_priority(record)}>{super().format(record)}"


class _JournalHandler(logging.Handler):
    def __init__(self, way: journal.Journal, *, anonymise: bool) -> None:
        super().__init__()
        self._way = way
        self._anonymise = anonymise

    def emit(self, record: logging.LogRecord) -> None:
        lost = self._way.lost
        if self._way.send(self._fields(record)) and lost:
            self._way.lost = 0
            warning("log lines were lost", count=lost)
            if self._way.lost:  # this one, too
                self._way.lost += lost

    def _fields(self, record: logging.LogRecord) -> dict[str, str]:
        entry = _entry(_priority(record), self.format(record))
        values: dict[str, str] = getattr(record, "pyvpn", {})
        for name, value in values.items():
            entry[f"PYVPN_{name.upper()}"] = anonymised(value) if self._anonymise else value
        return entry

    def close(self) -> None:
        self._way.close()
        super().close()


def _entry(priority: int, message: str) -> dict[str, str]:
    return {"MESSAGE": message, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": IDENTIFIER}


def _priority(record: logging.LogRecord) -> int:
    return _PRIORITIES.get(record.levelno, 6)


def setup(level: str, *, anonymise: bool = False) -> None:
    """Log this process's lines from `level` (a config word) on; may be called again.

    With `anonymise` no line holds a whole IP address, wherever in it one may stand.
    """
    if level == NONE:
        logging.basicConfig(handlers=[logging.NullHandler()], force=True)
        logging.disable()
        return
    logging.disable(logging.NOTSET)
    logging.basicConfig(level=level.upper(), handlers=[_handler(anonymise)], force=True)


def _handler(anonymise: bool) -> logging.Handler:
    if journal.is_stderr():
        try:
            handler: logging.Handler = _JournalHandler(journal.Journal(), anonymise=anonymise)
        except OSError:  # as in a root directory of its own: the stream works all the same
            pass
        else:
            handler.setFormatter(_Formatter("%(message)s", anonymise=anonymise))
            return handler
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_Prefixed("%(message)s", anonymise=anonymise))
    else:
        form = "%(asctime)s %(levelname)s %(message)s"
        handler.setFormatter(_Formatter(form, anonymise=anonymise))
    return handler


def event(text: str, /, *, level: int = logging.INFO, **values: object) -> None:
    """Log one event.  Empty values are left out; unknown field names are a bug."""
    if not values.keys() <= FIELDS:
        raise ValueError(f"log fields {sorted(values.keys() - FIELDS)} are not in the table")
    if not _logger.isEnabledFor(level):
        return
    told = {key: _printable(value) for key, value in values.items() if value or value == 0}
    shown = " ".join(f"{key}={_quoted(value)}" for key, value in told.items())
    fields = {"event": text, **told}
    _logger.log(level, "%s", f"{text}: {shown}" if shown else text, extra={"pyvpn": fields})


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


def last_words(text: str) -> None:
    """Say why this program ends, whatever the level; an error, where the journal listens."""
    prefix = "<3>" if "JOURNAL_STREAM" in os.environ else ""
    print(f"{prefix}{text}", file=sys.stderr)  # noqa: T201 - logging may be switched off


def anonymised(text: str) -> str:
    """Return `text` with each IP address in it cut to its /24 or /48, ports taken off.

    "0.0.0.0", "::" and loopback addresses, which are nobody's, stay.
    """
    return _IPV4.sub(_cut, _IPV6.sub(_cut, text))


def _cut(found: re.Match[str]) -> str:
    try:
        address = ip_address(found["host"])
    except ValueError:  # a time of day, a version of five numbers
        return found[0]
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    prefix = PREFIX6 if address.version == 6 else PREFIX4
    if (
        address.is_unspecified
        or address.is_loopback
        or int((found["length"] or "/999")[1:]) <= prefix
    ):
        return found[0]
    return str(ip_network((address, prefix), strict=False))


def _printable(value: object) -> str:
    """Return the value on one line of printable characters."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:MAX_VALUE])


def _quoted(text: str) -> str:
    """Return the text quoted where it has spaces."""
    return '"' + text.replace('"', "'") + '"' if " " in text or '"' in text else text
