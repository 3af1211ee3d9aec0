"""Run a piece of work in a child process that is another user, for good.

    root: vpnctl ──fork──► pyvpn-ca: reads and writes the CA's files   ──JSON──►  vpnctl
                 ──fork──► pyvpn: makes and installs the server's keys ──JSON──►  vpnctl

The child gives up the network and every privilege before it touches a file, so root never
follows a path inside a directory that belongs to somebody else.  It is a fork without exec
because that user need not be able to read the program's own files.  The answer comes through
a pipe as JSON; keys never do.
"""

import ctypes
import json
import os
import pwd
import stat
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vpnd.errors import ConfigError, VpnError

Job = Callable[[Mapping[str, Any]], Mapping[str, Any]]

MAX_ANSWER = 256 * 1024  # bytes; a chain of RSA 4096 certificates has 6 KiB
CA_USER = "pyvpn-ca"
SERVER_USER = "pyvpn"
PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
CLONE_NEWNET = 0x40000000  # linux/sched.h
CRASHED = 70  # sysexits.h EX_SOFTWARE


@dataclass(frozen=True, slots=True)
class Account:
    """A user and group a child becomes."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> "Account":
        """Return the system user `name`.  Raises ConfigError."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise ConfigError(
                f"there is no user {name}: create it with `useradd --system --user-group "
                f"--no-create-home --shell /usr/sbin/nologin {name}`"
            ) from None
        return cls(name, entry.pw_uid, entry.pw_gid)

    @classmethod
    def current(cls) -> "Account":
        """Return whoever runs this."""
        return cls(user_name(os.geteuid()), os.geteuid(), os.getegid())


def system_account(name: str) -> Account:
    """Return the system user `name` for root; anybody else works as who they are."""
    return Account.named(name) if os.geteuid() == 0 else Account.current()


def user_name(uid: int) -> str:
    """Return the name of a user, or its number in words."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def run_as(account: Account, job: Job, request: Mapping[str, Any]) -> Any:
    """Return what `job(request)` returns when it runs as `account`.

    A VpnError or OSError in the job is raised here as VpnError with the same text.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(account, job, request, writer)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read(MAX_ANSWER + 1)
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        answer = json.loads(data) if status == 0 and len(data) <= MAX_ANSWER else {}
    except ValueError:
        answer = {}
    if "error" in answer:
        raise VpnError(str(answer["error"]))
    if "result" not in answer:
        raise VpnError(f"the process of user {account.name} ended without an answer ({status})")
    return answer["result"]


def become(account: Account) -> None:
    """Make this process `account`, with no way back.  Raises VpnError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise VpnError("the kernel does not let go of privileges (PR_SET_NO_NEW_PRIVS)")
    if os.geteuid() == 0 and account.uid != 0:
        libc.unshare(CLONE_NEWNET)  # no network; in a unit's sandbox the unit sees to that
        os.setgroups([])
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    if os.getresuid() != (account.uid,) * 3 or (account.uid and _can_be_root()):
        raise VpnError(f"cannot become user {account.name}; run this as root")


def ensure_directory(path: Path, account: Account, *, widest: int) -> None:
    """Make sure a directory is there and belongs to `account`; a new one has mode 0700.

    Raises VpnError if it is somebody else's or its mode has bits that `widest` has not.
    """
    try:
        path.mkdir(0o700)
        _give(path, account)
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise VpnError(f"{path.parent}: no such directory; create it first") from None
    except OSError as exc:
        raise VpnError(f"{path}: cannot be created ({exc.strerror}); run this as root") from exc
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise VpnError(f"{path}: not a directory; name another one")
    if found.st_uid != account.uid:
        owner = user_name(found.st_uid)
        remedy = f"chown it to {account.name}" if os.geteuid() == 0 else "run this as root"
        raise VpnError(f"{path}: belongs to {owner}, not to {account.name}; {remedy}")
    if stat.S_IMODE(found.st_mode) & ~widest:
        raise VpnError(f"{path}: too open to others; chmod {widest:o} it")


def _give(path: Path, account: Account) -> None:
    """Hand over a directory just made, without following a link put in its place."""
    if account.uid == os.geteuid():
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            os.fchown(fd, account.uid, account.gid)
    finally:
        os.close(fd)


def _can_be_root() -> bool:
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return False
    return True


def _child(account: Account, job: Job, request: Mapping[str, Any], writer: int) -> NoReturn:
    """Do the job, write the answer, end; never return into the parent's code."""
    status = CRASHED
    try:
        os.umask(0o077)
        os.chdir("/")
        _close_all_but(writer)
        answer = _answer(account, job, request)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
        status = 0
    except BaseException:  # whatever it is: the parent's code must not go on here
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _answer(account: Account, job: Job, request: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        become(account)
        return {"result": job(request)}
    except VpnError as exc:
        return {"error": str(exc)}
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        return {"error": f"{where}{exc.strerror} (as user {account.name})"}


def _close_all_but(writer: int) -> None:
    """Close what the parent had open, and put /dev/null on standard input."""
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.closerange(3, writer)
    os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
