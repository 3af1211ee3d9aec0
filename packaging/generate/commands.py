"""An argparse parser as values: commands with their options, arguments and texts.

Only what the parser itself says is used, so that a command that is added to a program is in its
manual page and its completions without a word here.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SWITCHES = (  # actions that take no value
    argparse._StoreTrueAction,  # noqa: SLF001 - argparse has no other name for them
    argparse._StoreFalseAction,  # noqa: SLF001
    argparse._StoreConstAction,  # noqa: SLF001
    argparse._CountAction,  # noqa: SLF001
    argparse._VersionAction,  # noqa: SLF001
    argparse._HelpAction,  # noqa: SLF001
)
SUBCOMMANDS = argparse._SubParsersAction  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class Option:
    """One option, or one argument, which has no flags."""

    flags: tuple[str, ...]
    dest: str
    value: str
    """What stands for its value, as NAME; empty for a switch."""
    choices: tuple[str, ...]
    text: str
    """One or more sentences without a full stop at the end, with the default."""
    required: bool
    repeats: bool
    group: str
    """Title of its group of options; empty for those without one."""
    rivals: frozenset[str]
    """Flags of options of which only one may be given, its own among them."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program, or one of its commands."""

    words: tuple[str, ...]
    """As they are typed, the program's name first."""
    text: str
    options: tuple[Option, ...]
    arguments: tuple[Option, ...]
    commands: tuple["Command", ...] = field(default=())

    @property
    def name(self) -> str:
        """The words with blanks between."""
        return " ".join(self.words)

    def leaves(self) -> Iterator["Command"]:
        """Yield the commands that can be run, in their order."""
        for command in self.commands:
            yield from command.leaves()
        if not self.commands:
            yield self

    def everything(self) -> Iterator["Command"]:
        """Yield this one and all below it."""
        yield self
        for command in self.commands:
            yield from command.everything()


def read(parser: argparse.ArgumentParser) -> Command:
    """Return what a parser takes."""
    return _read(parser, (parser.prog,), parser.description or "")


def _read(parser: argparse.ArgumentParser, words: tuple[str, ...], text: str) -> Command:
    titles = {
        action: group.title or ""
        for group in parser._action_groups[2:]  # noqa: SLF001 - the first two are argparse's own
        for action in group._group_actions  # noqa: SLF001
    }
    found = [
        _option(parser, action, titles.get(action, ""))
        for action in parser._actions  # noqa: SLF001 - there is no public way to walk a parser
        if not isinstance(action, SUBCOMMANDS) and action.help is not argparse.SUPPRESS
    ]
    return Command(
        words,
        text,
        tuple(option for option in found if option.flags),
        tuple(option for option in found if not option.flags),
        tuple(_subcommands(parser, words)),
    )


def _subcommands(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[Command]:
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, SUBCOMMANDS):
            for pseudo in action._choices_actions:  # noqa: SLF001 - argparse keeps texts there
                below = action.choices[pseudo.dest]
                yield _read(below, (*words, pseudo.dest), below.description or pseudo.help or "")


def _option(parser: argparse.ArgumentParser, action: argparse.Action, group: str) -> Option:
    switch = isinstance(action, SWITCHES) or action.nargs == 0
    return Option(
        flags=tuple(sorted(action.option_strings, key=len)),
        dest=action.dest,
        value="" if switch else _value(action),
        choices=tuple(map(str, action.choices or ())),
        text=_text(parser, action),
        required=action.required,
        repeats=isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+"),  # noqa: SLF001
        group=group,
        rivals=_rivals(parser, action),
    )


def _value(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return action.dest.replace("_", "-").upper()


def _rivals(parser: argparse.ArgumentParser, action: argparse.Action) -> frozenset[str]:
    for group in parser._mutually_exclusive_groups:  # noqa: SLF001
        if action in group._group_actions:  # noqa: SLF001
            flags = (each.option_strings for each in group._group_actions)  # noqa: SLF001
            return frozenset(flag for some in flags for flag in some)
    return frozenset()


def _text(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    if isinstance(action, argparse._HelpAction):  # noqa: SLF001
        return "show a short help and exit"
    if isinstance(action, argparse._VersionAction):  # noqa: SLF001
        return "show the version and exit"
    known = {"prog": parser.prog, **vars(action)}
    text = (action.help or "") % known
    told = "default" in text or action.default in (None, False, argparse.SUPPRESS)
    if told or not isinstance(action.default, str | int | Path):
        return text
    return f"{text} (default: {action.default})" if text else ""
