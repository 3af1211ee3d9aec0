"""Which values a call may carry: checked at the border, before anything acts on them.

Names become file names, certificate subjects and log text elsewhere, so that nothing but a
plain name passes here.
"""

import re

NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")  # fullmatch; no path, no space, no control
SERIAL = re.compile(r"[0-9a-f]{1,40}")  # at most 20 octets (RFC 5280 section 4.1.2.2)
MAX_PASSWORD = 256  # characters; a login form field is not longer, so more could never log in
MAX_GROUPS = 32
MAX_TIME = 253_402_300_799  # 9999-12-31T23:59:59Z, the last time a certificate can name

NAME_RULE = "use 1 to 64 of the characters a-z 0-9 . _ @ -, beginning with a letter or a digit"


def name_problem(name: str) -> str | None:
    """Return what is wrong with a user, client or group name, or None."""
    return None if NAME.fullmatch(name) else NAME_RULE


def session_problem(session: str) -> str | None:
    """Return what is wrong with the id of a session, or None; that of a client is empty."""
    return name_problem(session) if session else None


def password_problem(password: str) -> str | None:
    """Return what is wrong with a password, or None; the text never quotes it."""
    if not password:
        return "it is empty"
    if len(password) > MAX_PASSWORD:
        return f"it is longer than {MAX_PASSWORD} characters"
    if not password.isprintable():  # also refuses the lone surrogates that JSON lets through
        return "it has a character that cannot be printed, such as a tab or a line end"
    return None


def groups_problem(groups: list[str]) -> str | None:
    """Return what is wrong with a list of groups, or None."""
    if len(groups) > MAX_GROUPS:
        return f"there are more than {MAX_GROUPS}"
    if len(set(groups)) != len(groups):
        return "one is named twice"
    return next((problem for group in groups if (problem := name_problem(group))), None)


def serial_problem(serial: str) -> str | None:
    """Return what is wrong with a certificate's serial number, or None."""
    if SERIAL.fullmatch(serial) and serial.strip("0"):
        return None
    return "write it as 1 to 40 lower case hexadecimal digits, and not as zero"


def time_problem(at: int) -> str | None:
    """Return what is wrong with a Unix time in seconds, or None."""
    if isinstance(at, bool) or not 0 < at <= MAX_TIME:  # JSON's true passes for an int
        return "it is not a Unix time in seconds between 1970 and 9999"
    return None
