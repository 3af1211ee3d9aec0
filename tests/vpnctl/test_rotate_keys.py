"""`vpnctl rotate-keys`: which sessions, and what is reported of each."""

import json
from dataclasses import replace

import pytest

from tests.ipc.caller import STRANGER, as_user, needs_root
from tests.ipc.memory_backend import SESSION, STATUS
from tests.vpnctl.program import Daemon, vpnctl
from vpnctl import daemons
from vpnctl.commands.rotate_keys import CONNECTIONS
from vpnd.ipc.api import KeyRotation, SessionStatus

MANY = 3 * CONNECTIONS


def rotation(session: SessionStatus, reason: str = "", *, overlapped: bool = False) -> KeyRotation:
    return KeyRotation(
        session=session.id,
        user=session.user,
        client=session.client,
        rotated=not reason,
        overlapped=overlapped,
        reason=reason,
        took_ms=1234,
    )


def sessions(daemon: Daemon, *found: SessionStatus, role: str = "server") -> None:
    """Have these sessions, each of which can be rotated."""
    daemon.backend.status = replace(STATUS, sessions=list(found), role=role)  # type: ignore[arg-type]
    daemon.backend.rotations = {session.id: rotation(session) for session in found}


def session(number: int, user: str = "alice") -> SessionStatus:
    return replace(SESSION, id=f"{number:016x}", user=user)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ([], {1, 2, 3}),
        (["--all"], {1, 2, 3}),
        (["--user", "alice"], {1, 3}),
        (["--user", "nobody"], set()),
        (["--session", f"{2:016x}"], {2}),
    ],
)
def test_the_sessions_that_were_meant_get_new_keys(
    daemon: Daemon, which: list[str], expected: set[int]
) -> None:
    """Each once."""
    sessions(daemon, session(1), session(2, "bob"), session(3))
    assert daemon.vpnctl("rotate-keys", *which).returncode == 0
    assert sorted(daemon.backend.rotated) == sorted(f"{number:016x}" for number in expected)


def test_many_sessions_are_all_rotated(daemon: Daemon) -> None:
    """More than there are connections at a time."""
    sessions(daemon, *(session(number) for number in range(MANY)))
    done = daemon.vpnctl("--json", "rotate-keys", "--all")
    assert len(json.loads(done.stdout)["rotations"]) == len(set(daemon.backend.rotated)) == MANY


def test_a_client_has_one_session_and_needs_no_name(daemon: Daemon) -> None:
    """On the client's own host there is nothing to choose."""
    sessions(daemon, replace(SESSION, id=""), role="client")
    assert daemon.vpnctl("rotate-keys").returncode == 0
    assert daemon.backend.rotated == [""]


def test_a_client_that_is_not_connected_is_an_error(daemon: Daemon) -> None:
    """Nothing done must not look like success."""
    sessions(daemon, role="client")
    done = daemon.vpnctl("rotate-keys")
    assert (done.returncode, done.stdout) == (1, "")
    assert "not connected" in done.stderr


def test_a_client_is_named_as_for_other_commands(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run directory is beside the server's."""
    sessions(daemon, replace(SESSION, id=""), role="client")
    monkeypatch.setattr(daemons, "SERVER_RUN_DIR", daemon.run_dir / "pyvpn-server")
    (daemon.run_dir / "pyvpn-client-alice").symlink_to(daemon.run_dir)
    assert vpnctl("rotate-keys", "--client", "alice").returncode == 0
    assert daemon.backend.rotated == [""]
    assert vpnctl("rotate-keys", "--client", "../x").returncode == 2


def test_the_report_says_who_could_not_and_why(daemon: Daemon) -> None:
    """One line a session, and an exit status for scripts."""
    found = [session(1), session(2, "bob"), session(3, "carol"), session(4, "dave")]
    sessions(daemon, *found)
    rotations = daemon.backend.rotations
    rotations[found[1].id] = rotation(found[1], overlapped=True)
    rotations[found[2].id] = rotation(found[2], "it did not answer within 20 s")
    del rotations[found[3].id]  # between the two calls
    done = daemon.vpnctl("rotate-keys", "--all")
    assert done.returncode == 1
    assert [line.split("\t")[1:] for line in done.stdout.splitlines()] == [
        ["USER", "CLIENT", "NEW KEYS", "SECONDS", "REMARK"],
        ["alice", "laptop", "yes", "1.2", "reconnected"],
        ["bob", "laptop", "yes", "1.2", "without a break"],
        ["carol", "laptop", "no", "1.2", "it did not answer within 20 s"],
        ["dave", "laptop", "no", "0.0", "it has left meanwhile"],
    ]
    table = daemon.vpnctl("rotate-keys", "--all", "--table")
    assert "2 of 4 sessions run on new keys" in table.stdout


def test_a_session_that_is_not_there_is_an_error(daemon: Daemon) -> None:
    """With the way to see those that are."""
    done = daemon.vpnctl("rotate-keys", "--session", "ffff")
    assert (done.returncode, done.stdout) == (1, "")
    assert "vpnctl status" in done.stderr


@needs_root
def test_strangers_rotate_nothing(daemon: Daemon) -> None:
    """They see no sessions; "0 of 0" would look like success."""
    sessions(daemon, session(1))
    with as_user(STRANGER):
        done = daemon.vpnctl("rotate-keys", "--all")
    assert done.returncode == 4
    assert daemon.backend.rotated == []
