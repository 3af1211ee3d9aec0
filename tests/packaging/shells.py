"""What a shell offers at the end of a line, asked of the shell itself."""

import os
import pty
import shutil
import subprocess
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent.parent
PEERS = ROOT / ".cache/peers"  # where tests/peers.sh unpacks programs that are not installed
COMPLETIONS = ROOT / "packaging/completion"
TIMEOUT_S = 60.0  # a shell starts in 0.3 s, and vpnctl in 1 s for each list of names


def program(shell: str) -> str | None:
    """Return the installed shell, or the one that tests/peers.sh has unpacked."""
    return shutil.which(shell) or shutil.which(shell, path=PEERS / "bin")


def offers(shell: str, line: str, path: Path) -> set[str]:
    """Return what `shell` offers after `line`, with vpnctl from the folder `path`."""
    found = program(shell)
    assert found is not None
    environment = {"PATH": f"{path}:/usr/bin:/bin", "HOME": str(path), "TERM": "dumb"}
    return ASK[shell](found, line, environment)


def _output(argv: Iterable[str], environment: Mapping[str, str], **more: str) -> list[str]:
    done = subprocess.run(
        [*argv], env={**environment, **more}, capture_output=True, text=True, check=True,
        timeout=TIMEOUT_S, cwd=environment["HOME"],
    )  # fmt: skip
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def _bash(shell: str, line: str, environment: Mapping[str, str]) -> set[str]:
    script = r"""
compopt() { :; }  # knows only a line that is being typed
source "$FILE"
read -r _ _ function _ < <(complete -p vpnctl)
COMP_POINT=${#COMP_LINE}
"$function" && printf '%s\n' "${COMPREPLY[@]}"
"""
    argv = [shell, "--norc", "-c", script]
    return set(_output(argv, environment, COMP_LINE=line, FILE=str(COMPLETIONS / "vpnctl")))


def _fish(shell: str, line: str, environment: Mapping[str, str]) -> set[str]:
    script = 'source $FILE; complete -C "$LINE"'
    found = _output(
        [shell, "--no-config", "-c", script],
        environment,
        LINE=line,
        FILE=str(COMPLETIONS / "vpnctl.fish"),
    )
    words = (each.split("\t")[0] for each in found)
    return {word.rpartition("=")[2] or word for word in words}


ZSHRC = r"""
PS1=
autoload -Uz compinit
compinit -u -D
compadd() { # tell what is offered, but for calls that offer nothing
    local -a found
    if [[ " $* " != *" -"[OAD]" "* ]]; then
        builtin compadd -O found "$@"
        (( $#found )) && print -rl -- $found >&3
    fi
    builtin compadd "$@"
}
offered() { _main_complete; print >&3 }
zle -C offer list-choices offered
bindkey '^I' offer
exec 3>$ZDOTDIR/offers
print >&3
"""


def _zsh(shell: str, line: str, environment: Mapping[str, str]) -> set[str]:
    """Type the line and a tab into an interactive zsh, which has no other way to be asked."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / ".zshenv").write_text(_zsh_paths())
        (folder / ".zshrc").write_text(ZSHRC)
        os.mkfifo(folder / "offers")
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [shell, "-i"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**environment, "ZDOTDIR": name}, cwd=environment["HOME"],
        )  # fmt: skip
        os.close(slave)
        deadline = threading.Timer(TIMEOUT_S, process.kill)
        deadline.start()
        drain = threading.Thread(target=_drain, args=(master,))
        drain.start()
        try:
            with (folder / "offers").open() as told:
                assert told.readline() == "\n"  # ready
                os.write(master, f"{line}\t".encode())
                return set(_paragraph(told))
        finally:
            deadline.cancel()
            process.kill()
            process.wait()
            drain.join()
            os.close(master)


def _zsh_paths() -> str:
    """Return where an unpacked zsh has its modules and functions; they come before its own."""
    modules = [str(path) for path in PEERS.glob("root/usr/lib/*/zsh/*")]
    tree = PEERS / "root/usr/share/zsh/functions"
    folders = [str(path) for path in sorted(tree.rglob("*")) if path.is_dir()]
    if shutil.which("zsh"):
        modules, folders = [], []
    return (
        f"module_path=({' '.join(modules)} $module_path)\n"
        f"fpath=({COMPLETIONS} {' '.join(folders)} $fpath)\n"
    )


def _drain(fd: int) -> None:
    """Read what a terminal shows, so that nobody waits for room in it."""
    try:
        while os.read(fd, 4096):
            pass
    except OSError:  # the last program on it has ended
        pass


def _paragraph(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        if not line.rstrip("\n"):
            return
        yield line.rstrip("\n")
    raise AssertionError("zsh ended before it had offered anything")


ASK = {"bash": _bash, "fish": _fish, "zsh": _zsh}
