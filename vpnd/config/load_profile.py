"""A client's profile: TOML to model.  Whatever is wrong becomes a ConfigError with a remedy.

The file is what `vpnctl client add` wrote, with options added by whoever uses it; instead of
a file, a command line may name the server.
"""

import base64
import binascii
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from vpnd.config import values
from vpnd.config.load import DAY, LOG, parse, read, read_keys, read_tables, refuse_unknown
from vpnd.config.profile_options import (
    EVERYTHING,
    SYSTEM,
    SYSTEM_CA,
    ClientConfig,
    ClientOptions,
    ClientTlsOptions,
    RemoteOptions,
)
from vpnd.errors import ConfigError
from vpnd.pki.keys import is_same_key
from vpnd.pki.reading import load_certificates

HTTPS_PORT = 443  # where a remote names no port
MAX_REMOTES = 32  # each is tried, one after the other
MAX_PEM = 64 * 1024  # characters; a chain with two RSA certificates above it has 6,000
PIN = re.compile(r"pin-sha256:([A-Za-z0-9+/]{43}=)")
CLIENT_INTERFACE = re.compile(r"pyvpn[1-9][0-9]{1,2}")  # pyvpn0 to pyvpn9 are the servers'
URL_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]{0,255}")
NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")  # as for names of clients: it names a folder
NOT_OF_A_NAME = re.compile(r"[^a-z0-9._@-]+")


def pem(value: object) -> str:
    """Return PEM text."""
    if not isinstance(value, str):
        raise values.BadValue("is not a text; put the PEM between three quotation marks")
    if value and "-----BEGIN " not in value:
        raise values.BadValue("is no PEM; put the file's content here, not its name")
    if len(value) > MAX_PEM or not value.isascii():
        raise values.BadValue(f"is over {MAX_PEM} characters or not ASCII; is it the right file?")
    return value


def system_ca() -> str:
    """Return what stands for the certificates that this system trusts; OpenSSL reads them.

    Raises ConfigError when there are none.
    """
    if not SYSTEM_CA.is_file():
        raise ConfigError(f"{SYSTEM_CA}: there is none; install the package ca-certificates")
    return SYSTEM


def ca(value: object) -> str:
    """Return certificates as PEM; "system" stands for those that this system trusts."""
    return system_ca() if value == SYSTEM else pem(value)


def address(value: object) -> tuple[str, int]:
    """Return host and port of "HOST:PORT", or of "HOST"."""
    written = values.text(value)
    try:
        return values.host(written.strip("[]")), HTTPS_PORT
    except values.BadValue:
        host, _, port = values.remote(written).rpartition(":")
        return host.strip("[]"), int(port)


def pin(value: object) -> str:
    """Return the whole pin of a public key; a part of one pins nothing."""
    written = values.text(value)
    found = PIN.fullmatch(written)
    try:
        whole = found is not None and len(base64.b64decode(found[1], validate=True)) == 32
    except binascii.Error:
        whole = False
    if not whole:
        raise values.BadValue('is no pin; write "pin-sha256:" and the 44 characters behind it')
    return written


def url_path(value: object) -> str:
    written = values.text(value)
    if not URL_PATH.fullmatch(written):
        raise values.BadValue('is no path of a URL; begin it with /, as in "/"')
    return written


def name(value: object) -> str:
    """Return the name of a device, or "" for that of its file."""
    written = values.text(value)
    if written and not NAME.fullmatch(written):
        raise values.BadValue("is no name; use 1 to 64 of a-z 0-9 . _ @ -")
    return written


def interface(value: object) -> str:
    """Return the name of a client's interface, or "" for the first that is free."""
    if value == "":
        return ""
    written = values.text(value)
    if not CLIENT_INTERFACE.fullmatch(written):
        raise values.BadValue("is no name for a client's tunnel; use pyvpn10 to pyvpn999")
    return written


def include(value: object) -> Any:
    """Return networks; () stands for ["default"], everything."""
    if value == [EVERYTHING]:
        return ()
    return values.routes(value)


READERS: Mapping[str, Mapping[str, values.Reader[Any]]] = {
    "client": {"user": values.text, "group": values.text, "name": name, "path": url_path},
    "tls": {
        "ca": ca,
        "certificate": pem,
        "key": pem,
        "min_version": values.choice("1.2", "1.3"),
    },
    "network": {
        "interface": interface,
        "mtu": values.timer(576, 9000),
        "include": include,
        "exclude": values.several(values.network),
        "default_route": values.boolean,
        "block_ipv6": values.boolean,
        "script": values.optional_file,
    },
    "dtls": {"enabled": values.boolean},
    "session": {
        "rekey_s": values.timer(60, 7 * DAY),
        "reconnect_timeout_s": values.timer(10, 366 * DAY),
    },
    "helper": {"socket": values.file},
    "ipc": {"admin_group": values.group},
    "log": LOG,
}
REMOTE_READERS: Mapping[str, values.Reader[Any]] = {
    "address": address,
    "server_name": values.optional_host,
    "pins": values.several(pin),
    "priority": values.integer(0, 1000),
}


