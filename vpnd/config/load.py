"""TOML to model.  Whatever is wrong becomes a ConfigError that names file, table and key.

/etc/pyvpn/server.toml: network.mtu: 400 is below 576; use 576 to 9000
"""

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vpnd.config import values
from vpnd.config.model import ServerConfig
from vpnd.errors import ConfigError

MAX_FILE = 256 * 1024  # bytes; the commented sample has 5 KiB
DAY = 86400

LOG: Mapping[str, values.Reader[Any]] = {
    "level": values.choice("debug", "info", "warning", "error", "none"),
    "anonymise": values.boolean,
}
READERS: Mapping[str, Mapping[str, values.Reader[Any]]] = {
    "server": {
        "addresses": values.several(values.address, at_least=1),
        "port": values.integer(1, 65535),
        "name": values.optional_host,
        "remotes": values.several(values.remote),
    },
    "network": {
        "interface": values.interface,
        "ipv4": values.tunnel_ipv4,
        "ipv6": values.tunnel_ipv6,
        "mtu": values.integer(576, 9000),
        "dns": values.several(values.address),
        "default_domain": values.domains,
        "routes": values.routes,
        "exclude": values.several(values.network),
        "client_to_client": values.boolean,
    },
    "tls": {
        "certificate": values.optional_file,
        "key": values.optional_file,
        "client_ca": values.optional_file,
        "min_version": values.choice("1.2", "1.3"),
    },
    "dtls": {"enabled": values.boolean},
    "auth": {
        "methods": values.several(values.choice("certificate", "password"), at_least=1),
        "login_timeout_s": values.integer(10, 3600),
        "password_attempts": values.integer(1, 10),
    },
    "session": {
        "cookie_timeout_s": values.integer(10, DAY),
        "session_timeout_s": values.timer(60, 366 * DAY),
        "idle_timeout_s": values.timer(30, 30 * DAY),
        "dpd_s": values.timer(5, 3600),
        "keepalive_s": values.timer(5, DAY),
        "rekey_s": values.timer(60, 7 * DAY),
    },
    "limits": {
        "connections": values.integer(1, 65536),
        "connections_per_address": values.integer(1, 65536),
        "handshakes_pending": values.integer(1, 4096),
    },
    "firewall": {
        "backend": values.choice("auto", "nftables"),
        "masquerade": values.boolean,
        "clamp_mss": values.boolean,
    },
    "helper": {"socket": values.file},
    "ipc": {"admin_group": values.group},
    "log": {**LOG, "keep_days": values.integer(0, 3650)},
}


def load_server(path: Path | str) -> ServerConfig:
    """Return the configuration in `path`.  Raises ConfigError, and nothing else."""
    return load_with_origin(path)[0]


def load_with_origin(path: Path | str) -> tuple[ServerConfig, frozenset[str]]:
    """Return the configuration in `path`, and the keys ("network.mtu") that it says itself.

    Raises ConfigError, and nothing else.
    """
    path = Path(path)
    raw = parse(path, read(path, "write it or name another file"))
    refuse_unknown(path, "", raw, READERS)
    config = ServerConfig(**read_tables(path, ServerConfig, raw, READERS))
    _check_together(path, config)
    return config, frozenset(f"{table}.{key}" for table, keys in raw.items() for key in keys)


def read(path: Path, remedy: str, at_most: int = MAX_FILE) -> bytes:
    """Return a file's bytes, of a larger one the first; `remedy` is what to do without it."""
    try:
        with path.open("rb") as file:
            return file.read(at_most + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {remedy}") from None
    except OSError as exc:
        raise ConfigError(
            f"{path}: cannot be read ({exc.strerror}); let the user running this read it"
        ) from exc


def parse(path: Path, data: bytes) -> dict[str, Any]:
    """Return the tables of a file that was read with `read`."""
    if len(data) > MAX_FILE:
        raise ConfigError(f"{path}: larger than {MAX_FILE // 1024} KiB; is it the right file?")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: byte {exc.start} is not UTF-8; save it as UTF-8") from exc
    except (ValueError, RecursionError) as exc:  # RecursionError: a thousand opening brackets
        raise ConfigError(f"{path}: not valid TOML: {exc}; correct that line") from exc


def read_tables(
    path: Path,
    model: Any,
    raw: Mapping[str, object],
    readers: Mapping[str, Mapping[str, values.Reader[Any]]],
) -> dict[str, Any]:
    """Return the fields of `model`, a dataclass of tables, that `readers` know.

    A table that is left out has its defaults.
    """
    tables: dict[str, Any] = {}
    for table in (field for field in fields(model) if field.name in readers):
        written = raw.get(table.name, {})
        if not isinstance(written, dict):
            raise ConfigError(f"{path}: {table.name}: not a table; write [{table.name}] above it")
        default = table.default_factory
        assert isinstance(default, type)
        tables[table.name] = default(**read_keys(path, table.name, written, readers[table.name]))
    return tables


def read_keys(
    path: Path,
    name: str,
    written: Mapping[str, object],
    readers: Mapping[str, values.Reader[Any]],
) -> dict[str, Any]:
    """Return the checked values of the table `name`."""
    refuse_unknown(path, f"{name}.", written, readers)
    found = {}
    for key, value in written.items():
        try:
            found[key] = readers[key](value)
        except values.BadValue as exc:
            raise ConfigError(f"{path}: {name}.{key}: {exc}") from None
    return found


def refuse_unknown(
    path: Path, prefix: str, written: Mapping[str, object], known: Mapping[str, object]
) -> None:
    """Raise ConfigError for a key that is not known, with the nearest one that is."""
    for key in written:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{path}: {prefix}{ascii(key[:64])[1:-1]}: unknown; {remedy}")


def _check_together(path: Path, config: ServerConfig) -> None:
    """Refuse values that are right alone and wrong side by side."""
    network, tls = config.network, config.tls
    if network.ipv6 is not None and network.mtu < 1280:  # RFC 8200 section 5
        raise ConfigError(
            f"{path}: network.mtu: {network.mtu} is below 1280, which IPv6 needs; "
            'use 1280 to 9000, or network.ipv6 = ""'
        )
    if (tls.certificate is None) != (tls.key is None):
        missing = "certificate" if tls.certificate is None else "key"
        raise ConfigError(f"{path}: tls.{missing}: missing; name certificate and key, or neither")
    if config.limits.connections_per_address > config.limits.connections:
        raise ConfigError(
            f"{path}: limits.connections_per_address: above limits.connections; "
            f"use at most {config.limits.connections}"
        )
