"""Text to the man macros of groff and mandoc.

In a text `word` is bold.  Everything else stands as it is: nothing in it can be a request.
"""

import re
from collections.abc import Iterable, Iterator

from generate.commands import Command, Option
from generate.keys import Key, Table

ESCAPES = {
    "\\": "\\e",
    "-": "\\-",
    "^": "\\(ha",
    "~": "\\(ti",
    "`": "\\(ga",
    '"': "\\(dq",
    "'": "\\(aq",
}
PROSE = {**ESCAPES, "-": "-", "'": "'", '"': '"'}  # hyphens and quotation marks of a sentence
CODE = re.compile(r"`([^`]+)`")
PATH = re.compile(r"(\S*/\w\S*)")
FIRST_WORD = re.compile(r"[a-z]+(?=['\s,;:]|\.?$)")  # not "pin-sha256:..." or "server.toml"
OPTION_IN_PROSE = re.compile(r"(?<![\w-])--?[a-z][\w-]*")
RESTART = "Takes effect at a restart."


def literal(text: str) -> str:
    """Return a text that can be copied from the page into a terminal."""
    return "".join(ESCAPES.get(char) or _ascii(char) for char in text)


def _ascii(char: str) -> str:
    return char if char.isascii() else f"\\[u{ord(char):04X}]"


def bold(text: str) -> str:
    """Return a literal text in bold."""
    return f"\\fB{literal(text)}\\fR"


def italic(text: str) -> str:
    """Return a literal text in italics: what the reader replaces."""
    return f"\\fI{literal(text)}\\fR"


def prose(text: str) -> str:
    """Return a line of sentences, which is no request whatever it begins with."""
    parts = CODE.split(text)
    shown = "".join(
        bold(part) if number % 2 else _sentence(part) for number, part in enumerate(parts)
    )
    return f"\\&{shown}" if shown[:1] in (".", "'") else shown


def _sentence(text: str) -> str:
    shown, end = "", 0
    for found in OPTION_IN_PROSE.finditer(text):
        shown += _escaped(text[end : found.start()]) + bold(found[0])
        end = found.end()
    return shown + _escaped(text[end:])


def _escaped(text: str) -> str:
    """Return a text with hyphens, but for paths, which can be copied."""
    parts = PATH.split(text)
    return "".join(
        literal(part) if number % 2 else "".join(PROSE.get(c) or _ascii(c) for c in part)
        for number, part in enumerate(parts)
    )


def sentence(text: str) -> str:
    """Return a help text as a sentence."""
    if FIRST_WORD.match(text):
        text = f"{text[:1].upper()}{text[1:]}"
    return f"{text}." if text and text[-1] not in ".!?" else text


def synopsis(command: Command, *, without: Iterable[str] = ()) -> str:
    """Return the line that shows how a command is called; options in `without` left out."""
    words, done = [bold(command.name)], set(without)
    for option in command.options:
        if not done.isdisjoint(option.flags):
            continue
        rivals = [each for each in command.options if option.rivals & set(each.flags)] or [option]
        done.update(flag for each in rivals for flag in each.flags)
        text = " | ".join(f"{bold(each.flags[-1])}{_value(each)}" for each in rivals)
        text = text if option.required else f"[{text}]"
        words.append(f"{text}..." if option.repeats else text)
    for argument in command.arguments:
        text = _choices(argument) if argument.choices else italic(argument.value)
        words.append(text if argument.required else f"[{text}]")
    return " ".join(words)


def _value(option: Option) -> str:
    return f" {italic(option.value)}" if option.value else ""


def _choices(option: Option) -> str:
    return " | ".join(map(bold, option.choices))


def options(found: Iterable[Option]) -> Iterator[str]:
    """Yield the lines of a list of options and arguments, with their groups' titles."""
    group = ""
    for option in found:
        if option.group != group:
            group = option.group
            yield from (".PP", prose(f"{sentence(group).rstrip('.')}:"))
        yield ".TP"
        names = [f"{bold(flag)}{_value(option)}" for flag in option.flags]
        yield ", ".join(names) or italic(option.value)
        yield prose(sentence(option.text))
        told = [choice for choice in option.choices if choice not in option.text]
        if told:
            yield f"One of {', '.join(map(bold, option.choices))}."


def command(found: Command, general: Iterable[str], extra: Iterable[str] = ()) -> Iterator[str]:
    """Yield the subsection of one command."""
    hidden = {*general, "-h", "--help"}
    yield f'.SS "{literal(found.name)}"'
    yield synopsis(found, without=hidden)
    yield from (".PP", prose(sentence(found.text)))
    yield from extra
    yield from options(found.arguments)
    yield from options(each for each in found.options if hidden.isdisjoint(each.flags))


def table(found: Table) -> Iterator[str]:
    """Yield the subsection of one table of a configuration file."""
    yield f'.SS "{literal(found.heading)}"'
    if found.text:
        yield prose(found.text)
    for each in found.keys:
        yield from key(each)


def key(found: Key) -> Iterator[str]:
    """Yield the entry of one key, headed as it stands in the file."""
    yield ".TP"
    default = "" if found.default is None else f" = {literal(found.default)}"
    yield f"{bold(found.name)}{default}"
    yield prose(sentence(found.text))
    if found.kind:
        yield prose(sentence(found.kind))
    if found.restart:
        yield prose(RESTART)
