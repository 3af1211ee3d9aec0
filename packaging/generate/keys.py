"""Configuration files as values: tables and keys with their texts, kinds and defaults.

The texts are those under the fields of the models; the kinds come from the readers that check
the values; a default is shown only as what its reader turns into the field's own.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from vpnd.config import values
from vpnd.config.live import Effect
from vpnd.config.values import Reader

KINDS = {  # where the first line of the reader's docstring speaks to programmers; "": no word
    "values.text": "a text on one line",
    "values.address": "an IP address",
    "values.network": "an IP network",
    "values.routes": 'a list, each an IP network; or ["default"]',
    "values.boolean": "",
    "values.interface": "",
    "values.tunnel_ipv6": 'an IPv6 network, "auto", or "" for none',
    "values.domains": "DNS domains with blanks between",
    "values.optional_host": 'a host name or an IP address, or ""',
    "values.optional_file": 'an absolute path, or ""',
    "load_profile.address": '"HOST:PORT" or "HOST"',
    "load_profile.ca": 'certificates as PEM, or "system"',
    "load_profile.interface": "",
    "load_profile.name": "",
    "load_profile.pin": '"pin-sha256:" and the 44 characters behind it',
    "load_profile.url_path": "the path of a URL, beginning with /",
    "load_profile.include": 'a list, each an IP network; or ["default"]',
}
KEPT = re.compile(r", kept as \(\)")  # a word to programmers in the middle of a text


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table."""

    name: str
    text: str
    kind: str
    default: str | None
    """As it is written in the file; None where there is none."""
    restart: bool = False
    """Whether a new value waits for a restart."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a file."""

    heading: str
    """As it is written, brackets included."""
    text: str
    keys: tuple[Key, ...]


def field_texts(model: type) -> dict[str, str]:
    """Return the texts below a class's fields, inherited ones too, each on one line."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(tree, ast.ClassDef)
        found |= dict(_texts(tree.body))
    return found


def _texts(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for before, node in pairwise(body):
        match before, node:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, KEPT.sub("", " ".join(text.split()))


def read_tables(config: type, readers: Mapping[str, Mapping[str, Reader[Any]]]) -> Iterator[Table]:
    """Yield the tables that `readers` check, each with the model that `config` has for it."""
    known = {field.name: field.default_factory for field in fields(config)}
    for name, keys in readers.items():
        model = known[name]
        assert isinstance(model, type), f"{config.__name__}.{name} has no table for its default"
        yield read_table(f"[{name}]", model, keys)


def mark_restart(tables: Iterable[Table], effects: Mapping[str, Effect]) -> Iterator[Table]:
    """Yield the tables with a mark at the keys that need a restart."""
    for table in tables:
        name = table.heading.strip("[]")
        marked = (
            replace(key, restart=effects[f"{name}.{key.name}"] is Effect.RESTART)
            for key in table.keys
        )
        yield replace(table, keys=tuple(marked))


def read_table(heading: str, model: type, readers: Mapping[str, Reader[Any]]) -> Table:
    """Return one table; a key without a field of its name is explained by those made from it."""
    texts, own = field_texts(model), {field.name: field for field in fields(model)}
    keys = (
        Key(
            name,
            texts.get(name) or _parts(name, texts),
            kind(reader),
            _default(own[name], reader) if name in own else None,
        )
        for name, reader in readers.items()
    )
    return Table(heading, _sentence(model, heading), tuple(keys))


def _sentence(model: type, heading: str) -> str:
    """Return the docstring of a table's model without the heading, which stands above it."""
    text = " ".join((model.__doc__ or "").split())
    before, colon, behind = text.partition(": ")
    text = behind if colon and before.startswith(f"`{heading}`") else text
    return text[:1].upper() + text[1:]


def _parts(name: str, texts: Mapping[str, str]) -> str:
    """Return the texts of the fields that say "From `name`, ..."."""
    origin = f"From `{name}`"
    parts = (text.removeprefix(origin) for text in texts.values() if text.startswith(origin))
    return "; ".join(part.strip(",;. ") for part in parts)


def kind(reader: Reader[Any]) -> str:
    """Return what a reader accepts, in words; empty where nothing tells."""
    given = inspect.getclosurevars(reader).nonlocals if "<locals>" in reader.__qualname__ else {}
    match reader.__qualname__.partition(".")[0], given:
        case "integer", {"low": low, "high": high}:
            return f"a whole number from {low} to {high}"
        case "timer", {"low": low, "high": high}:
            return f"a whole number from {low} to {high}, or 0"
        case "choice", {"allowed": allowed}:
            return "one of " + ", ".join(map(json.dumps, allowed))
        case "several", {"reader": each}:
            return f"a list, each {kind(each)}"
    name = f"{reader.__module__.rpartition('.')[2]}.{reader.__name__}"
    first = (reader.__doc__ or "").split("\n", 1)[0]
    return KINDS.get(name, first.removeprefix("Return ").rstrip("."))


def _default(field: Field[Any], reader: Reader[Any]) -> str | None:
    """Return the first text that is read as the field's default; None where there is none."""
    value = field.default
    if value is MISSING:
        return None
    for written in (_toml(value), "", [], ["default"]):
        try:
            if reader(written) == value:
                return json.dumps(written, default=str)
        except (values.BadValue, TypeError):
            continue
    return None


def _toml(value: object) -> object:
    if isinstance(value, tuple):
        return [_toml(each) for each in value]
    return value if isinstance(value, bool | int | str) else str(value)


def read_sample(path: Path, heading: str, shown: str) -> Table:
    """Return the table `heading` of a commented sample, under the heading `shown`.

    Without a model, the comment above a key is its text.
    """
    keys, comment, inside = [], "", False
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            comment += f" {line[1:].strip()}"
        elif line.startswith("["):
            inside = line == heading
            comment = ""
        else:
            if inside and "=" in line:
                keys.append(Key(line.partition(" =")[0], comment.strip(), "", None))
            comment = ""
    return Table(shown, "", tuple(keys))
