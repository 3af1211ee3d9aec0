"""What can be completed: which names belong behind which option or command.

The names themselves are asked for by one small program for sh, the same in all shells.  Who may
not ask the daemon, or has none, gets no names and no message.
"""

from pathlib import Path

import vpnctl.main
from generate import commands
from generate.commands import Command, Option

MADE = "Made by packaging/manual.py from the parser of vpnctl."
BY_VALUE = {"DIR": "directory", "FILE": "file", "PROFILE": "profile", "ID": "session"}

# Prints the names of the kind $1, one a line; only such as can stand in a command line unquoted.
NAMES = r"""
case $1 in
user) timeout 10 vpnctl user list | awk -F "\t" "NR > 1 { print \$1 }" ;;
client) timeout 10 vpnctl client list | awk -F "\t" "NR > 1 && \$3 !~ /^revoked/ { print \$2 }" ;;
session) timeout 10 vpnctl status | awk -F "\t" "list { print \$1 } \$1 == \"id\" { list = 1 }" ;;
running) set -- /run/pyvpn-client-*/vpnd.sock
    for name; do name=${name%/*}; printf "%s\n" "${name#/run/pyvpn-client-}"; done ;;
profile) for name in /etc/pyvpn/client/*.toml; do basename "$name" .toml; done ;;
esac 2>/dev/null | grep -xE "[a-z0-9][a-z0-9._@-]{0,63}" | sort -u
""".strip()


def tree() -> Command:
    """Return vpnctl's command line."""
    return commands.read(vpnctl.main.parser())


def kind(command: Command, option: Option) -> str:
    """Return what stands for an option's value or an argument, "" where it is anybody's guess."""
    if option.choices:
        return "words"
    if option.value in BY_VALUE:
        return BY_VALUE[option.value]
    section, *actions = command.words[1:] or ("",)
    match option.flags, option.dest:
        case (), "name" if section in ("user", "client"):
            return "" if actions == ["add"] else section
        case (), "name" if section in ("status", "down"):
            return "running"
        case (_, *_), "user" if section != "up":
            return "user"
        case (_, *_), "client":
            return "running"
    return ""


def general(top: Command) -> list[Option]:
    """Return the options that may stand at every command."""
    return [option for option in top.options if "--version" not in option.flags]


def own(top: Command, command: Command) -> list[Option]:
    """Return the options that may stand at this command and not at all of them."""
    known = {flag for option in general(top) for flag in option.flags}
    return [option for option in command.options if known.isdisjoint(option.flags)]


def files() -> dict[Path, str]:
    """Return the completions by their path below the repository."""
    from generate import bash, fish, zsh  # noqa: PLC0415 - they need what stands above

    top, folder = tree(), Path("packaging/completion")
    return {
        folder / "vpnctl": bash.text(top),
        folder / "_vpnctl": zsh.text(top),
        folder / "vpnctl.fish": fish.text(top),
    }
