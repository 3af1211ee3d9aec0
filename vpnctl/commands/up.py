"""`vpnctl up`: start a client in the background and ask for what its server wants to know.

The daemon runs as user pyvpn-client.  Until it is connected it speaks with us over a socket, so
that the person is asked here; then we leave it alone.
"""

import argparse
import getpass
import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vpnctl import daemons, output
from vpnd.config.load_profile import device_name, load_profile
from vpnd.errors import ConfigError, VpnError

NAME = "up"
HELP = "connect a client to its server"

USER = "pyvpn-client"
PROFILES = Path("/etc/pyvpn/client")
MAX_LINE = 256 * 1024  # bytes of one line from the daemon: a form and its message
UNPRIVILEGED = ("--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "profile",
        metavar="PROFILE",
        help=f"NAME (of {PROFILES}/NAME.toml), the file itself, or https://HOST[:PORT]",
    )
    parser.add_argument(
        "--foreground", action="store_true", help="stay, and write the log here; Ctrl-C ends it"
    )
    parser.add_argument("--user", metavar="NAME", help="log in as this user")
    parser.add_argument(
        "--group", metavar="NAME", help="log in to this group, where the server offers several"
    )
    parser.add_argument(
        "--script",
        type=Path,
        metavar="FILE",
        help="a vpnc-script, run without privileges, to set up addresses and routes",
    )
    parser.add_argument(
        "--helper-socket",
        type=Path,
        metavar="FILE",
        help="the socket of the privileged helper (default: as the profile says)",
    )
    parser.add_argument(
        "--log-dir",
        type=Path,
        default=daemons.LOGS,
        metavar="DIR",
        help="where the log is written, in client-NAME.log (default: %(default)s)",
    )
    parser.add_argument(
        "--pin",
        action="append",
        metavar="PIN",
        help="with a URL: the server's key, pin-sha256:..., instead of CA and name; may be "
        "repeated",
    )
    parser.add_argument(
        "--allow-tls12", action="store_true", help="with a URL: for servers without TLS 1.3"
    )
    for name, what in (
        ("--password-fd", "the password, and others to try when it is refused"),
        ("--otp-fd", "one-time codes"),
    ):
        parser.add_argument(
            name, type=int, metavar="N", help=f"read from this descriptor, one a line: {what}"
        )


def run(args: argparse.Namespace) -> int:
    """Start it; return when it is connected, or why it is not.  Raises VpnError."""
    path, name = _profile(args.profile)
    run_dir = args.run_dir if daemons.is_named(args) else daemons.client_run_dir(name)
    _make_run_dir(Path(run_dir))
    _free_standard_input(args)
    argv = [*_as_user(), sys.executable, "-P", "-m", "vpnd", "client", str(path or args.profile)]
    argv += ["--run-dir", str(run_dir), *_options(args)]
    fds = [fd for fd in (args.password_fd, args.otp_fd) if fd is not None]
    if path is not None:  # opened here: the file is root's, and the daemon is not root
        fds.append(_opened(path))
        argv += ["--profile-fd", str(fds[-1])]
    if args.foreground:
        return _become(argv, fds)
    log = args.log_dir.absolute() / f"client-{name}.log"
    return _start(args, argv, fds, name, log)


def _profile(written: str) -> tuple[Path | None, str]:
    """Return the profile's file, None for a URL, and the client's name."""
    if "://" in written:
        return None, device_name(urlsplit(written).hostname or "")
    path = Path(written)
    if daemons.NAME.fullmatch(written) and not path.is_file():
        path = PROFILES / f"{written}.toml"
    return path.absolute(), load_profile(path).client.name


def _free_standard_input(args: argparse.Namespace) -> None:
    """Give what stands there another number: the daemon's own standard input is empty."""
    for name in ("password_fd", "otp_fd"):
        if getattr(args, name) == 0:
            setattr(args, name, os.dup(0))


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror}): use sudo") from exc


def _options(args: argparse.Namespace) -> Iterator[str]:
    for name in ("user", "group", "script", "helper_socket", "password_fd", "otp_fd"):
        value = getattr(args, name)
        if value is not None:
            absolute = value.absolute() if isinstance(value, Path) else value
            yield from (f"--{name.replace('_', '-')}", str(absolute))
    for pin in args.pin or ():
        yield from ("--pin", pin)
    if args.allow_tls12:
        yield "--allow-tls12"


