"""What the children of `vpnd.pki.child` do: plain values in, plain values out.

Each takes the directory of the user it runs as and never looks at another one.  Certificates
cross as PEM text, times as Unix seconds.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vpnd.pki import ca, issued, server_files, unfinished
from vpnd.pki.reading import load_certificates


def existing(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return which of the names in `files` are in `directory`, and whether it is marked."""
    directory = Path(request["directory"])
    there = {path.name for path in directory.iterdir()}
    return {
        "files": [name for name in request["files"] if name in there],
        "is_marked": unfinished.is_marked(directory),
    }


def begin(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Mark a directory as unfinished."""
    unfinished.begin(Path(request["directory"]), request["files"])
    return {}


def clean(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Remove `files` and the mark."""
    unfinished.clean(Path(request["directory"]), request["files"])
    return {}


def end(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take the mark away."""
    unfinished.end(Path(request["directory"]))
    return {}


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


def create_authority(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """As the CA's user: make the authority."""
    ca.create(Path(request["directory"]), request["key_type"], now_of(request))
    return {}


def sign_server(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """As the CA's user: sign the server's certificate."""
    authority = ca.load(Path(request["directory"]))
    asked = request["request"].encode()
    certificate = authority.sign_server(asked, request["names"], now_of(request))
    return {"certificate": certificate.decode(), "ca": authority.ca_pem.decode()}


def sign_client(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """As the CA's user: sign a client's certificate, and write down that it exists."""
    directory, now = Path(request["directory"]), now_of(request)
    user, client = request["user"], request["client"]
    with issued.locked(directory):
        authority = ca.load(directory)
        certificate = authority.sign_client(
            request["request"].encode(), user, client, now, foreign=request["foreign"]
        )
        leaf = load_certificates(certificate)[0]
        issued.record(directory, leaf, user, client, now)
    return {"certificate": certificate.decode(), "ca": authority.ca_pem.decode()}


def now_of(request: Mapping[str, Any]) -> datetime:
    """Return the time that the parent names, or this host's."""
    return datetime.fromtimestamp(request["now"], UTC) if "now" in request else datetime.now(UTC)
