"""The completion for bash, in the form that the package bash-completion loads on demand."""

from collections.abc import Iterator

from generate import completion
from generate.commands import Command, Option

HEAD = r"""# bash completion for vpnctl                                 -*- shell-script -*-
# {made}

_vpnctl_names() {{ # KIND
    sh -c '{names}' sh "$1"
}}

_vpnctl_files() {{ # -d|-f BEGINNING
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen "$1" -- "$2")
}}
"""

TAIL = r"""
_vpnctl() {
    local line=${COMP_LINE:0:COMP_POINT} current word command="" takes="" only_names="" repeats=""
    local arguments=0 index candidate text trim
    local -a words commands options kinds found
    current=${line##*[[:blank:]]}
    read -ra words <<<"${line%"$current"}"
    COMPREPLY=()
    _vpnctl_command ""
    for word in "${words[@]:1}"; do
        if [[ $takes ]]; then
            takes=""
        elif [[ $only_names || $word != -?* ]]; then
            if ((${#commands[@]})) && [[ " ${commands[*]} " == *" $word "* ]]; then
                command+=${command:+ }$word
                _vpnctl_command "$command"
            else
                ((++arguments))
            fi
        elif [[ $word == -- ]]; then
            only_names=yes
        else
            takes=$(_vpnctl_takes "$command" "$word")
        fi
    done

    text=$current
    if [[ ! $takes && ! $only_names && $current == --*=* ]]; then
        takes=$(_vpnctl_takes "$command" "${current%%=*}")
        text=${current#*=}
    elif [[ ! $takes && ! $only_names && $current == -* ]]; then
        found=("${options[@]}")
    elif [[ ! $takes ]]; then
        found=("${commands[@]}")
        [[ ! $repeats ]] || ((arguments < ${#kinds[@]})) || arguments=-1
        takes=${kinds[arguments]-}
    fi

    case $takes in
    "" | value) ;;
    directory) _vpnctl_files -d "$text" ;;
    file) _vpnctl_files -f "$text" ;;
    words:*) read -ra found <<<"${takes#words:}" ;;
    *)
        mapfile -t found < <(_vpnctl_names "$takes")
        [[ $takes != profile || $text != */* ]] || _vpnctl_files -f "$text"
        ;;
    esac
    for candidate in "${found[@]}"; do
        [[ $candidate == "$text"* ]] && COMPREPLY+=("$candidate")
    done

    # readline replaces only what follows the last of these
    for trim in @ :; do
        if [[ $text == *"$trim"* && $COMP_WORDBREAKS == *"$trim"* ]]; then
            for index in "${!COMPREPLY[@]}"; do
                COMPREPLY[index]=${COMPREPLY[index]#"${text%"${text##*"$trim"}"}"}
            done
            break
        fi
    done
}

complete -F _vpnctl vpnctl
"""


def _tables(top: Command) -> Iterator[str]:
    """Yield the two functions that know the commands."""
    general = completion.general(top)
    yield "_vpnctl_command() { # COMMAND: set what may follow it"
    yield '    case "$1" in'
    for command in top.everything():
        flags = (o.flags[-1] for o in (*general, *completion.own(top, command)))
        kinds = (f'"{_kind(command, each)}"' for each in command.arguments)
        many = any(each.repeats for each in command.arguments[-1:])
        yield f"    {_quoted(command)})"
        yield f"        commands=({' '.join(each.words[-1] for each in command.commands)})"
        yield f"        options=({' '.join(flags)})"
        yield f"        kinds=({' '.join(kinds)})"
        yield f"        repeats={'yes' if many else ''}"
        yield "        ;;"
    yield "    esac"
    yield "}"
    yield ""
    yield "_vpnctl_takes() { # COMMAND OPTION: print what its value is, nothing for a switch"
    yield '    case "$1 $2" in'
    for option in general:
        yield from _takes('*" "', top, option)
    for command in top.everything():
        for option in completion.own(top, command):
            yield from _takes(f'{_quoted(command)}" "', command, option)
    yield "    esac"
    yield "}"


def _takes(before: str, command: Command, option: Option) -> Iterator[str]:
    if option.value:
        patterns = " | ".join(f"{before}{flag}" for flag in option.flags)
        yield f'    {patterns}) echo "{_kind(command, option) or "value"}" ;;'


def _quoted(command: Command) -> str:
    return f'"{" ".join(command.words[1:])}"'


def _kind(command: Command, option: Option) -> str:
    found = completion.kind(command, option)
    return f"words:{' '.join(option.choices)}" if found == "words" else found


def text(top: Command) -> str:
    """Return the file."""
    head = HEAD.format(made=completion.MADE, names=completion.NAMES)
    return "\n".join([head, *_tables(top)]) + "\n" + TAIL