def _as_user() -> tuple[str, ...]:
    """Return the command prefix that gives up root's rights, () for somebody else."""
    if os.geteuid() != 0:
        return ()
    return ("setpriv", f"--reuid={USER}", f"--regid={USER}", *UNPRIVILEGED, "--")


def _make_run_dir(path: Path) -> None:
    """Make the daemon's run directory, where root does so for its user."""
    try:
        path.mkdir(mode=0o755, exist_ok=True)
        if os.geteuid() == 0:
            account = pwd.getpwnam(USER)
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    except KeyError:
        raise VpnError(
            f"there is no user {USER}: the package pyvpn makes it, or ./run.sh client"
        ) from None
    except OSError as exc:
        raise VpnError(f"{path}: cannot be made ({exc.strerror}): use sudo") from exc


def _environment() -> dict[str, str]:
    keep = ("PATH", "LANG", "LC_ALL", "TZ", "TERM")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    return environment | {
        "PYTHONPATH": str(Path(daemons.__file__).resolve().parent.parent),
        "PYTHONUNBUFFERED": "1",
    }


def _become(argv: list[str], fds: list[int]) -> int:
    for fd in fds:
        os.set_inheritable(fd, True)
    os.execvpe(argv[0], argv, _environment())  # noqa: S606 - our own program, no shell


def _start(args: argparse.Namespace, argv: list[str], fds: list[int], name: str, log: Path) -> int:
    ours, theirs = socket.socketpair()
    with ours, theirs, os.fdopen(_open_log(log), "wb") as output_file:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                [*argv, "--prompt-fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output_file,
                stderr=output_file,
                pass_fds=[*fds, theirs.fileno()],
                start_new_session=True,  # it outlives this terminal
                cwd="/",
                env=_environment(),
            )
        except OSError as exc:
            raise VpnError(f"{argv[0]}: cannot be run ({exc.strerror})") from exc
        theirs.close()
        try:
            return _accompany(args, ours, process, name, log)
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _open_log(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        return os.open(path, flags, 0o640)
    except OSError as exc:
        raise VpnError(f"{path}: no log can be written ({exc.strerror}): use sudo") from exc


def _accompany(
    args: argparse.Namespace,
    link: socket.socket,
    process: subprocess.Popen[bytes],
    name: str,
    log: Path,
) -> int:
    """Answer the daemon's questions until it is connected or has ended."""
    with link.makefile("rb") as lines:
        while line := lines.readline(MAX_LINE):
            said: dict[str, Any] = json.loads(line)
            if "prompt" in said:
                answer = json.dumps(_ask(said)).encode()
                link.sendall(answer + b"\n")
            elif "ended" in said:
                status = process.wait()
                raise _Ended(f"client {name}: {said['ended']}", status or 1)
            elif said.get("state") == "connected":
                _print_up(args, name, str(said["remote"]))
                return 0
            else:
                shown = " ".join(filter(None, (said.get("state"), said.get("reason"))))
                print(f"vpnctl: {output.clean(shown)} ...", file=sys.stderr)
    status = process.wait()
    raise _Ended(f"client {name} ended: see {log}", status or 1)


def _print_up(args: argparse.Namespace, name: str, remote: str) -> None:
    if args.json:
        output.print_json({"name": name, "state": "connected", "remote": remote})
    else:
        print(f"client {name} is up: connected to {output.clean(remote)}")


class _Ended(VpnError):
    """The daemon is gone; with its exit status."""

    def __init__(self, text: str, exit_status: int) -> None:
        super().__init__(text)
        self.exit_status = exit_status if 0 < exit_status < 128 else 1


def _ask(said: dict[str, Any]) -> dict[str, Any]:
    """Return the person's answers to one form."""
    for line in str(said["prompt"]).splitlines():
        print(output.clean(line), file=sys.stderr)
    if not sys.stdin.isatty():
        print("vpnctl: no terminal to ask: use --password-fd or --otp-fd", file=sys.stderr)
        return {"cancelled": True}
    values = {}
    try:
        for field in said["inputs"]:
            label = output.clean(str(field["label"] or field["name"])).rstrip(": ")
            if field["type"] == "password":
                values[field["name"]] = getpass.getpass(f"{label}: ")
            else:
                print(f"{label}: ", end="", file=sys.stderr, flush=True)
                values[field["name"]] = _line()
    except EOFError:
        return {"cancelled": True}
    return {"values": values}


def _line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")
