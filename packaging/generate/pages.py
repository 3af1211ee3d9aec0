"""The manual pages: hand-written templates in which some lines are replaced.

    @SYNOPSIS PROGRAM      one line for each command
    @OPTIONS PROGRAM       the options of the program itself
    @COMMANDS PROGRAM      a subsection for each command
    @TABLES FILE           a subsection for each table of a configuration file
    @FIELDS                the fields of log lines
    @POLICY                what holds where there is no helper.toml
    @ABOUT PROGRAM COMMAND ... @END      lines for the subsection of that command

`@VERSION@` is the version.  A template is packaging/man/PAGE.in.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import helper.__main__
import vpnctl.main
import vpnd.main
from generate import commands, keys, roff
from generate.commands import Command
from generate.keys import Table
from helper import policy
from vpnd import __version__, log
from vpnd.config import load, load_profile
from vpnd.config.live import EFFECTS
from vpnd.config.model import ServerConfig
from vpnd.config.profile_options import ClientConfig, RemoteOptions
from vpnd.errors import VpnError

ROOT = Path(__file__).parent.parent.parent
TEMPLATES = ROOT / "packaging/man"
HEADING = '.\\" Made by packaging/manual.py from {}: change that, or the program.'
SETTING = (".ad l", ".nh")  # names of options and keys are neither stretched nor broken


class BadTemplate(VpnError):
    """A template asks for what does not exist."""


def programs() -> dict[str, Command]:
    """Return the command lines by the program's name."""
    parsers = (vpnctl.main.parser(), vpnd.main.parser(), helper.__main__.OPTIONS)
    return {parser.prog: commands.read(parser) for parser in parsers}


def tables() -> dict[str, list[Table]]:
    """Return the tables of the configuration files by the file's name."""
    profile = list(keys.read_tables(ClientConfig, load_profile.READERS))
    remotes = keys.read_table("[[remotes]]", RemoteOptions, load_profile.REMOTE_READERS)
    profile.insert(1, remotes)
    server = keys.mark_restart(keys.read_tables(ServerConfig, load.READERS), EFFECTS)
    sample = ROOT / "etc/pyvpn/helper.toml"
    return {
        "server.toml": list(server),
        "client.toml": profile,
        "helper.toml": [keys.read_sample(sample, "[user.pyvpn]", "[user.NAME]")],
    }


def pages() -> dict[Path, str]:
    """Return the text of all manual pages by their path below the repository."""
    return {
        template.with_suffix("").relative_to(ROOT): page(template)
        for template in sorted(TEMPLATES.glob("*.in"))
    }


def page(template: Path) -> str:
    """Return the text of one page.  Raises BadTemplate."""
    lines, about = _take_about(template.read_text().splitlines())
    shown = [HEADING.format(template.name)]
    for line in lines:
        shown += _replaced(line, about) if line.startswith("@") else [line]
        if line.startswith(".TH"):
            shown += SETTING
        if line == ".EE":  # after which groff hyphenates again
            shown.append(SETTING[1])
    if about:
        raise BadTemplate(f"{template.name}: @ABOUT {next(iter(about))}: no such command")
    return "\n".join(shown).replace("@VERSION@", __version__) + "\n"


def _take_about(lines: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the lines without the @ABOUT blocks, and these by their command."""
    rest: list[str] = []
    about: dict[str, list[str]] = {}
    into = rest
    for line in lines:
        if line.startswith("@ABOUT "):
            into = about.setdefault(line.removeprefix("@ABOUT "), [])
        elif line == "@END":
            into = rest
        else:
            into.append(line)
    return rest, about


def _replaced(line: str, about: dict[str, list[str]]) -> Iterator[str]:
    what, _, name = line.partition(" ")
    match what:
        case "@SYNOPSIS":
            general = _general(programs()[name])
            calls = (roff.synopsis(each, without=general) for each in programs()[name].leaves())
            yield "\n.br\n".join(calls)
        case "@OPTIONS":
            program = programs()[name]
            yield from roff.options((*program.arguments, *program.options))
        case "@COMMANDS":
            general = _general(programs()[name])
            for command in programs()[name].leaves():
                yield from roff.command(command, general, about.pop(command.name, ()))
        case "@TABLES":
            for table in tables()[name]:
                yield from roff.table(table)
        case "@FIELDS":
            yield ",\n".join(f"PYVPN_{name.upper()}" for name in sorted(log.FIELDS)) + "."
        case "@POLICY":
            yield from (".EX", *map(roff.literal, _policy(policy.BUILT_IN)), ".EE")
        case _:
            raise BadTemplate(f"{line}: unknown; see the beginning of {__name__}")


def _general(program: Command) -> set[str]:
    """Return the flags that a program with commands takes before them, and --help."""
    own = (flag for option in program.options for flag in option.flags) if program.commands else ()
    return {*own, "-h", "--help"}


def _policy(users: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    for number, (user, table) in enumerate(users.items()):
        yield from [""] * bool(number)
        yield f"[user.{user}]"
        for key, value in table.items():
            yield f"{key} = {json.dumps(value)}"
