"""Who may call what."""

import asyncio
import grp
import os
import socket
from pathlib import Path

import pytest
from asyncvarlink import varlinksignature

from tests.ipc.caller import STRANGER, RawCaller, as_user, needs_root, served
from tests.ipc.memory_backend import STATUS, MemoryBackend
from vpnd.ipc.access import AccessRules, Caller, caller_of, permits, rules_for
from vpnd.ipc.api import Daemon

METHODS = sorted(
    name for name in dir(Daemon) if varlinksignature(getattr(Daemon, name)) is not None
)
DENIED = "org.varlink.service.PermissionDenied"


@pytest.mark.parametrize("method", METHODS)
def test_a_stranger_may_only_ask_for_the_status(method: str) -> None:
    """A method added later is for administrators until someone decides otherwise."""
    assert permits(f"org.pyvpn.Daemon.{method}", is_admin=False) == (method == "GetStatus")
    assert permits(f"org.pyvpn.Daemon.{method}", is_admin=True)


def test_introspection_is_for_all() -> None:
    """It tells what the source tells."""
    assert permits("org.varlink.service.GetInfo", is_admin=False)


def test_administrators_are_root_the_own_user_and_the_group() -> None:
    """Nobody else, and no group at all where the host has none."""
    rules = AccessRules(own_uid=990, admin_gid=880)
    assert rules.is_admin(Caller(1, 0, frozenset({0})))
    assert rules.is_admin(Caller(1, 990, frozenset({990})))
    assert rules.is_admin(Caller(1, 1000, frozenset({1000, 880})))
    assert not rules.is_admin(Caller(1, 1000, frozenset({1000, 0})))
    without_group = AccessRules(own_uid=990, admin_gid=None)
    assert not without_group.is_admin(Caller(1, 1000, frozenset({1000, 880})))


def test_a_group_that_does_not_exist_makes_nobody_an_administrator() -> None:
    """A missing pyvpn-admin must not open the door."""
    assert rules_for("pyvpn-t-no-such-group").admin_gid is None


def test_the_kernel_names_the_caller() -> None:
    """Uid, groups and pid are those of this process."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        caller = caller_of(ours)
    assert (caller.pid, caller.uid) == (os.getpid(), os.geteuid())
    assert caller.groups == {os.getegid(), *os.getgroups()}


@needs_root
def test_a_caller_in_more_groups_than_fit_keeps_its_primary_group() -> None:
    """The group list is bounded; what does not fit gives no rights."""
    with as_user(STRANGER, groups=tuple(range(5000, 5300)), gid=4999):
        ours, theirs = socket.socketpair()
    with ours, theirs:
        assert caller_of(ours).groups == {4999}


@needs_root
def test_a_stranger_gets_counts_and_no_names(path: Path) -> None:
    """Anything else of the status tells who is here and from where."""

    async def ask() -> None:
        async with served(path, MemoryBackend()):
            with as_user(STRANGER):
                caller = RawCaller(path)
            answer = await caller.call("GetStatus")
            status = answer["parameters"]["status"]
            told = {
                "role": "server",
                "version": STATUS.version,
                "state": "up",
                "users": 2,
                "sessions_count": 1,
                "restricted": True,
            }
            assert {key: value for key, value in status.items() if value} == told
            for method in METHODS:
                if method != "GetStatus":
                    answer = await caller.call(method, name="alice", nonsense=1)
                    assert answer == {"error": DENIED}, method
            answer = await caller.call("org.varlink.service.GetInfo")
            assert "org.pyvpn.Daemon" in answer["parameters"]["interfaces"]
            caller.close()

    asyncio.run(ask())


@needs_root
@pytest.mark.parametrize("how", ["primary", "supplementary"])
def test_the_admin_group_sees_and_changes(path: Path, how: str) -> None:
    """Either kind of membership counts, as the kernel shows it."""
    group = grp.getgrgid(1)

    async def ask() -> None:
        backend = MemoryBackend()
        async with served(path, backend, admin_group=group.gr_name):
            groups = (group.gr_gid,) if how == "supplementary" else ()
            gid = group.gr_gid if how == "primary" else STRANGER
            with as_user(STRANGER, groups=groups, gid=gid):
                caller = RawCaller(path)
            answer = await caller.call("AddUser", name="alice", groups=[], password=None)
            assert answer == {}
            answer = await caller.call("GetStatus")
            assert answer["parameters"]["status"]["sessions"][0]["user"] == "alice"
            assert list(backend.users) == ["alice"]
            caller.close()

    asyncio.run(ask())
