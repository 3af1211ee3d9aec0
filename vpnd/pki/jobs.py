"""What the children of `vpnd.pki.child` do: plain values in, plain values out.

Each takes the directory of the user it runs as and never looks at another one.  Certificates
cross as PEM text.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vpnd.pki import ca, server_files


def existing(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return which of the names in `files` are in `directory`."""
    there = {path.name for path in Path(request["directory"]).iterdir()}
    return {"files": [name for name in request["files"] if name in there]}


def make_server_keys(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """As the server's user: make both key pairs; return a request and the next public key."""
    directory = Path(request["directory"])
    made = server_files.make_keys(directory, request["key_type"])
    return {"request": made.decode(), "next": (directory / "server-next.pub").read_text()}


def install_server_certificates(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """As the server's user: install its certificate and those of the CA."""
    server_files.install_certificates(
        Path(request["directory"]), request["certificate"].encode(), request["ca"].encode()
    )
    return {}


def remove_server_files(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """As the server's user: undo `make_server_keys`."""
    server_files.remove(Path(request["directory"]))
    return {}


def create_authority(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """As the CA's user: make the authority and sign the server's first certificate."""
    now = datetime.now(UTC)
    authority = ca.create(Path(request["directory"]), request["key_type"], now)
    try:
        certificate = authority.sign_server(request["request"].encode(), request["names"], now)
    except BaseException:
        remove_authority(request)
        raise
    return {"certificate": certificate.decode(), "ca": authority.ca_pem.decode()}


def remove_authority(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """As the CA's user: undo `create_authority`."""
    for name in ca.FILES:
        (Path(request["directory"]) / name).unlink(missing_ok=True)
    return {}


def sign_client(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """As the CA's user: sign a client's certificate."""
    authority = ca.load(Path(request["directory"]))
    certificate = authority.sign_client(
        request["request"].encode(),
        request["user"],
        request["client"],
        datetime.now(UTC),
        foreign=request["foreign"],
    )
    return {"certificate": certificate.decode(), "ca": authority.ca_pem.decode()}
