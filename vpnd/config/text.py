"""Values of a configuration as its file would have them, in TOML."""

import json
from typing import Any

from vpnd.config.live import flat
from vpnd.config.model import ServerConfig

NO_ROUTES = "network.routes"  # kept as (), which the file calls ["default"]


def settings(config: ServerConfig) -> dict[str, str]:
    """Return all keys with their values in TOML, in the order of the sample."""
    return {key: _literal(_plain(key, value)) for key, value in flat(config).items()}


def _plain(key: str, value: Any) -> Any:
    """Return what TOML knows: a text, a number, true or false, a list."""
    if key == NO_ROUTES and not value:
        return ["default"]
    if value is None:
        return ""
    if isinstance(value, tuple):
        return [_plain("", entry) for entry in value]
    return value if isinstance(value, bool | int) else str(value)


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return json.dumps(value, ensure_ascii=not str(value).isprintable())