def load_profile(path: Path | str, data: bytes | None = None) -> ClientConfig:
    """Return the profile in `path`, or in `data` which was read from there.

    Raises ConfigError, and nothing else.
    """
    path = Path(path)
    if data is None:
        data = read(path, "name a profile that vpnctl client add made, or a URL")
    raw = parse(path, data)
    refuse_unknown(path, "", raw, {"remotes": None, **READERS})
    remotes = _read_remotes(path, raw.get("remotes"))
    config = ClientConfig(remotes=remotes, **read_tables(path, ClientConfig, raw, READERS))
    if not config.client.name:
        config = replace(config, client=replace(config.client, name=device_name(path.stem)))
    _check_together(path, config)
    return config


def profile_of_url(
    url: str, *, user: str = "", pins: Sequence[str] = (), tls: ClientTlsOptions
) -> ClientConfig:
    """Return a profile for "https://HOST[:PORT][/PATH]".  Raises ConfigError."""
    try:
        (host, port), path = _parts(url)
        checked = tuple(dict.fromkeys(map(pin, pins)))
        client = ClientOptions(values.text(user), name=device_name(host), path=path)
    except values.BadValue as exc:
        raise ConfigError(f"{url}: {exc}") from None
    config = ClientConfig((RemoteOptions(host, port, host, checked),), client, tls)
    _check_together(Path(url), config)
    return config


def _parts(url: str) -> tuple[tuple[str, int], str]:
    """Return address and path of a server's URL."""
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that do not close
        parts = urlsplit("")
    if parts.scheme != "https" or not parts.netloc or parts.username or parts.fragment:
        raise values.BadValue("is no URL of a server; write https://HOST or https://HOST:PORT")
    query = f"?{parts.query}" if parts.query else ""
    return address(parts.netloc), url_path((parts.path or "/") + query)


def in_order(remotes: Sequence[RemoteOptions]) -> list[RemoteOptions]:
    """Return the remotes as they are to be tried: by priority, equal ones shuffled."""
    if all(remote.priority is None for remote in remotes):
        return list(remotes)
    ordered: list[RemoteOptions] = []
    by_priority = sorted(remotes, key=lambda remote: remote.priority or 0)
    for _, equal in groupby(by_priority, key=lambda remote: remote.priority):
        group = list(equal)
        random.shuffle(group)
        ordered += group
    return ordered


def device_name(text: str) -> str:
    """Return a text as near as possible as the name of a device."""
    return NOT_OF_A_NAME.sub("-", text.lower()).strip("._@-")[:64] or "client"


def _read_remotes(path: Path, written: object) -> tuple[RemoteOptions, ...]:
    if not isinstance(written, list) or not all(isinstance(entry, dict) for entry in written):
        raise ConfigError(f"{path}: remotes: missing; write [[remotes]] with an address below it")
    if not 1 <= len(written) <= MAX_REMOTES:
        raise ConfigError(
            f"{path}: remotes: there are {len(written)}; write 1 to {MAX_REMOTES} of them"
        )
    remotes = tuple(_read_remote(path, entry) for entry in written)
    ranked = sum(remote.priority is not None for remote in remotes)
    if ranked not in (0, len(remotes)):
        raise ConfigError(
            f"{path}: remotes.priority: missing in {len(remotes) - ranked} of them; "
            "give all remotes a priority, or none"
        )
    return remotes


def _read_remote(path: Path, written: Mapping[str, object]) -> RemoteOptions:
    found = read_keys(path, "remotes", written, REMOTE_READERS)
    if "address" not in found:
        raise ConfigError(
            f'{path}: remotes.address: missing; write one like "vpn.example.org:443"'
        )
    host, port = found.pop("address")
    server_name = found.pop("server_name", "") or host
    return RemoteOptions(host=host, port=port, server_name=server_name, **found)


def _check_together(path: Path, config: ClientConfig) -> None:
    """Refuse values that are right alone and wrong side by side."""
    tls = config.tls
    if bool(tls.certificate) != bool(tls.key):
        missing = "key" if tls.certificate else "certificate"
        raise ConfigError(f"{path}: tls.{missing}: missing; give certificate and key, or neither")
    if not tls.ca and not all(remote.pins for remote in config.remotes):
        raise ConfigError(
            f"{path}: neither a CA (tls.ca) nor pins tell whether it is the right server; "
            "give one of them for each remote"
        )
    try:
        _check_pem(tls)
    except values.BadValue as exc:
        raise ConfigError(f"{path}: tls.{exc}") from None


def _check_pem(tls: ClientTlsOptions) -> None:
    """Raise BadValue unless OpenSSL will take what stands in the file."""
    own_ca = "" if tls.ca == SYSTEM else tls.ca
    for key, text in (("ca", own_ca), ("certificate", tls.certificate)):
        try:
            found = load_certificates(text.encode()) if text else []
        except ValueError:
            raise values.BadValue(f"{key}: not readable as PEM; make the profile anew") from None
    if not tls.key:
        return
    try:
        private = load_pem_private_key(tls.key.encode(), password=None)
    except TypeError:
        raise values.BadValue(
            "key: has a passphrase; take it off with openssl pkey -in FILE -out NEWFILE"
        ) from None
    except ValueError:
        raise values.BadValue("key: not readable as PEM; make the profile anew") from None
    if not is_same_key(found[0].public_key(), private.public_key()):
        raise values.BadValue("key: belongs to another certificate; make the profile anew")
