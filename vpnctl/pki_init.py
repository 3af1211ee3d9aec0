"""Making the authority and the server's keys for the first time, whole or not at all."""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

from vpnctl.homes import Home
from vpnd.config import values
from vpnd.config.load import load_server
from vpnd.errors import ConfigError
from vpnd.pki import ca, jobs, server_files
from vpnd.pki.child import ensure_directory
from vpnd.pki.keys import KeyType, parse_public_key
from vpnd.pki.pins import certificate_pin, key_pin
from vpnd.pki.reading import load_certificates, not_after

COMMIT = "server.crt"  # the last file: with it a server can run
NEEDED = {"root.crt", "issuing.key", "issuing.crt"}  # of an authority that can sign
FIB = Path("/proc/self/net/fib_trie")
SOMEWHERE = (("192.0.2.1", 9), ("2001:db8::1", 9))  # RFC 5737, RFC 3849: nothing is sent
RESOLVER = "timeout:1 attempts:1"  # resolv.conf(5): a first start does not wait for a dead DNS


def initialise(
    names: Sequence[str],
    key_type: KeyType,
    *,
    ca_home: Home,
    server_home: Home,
    if_missing: bool = False,
) -> dict[str, Any] | None:
    """Make the authority and the server's keys and certificate; return what was made.

    Either everything is there afterwards or nothing new is; what an earlier call left behind
    when it was killed is removed first.  With `if_missing` an authority that is there is used,
    and None returned where the server has its certificate already.  Raises VpnError, else also
    when one of the files exists.
    """
    ensure_directory(ca_home.directory, ca_home.account, widest=0o700)
    ensure_directory(server_home.directory, server_home.account, widest=0o755)
    server = server_home.run(jobs.existing, files=list(server_files.FILES))
    if if_missing and COMMIT in server["files"]:
        return None
    begun = server["is_marked"] and COMMIT not in server["files"]
    if begun:
        _clean(server_home, server_files.FILES)
    authority = ca_home.run(jobs.existing, files=list(ca.FILES))
    if authority["is_marked"]:  # no server ever had a certificate of it
        _clean(ca_home, ca.FILES)
        authority["files"] = []
    if not (if_missing or begun) or not set(authority["files"]) >= NEEDED:
        _refuse_existing(ca_home, authority["files"])
    if not begun:
        _refuse_existing(server_home, server["files"])
    signed = _make(names, key_type, ca_home, server_home, make_ca=not authority["files"])
    leaf = load_certificates(signed["certificate"].encode())[0]
    following = parse_public_key(signed["next"].encode(), "server-next.pub")
    return {
        "names": list(names),
        "not_after": int(not_after(leaf).timestamp()),
        "pins": [certificate_pin(leaf), key_pin(following)],
        "ca_dir": str(ca_home.directory),
        "state_dir": str(server_home.directory),
    }


def _make(
    names: Sequence[str], key_type: KeyType, ca_home: Home, server_home: Home, *, make_ca: bool
) -> dict[str, str]:
    """Make what is missing, or nothing; the order of the marks is that of `unfinished`."""
    with ExitStack() as undo:
        undo.callback(_clean, server_home, server_files.FILES)
        server_home.run(jobs.begin, files=list(server_files.FILES))
        keys = server_home.run(jobs.make_server_keys, key_type=key_type)
        if make_ca:
            undo.callback(_clean, ca_home, ca.FILES)
            ca_home.run(jobs.begin, files=list(ca.FILES))
            ca_home.run(jobs.create_authority, key_type=key_type)
        signed = ca_home.run(jobs.sign_server, request=keys["request"], names=list(names))
        if make_ca:
            ca_home.run(jobs.end)
        server_home.run(
            jobs.install_server_certificates, certificate=signed["certificate"], ca=signed["ca"]
        )
        undo.pop_all()
    server_home.run(jobs.end)
    return {"certificate": signed["certificate"], "next": keys["next"]}


def _clean(home: Home, files: Sequence[str]) -> None:
    home.run(jobs.clean, files=list(files))


def _refuse_existing(home: Home, found: Sequence[str]) -> None:
    if found:
        raise ConfigError(
            f"{home.directory}: {', '.join(found)} exist{'s' if len(found) == 1 else ''} already "
            "and will not be overwritten; to begin anew, move what is there elsewhere"
        )


def chosen_names(written: Sequence[str] | None, config: Path, *, needed: bool) -> list[str]:
    """Return checked names of the server: those written, the configuration's, or this host's.

    `needed` says whether the configuration must be there.  Raises ConfigError.
    """
    names = []
    for name in written or _configured(config, needed=needed) or own_names():
        try:
            names.append(values.host(name))
        except values.BadValue as exc:
            raise ConfigError(f"--name: {exc}") from None
    return list(dict.fromkeys(names))


def _configured(config: Path, *, needed: bool) -> list[str]:
    """Return what clients call the server according to its configuration, [] if it is silent."""
    if not needed and not config.exists():
        return []
    server = load_server(config).server
    names = [server.name, *(remote.rpartition(":")[0].strip("[]") for remote in server.remotes)]
    return [name for name in names if name]


def own_names() -> list[str]:
    """Return what others know this host by, best first: full name, address, else a short name."""
    short = socket.gethostname()
    os.environ.setdefault("RES_OPTIONS", RESOLVER)
    full = next((name for name in (short, socket.getfqdn(short)) if _is_full(name)), "")
    return [name for name in (full, own_address(), "" if full else short) if name]


def _is_full(name: str) -> bool:
    """Return whether a name may mean this host elsewhere too."""
    local = name.startswith("localhost") or name.endswith(".localdomain")
    return "." in name.strip(".") and not local and not _is_address(name)


def own_address() -> str:
    """Return the address that this host speaks to others from, "" where it has none."""
    for host, port in SOMEWHERE:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((host, port))
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return next(_local_addresses(), "")


def _local_addresses() -> Iterator[str]:
    """Yield this host's IPv4 addresses from the kernel's routing trie (proc(5))."""
    try:
        lines = FIB.read_text("ascii").splitlines()
    except OSError:
        return
    for line, following in pairwise(lines):
        if following.endswith("/32 host LOCAL"):
            found = line.rpartition(" ")[2]
            if not ip_address(found).is_loopback:
                yield found


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
