"""The completion for zsh: one function for each command, on zsh's own _arguments."""

from collections.abc import Iterator

from generate import completion
from generate.commands import Command, Option

HEAD = """#compdef vpnctl
# {made}

_vpnctl_names() {{ # ... KIND
    local -a names
    names=(${{(f)"$(sh -c '{names}' sh ${{@[-1]}})"}})
    compadd "${{@[1,-2]}}" -a names
}}

_vpnctl_profile() {{
    _vpnctl_names "$@" profile
    _files "$@" -g '*.toml'
}}
"""
ACTIONS = {"": " ", "directory": "_files -/", "file": "_files", "profile": "_vpnctl_profile"}
CHOICE = (  # (-): what comes behind the command's name is its own function's business
    "'(-):command:->command'",
    "'(-)*::argument:->argument' && ret=0",
)


def text(top: Command) -> str:
    """Return the file."""
    lines = [HEAD.format(made=completion.MADE, names=completion.NAMES)]
    for command in reversed([*top.everything()]):  # those that are called before their callers
        lines += [*_function(top, command), ""]
    return "\n".join([*lines, '_vpnctl "$@"']) + "\n"


def _name(command: Command) -> str:
    return "_" + "_".join(command.words).replace("-", "_")


def _function(top: Command, command: Command) -> Iterator[str]:
    yield f"{_name(command)}() {{"
    found = completion.own(top, command)
    specs = [spec for each in found for spec in _option(each, command)]
    if command is top:
        yield "    local -a general # for the functions that are called from here"
        yield "    general=("
        for each in completion.general(top):
            yield from (f"        {spec}" for spec in _option(each, top))
        yield "    )"
    if command.commands:
        yield from _choosing(command, specs)
    else:
        specs += [_argument(each, command) for each in command.arguments]
        yield '    _arguments -S "$general[@]"' + " \\" * bool(specs)
        yield from _continued(specs)
    yield "}"


def _choosing(command: Command, specs: list[str]) -> Iterator[str]:
    yield "    local curcontext=$curcontext state line ret=1"
    yield "    local -a commands"
    yield "    typeset -A opt_args"
    yield "    commands=("
    for each in command.commands:
        yield f"        {_quoted(f'{each.words[-1]}:{_line(each.text)}')}"
    yield "    )"
    yield '    _arguments -C -S "$general[@]" \\'
    yield from _continued([*specs, *CHOICE])
    yield "    case $state in"
    yield "    command) _describe -t commands command commands && ret=0 ;;"
    yield "    argument)"
    yield "        case $words[1] in"
    for each in command.commands:
        yield f"        {each.words[-1]}) {_name(each)} && ret=0 ;;"
    yield "        esac"
    yield "        ;;"
    yield "    esac"
    yield "    return ret"


def _continued(words: list[str]) -> Iterator[str]:
    for number, word in enumerate(words, 1):
        yield f"        {word}" + " \\" * (number < len(words))


def _option(option: Option, command: Command) -> Iterator[str]:
    rivals = sorted({*option.rivals, *option.flags})
    before = "*" if option.repeats else f"({' '.join(rivals)})"
    for flag in option.flags:
        after = f":{option.value}:{_action(command, option)}" if option.value else ""
        equals = "=" if option.value and flag.startswith("--") else ""
        yield _quoted(f"{before}{flag}{equals}[{_escaped(option.text)}]{after}")


def _argument(option: Option, command: Command) -> str:
    before = "*:" if option.repeats else ":" if option.required else "::"
    return _quoted(f"{before}{option.value}:{_action(command, option)}")


def _action(command: Command, option: Option) -> str:
    kind = completion.kind(command, option)
    if kind == "words":
        return f"({' '.join(option.choices)})"
    return ACTIONS.get(kind, f"_vpnctl_names {kind}")


def _line(text: str) -> str:
    return text.rstrip(".").replace("\\", "\\\\").replace(":", "\\:")


def _escaped(text: str) -> str:
    for char in "\\[]:":
        text = text.replace(char, f"\\{char}")
    return text


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
