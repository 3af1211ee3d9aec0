"""The completion for fish: one line for each command, option and argument."""

from collections.abc import Iterator

from generate import completion
from generate.commands import Command, Option

HEAD = r"""# {made}

function __vpnctl_names --argument-names kind
    sh -c '{names}' sh $kind
end

function __vpnctl_at --argument-names wanted number # COMMAND [NUMBER-OF-ARGUMENTS]
    set -l words (commandline -opc)
    set -l command ''
    set -l count 0
    set -l takes ''
    for word in $words[2..]
        if test -n "$takes"
            set takes ''
        else if string match -q -- '-*' $word
            __vpnctl_takes "$command $word"; and set takes yes
        else if __vpnctl_is_command (string trim -- "$command $word")
            set command (string trim -- "$command $word")
        else
            set count (math $count + 1)
        end
    end
    test "$command" = "$wanted"; or return
    test -z "$number"; or test "$number" = "$count"
end
"""
ACTIONS = {
    "directory": "-x -a '(__fish_complete_directories)'",
    "file": "-r -F",
    "": "-x",
}


def text(top: Command) -> str:
    """Return the file."""
    head = HEAD.format(made=completion.MADE, names=completion.NAMES)
    return "\n".join([head, *_tables(top), "", "complete -c vpnctl -f", *_lines(top)]) + "\n"


def _tables(top: Command) -> Iterator[str]:
    yield "function __vpnctl_is_command --argument-names words"
    yield "    switch $words"
    names = (_quoted(_path(each)) for each in top.everything() if each is not top)
    yield f"        case {' '.join(names)}"
    yield "            return 0"
    yield "    end"
    yield "    return 1"
    yield "end"
    yield ""
    yield "function __vpnctl_takes --argument-names words # COMMAND OPTION"
    yield "    switch $words"
    yield from _cases("*", completion.general(top))
    for command in top.everything():
        yield from _cases(_path(command), completion.own(top, command))
    yield "    end"
    yield "    return 1"
    yield "end"


def _cases(command: str, options: list[Option]) -> Iterator[str]:
    flags = [flag for option in options if option.value for flag in option.flags]
    if flags:
        yield f"        case {' '.join(_quoted(f'{command} {flag}') for flag in flags)}"
        yield "            return 0"


def _lines(top: Command) -> Iterator[str]:
    for option in completion.general(top):
        yield _complete("", _option(top, option))
    for command in top.everything():
        here = f'__vpnctl_at "{_path(command)}"'
        for each in command.commands:
            text = _quoted(each.text.rstrip("."))
            yield _complete(here, f"-a {each.words[-1]} -d {text}")
        for option in completion.own(top, command):
            yield _complete(here, _option(command, option))
        for number, argument in enumerate(command.arguments):
            values = _values(command, argument)
            if values != ACTIONS[""]:
                yield _complete(here if argument.repeats else f"{here} {number}", values)


def _complete(condition: str, rest: str) -> str:
    return f"complete -c vpnctl {f'-n {_quoted(condition)} ' if condition else ''}{rest}"


def _option(command: Command, option: Option) -> str:
    names = (f"-l {f[2:]}" if f.startswith("--") else f"-s {f[1:]}" for f in option.flags)
    words = [*names, f"-d {_quoted(option.text)}"]
    if option.value:
        words.insert(-1, _values(command, option))
    return " ".join(words)


def _values(command: Command, option: Option) -> str:
    kind = completion.kind(command, option)
    if kind == "words":
        return f"-x -a {_quoted(' '.join(option.choices))}"
    if kind == "profile":
        return "-r -F -a '(__vpnctl_names profile)'"
    return ACTIONS.get(kind, f"-x -a '(__vpnctl_names {kind})'")


def _path(command: Command) -> str:
    return " ".join(command.words[1:])


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
