"""The server's two folders for renewals of clients' certificates, in its state directory.

    requests/SERIAL.json   vpnd writes: {"request": base64 DER, "certificate": base64 DER}
    answers/SERIAL.pem     the renewal writes: the chain for who has the certificate SERIAL

SERIAL is of the certificate that is to be renewed, so that a client has one place in each.
All files belong to the server's user; the authority gets their content from a child of that
user, and trusts none of it.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from vpnd.pki.files import replace

REQUESTS, ANSWERS = "requests", "answers"
MAX_REQUESTS = 4096  # files; more clients than that wait for the next day
MAX_REQUEST = 16 * 1024  # bytes; with RSA keys of 4096 bit it has 4,000
MAX_ANSWER = 32 * 1024  # bytes of a chain in PEM; two certificates with RSA keys have 4,500
SERIAL = re.compile(r"[1-9a-f][0-9a-f]{0,39}")


def prepare(state_dir: Path) -> None:
    """Make both folders."""
    for name in (REQUESTS, ANSWERS):
        (state_dir / name).mkdir(mode=0o700, exist_ok=True)


def put_request(state_dir: Path, serial: str, request: str, certificate: str) -> bool:
    """Leave a request for the renewal; return False where no more are taken.

    One that is there already is written again: that wakes whoever watches the folder.
    """
    path = _path(state_dir / REQUESTS, serial, ".json")
    if not path.exists() and sum(1 for _ in path.parent.iterdir()) >= MAX_REQUESTS:
        return False
    data = json.dumps({"request": request, "certificate": certificate}).encode()
    if len(data) > MAX_REQUEST:
        return False
    replace(path, data)
    return True


def pending(state_dir: Path, at_most: int) -> list[dict[str, str]]:
    """Return requests that wait; what is none is removed."""
    found: list[dict[str, str]] = []
    folder = state_dir / REQUESTS
    if not folder.is_dir():
        return found
    for path in sorted(folder.iterdir()):
        if len(found) >= at_most:
            break
        if path.name.startswith("."):  # being written
            continue
        entry = _read_request(path)
        if entry is None:
            path.unlink(missing_ok=True)
        else:
            found.append({"serial": path.stem, **entry})
    return found


def _read_request(path: Path) -> dict[str, str] | None:
    if path.suffix != ".json" or not SERIAL.fullmatch(path.stem):
        return None
    data = _read(path, MAX_REQUEST)
    try:
        value: Any = json.loads(data or b"")
    except (ValueError, RecursionError):
        return None
    names = ("request", "certificate")
    if not isinstance(value, dict) or not all(isinstance(value.get(n), str) for n in names):
        return None
    return {name: value[name] for name in names}


def answer(state_dir: Path, serial: str, certificate: str) -> None:
    """Leave the answer, if there is a certificate, and take the request away."""
    if certificate:
        (state_dir / ANSWERS).mkdir(mode=0o700, exist_ok=True)
        replace(_path(state_dir / ANSWERS, serial, ".pem"), certificate.encode())
    _path(state_dir / REQUESTS, serial, ".json").unlink(missing_ok=True)


def get_answer(state_dir: Path, serial: str) -> bytes:
    """Return the chain for who has the certificate with this serial number, b"" for none."""
    return _read(_path(state_dir / ANSWERS, serial, ".pem"), MAX_ANSWER) or b""


def answered(state_dir: Path) -> list[str]:
    """Return the serial numbers that there are answers for."""
    stems = [path.stem for path in (state_dir / ANSWERS).glob("*.pem")]
    return [stem for stem in stems if SERIAL.fullmatch(stem)]


def forget(state_dir: Path, serial: str) -> None:
    """Remove what is there for a serial number."""
    for folder, suffix in ((REQUESTS, ".json"), (ANSWERS, ".pem")):
        _path(state_dir / folder, serial, suffix).unlink(missing_ok=True)


def _path(folder: Path, serial: str, suffix: str) -> Path:
    if not SERIAL.fullmatch(serial):
        raise ValueError("not a serial number")
    return folder / f"{serial}{suffix}"


def _read(path: Path, at_most: int) -> bytes | None:
    """Return a regular file's content; None where there is none, or too much."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        try:
            data = file.read(at_most + 1)
        except OSError:  # a folder
            return None
    return data if len(data) <= at_most else None
