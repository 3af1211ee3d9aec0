"""A name server for one name, and a resolver of a host that asks it.

    python -m tests.netns.resolver zone ADDRESS NAME IPV4       answer for one name
    python -m tests.netns.resolver forward ADDRESS UPSTREAM     pass questions on

The second stands for systemd-resolved: another user than whoever asks it, so that its questions
go where the tunnel's routes say.
"""

import ipaddress
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from tests.netns.bed import WEB4, Bed
from tests.netns.namespace import PYTHON
from tests.netns.process import Process

PORT = 53
RESPONSE, NAME_ERROR = 0x8180, 3  # RFC 1035 section 4.1.1
A, IN = 1, 1
PATIENCE_S = 5.0  # for the upstream; whoever asked has asked again by then


def answer(query: bytes, name: str, address: str) -> bytes:
    """Return the response to a query of one question."""
    end = query.index(0, 12) + 1
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    is_known = query[12:end].lower() == labels + b"\0"
    found = is_known and query[end : end + 2] == A.to_bytes(2, "big")
    flags = RESPONSE if is_known else RESPONSE | NAME_ERROR
    counts = (1, int(found), 0, 0)
    header = query[:2] + b"".join(n.to_bytes(2, "big") for n in (flags, *counts))
    record = b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04" + ipaddress.IPv4Address(address).packed
    return header + query[12 : end + 4] + (record if found else b"")


def zone(at: str, name: str, address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((at, PORT))
        print("ready", flush=True)
        while True:
            query, whose = sock.recvfrom(512)
            sock.sendto(answer(query, name, address), whose)


def forward(at: str, upstream: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((at, PORT))
        print("ready", flush=True)
        while True:
            query, whose = sock.recvfrom(512)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.settimeout(PATIENCE_S)
                try:  # there may be no way just now: a tunnel comes or goes
                    asking.sendto(query, (upstream, PORT))
                    sock.sendto(asking.recv(512), whose)
                    print("answered", flush=True)
                except OSError:
                    print("no answer", flush=True)


def start_resolver(bed: Bed, name: str, address: str) -> Process:
    """Have the first client of a bed resolve a name, by questions to the internet."""
    serving = bed.internet.start(
        "zone", *PYTHON, "tests.netns.resolver", "zone", WEB4, name, address
    )
    serving.wait_for("^ready")
    at = _configured()
    if not ipaddress.ip_address(at).is_loopback:
        bed.client.ip(f"address add {at}/32 dev lo")
    process = bed.client.start("resolver", *PYTHON, "tests.netns.resolver", "forward", at, WEB4)
    process.wait_for("^ready")
    return process


def _configured() -> str:
    """Return where this machine asks, resolv.conf(5), in whichever network a program is."""
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    servers = [line.split()[1] for line in lines if line.startswith("nameserver ")]
    return next((server for server in servers if ":" not in server), "127.0.0.1")


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    programs: dict[str, Callable[..., None]] = {"zone": zone, "forward": forward}
    programs[kind](*arguments)
