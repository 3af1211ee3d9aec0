"""Hosts that lack something: a server says what, and works as far as that can be."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.netns.bed import SERVER6, Bed
from tests.netns.daemons import Daemons
from tests.netns.namespace import run
from tests.netns.site import Site
from tests.netns.snapshot import State, differences, snapshot
from tests.protocol.authority import certificate_of

pytestmark = pytest.mark.netns
SMALL = 128 * 1024  # bytes of a disk that holds the keys, and no database beside them


@pytest.fixture(scope="module")
def bed(make_bed: Callable[[int], Bed]) -> Bed:
    return make_bed(1)


@pytest.fixture(scope="module")
def daemons(bed: Bed) -> Daemons:
    daemons = Daemons(bed.server)
    daemons.prepare()
    daemons.start_helper()
    return daemons


@pytest.fixture(autouse=True)
def before(bed: Bed, daemons: Daemons) -> Iterator[State]:
    """Whatever was missing, nothing is left behind."""
    daemons.configure({})
    before = snapshot(bed.server)
    yield before
    daemons.wait_undone()
    assert differences(before, snapshot(bed.server)) == []


def complaint(daemons: Daemons, status: int) -> str:
    """Start vpnd, which must end with the exit status; return the one line that says why."""
    daemons.start_vpnd(wait=False)
    assert daemons.vpnd.wait(20) == status
    said = daemons.vpnd.text()
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if not re.search(r" (INFO|WARNING) ", line))
    assert line.startswith("vpnd: ")
    return line.removeprefix("vpnd: ")


def mount(*arguments: str) -> None:
    refused = run("mount", *arguments, check=False).stderr
    if refused:
        pytest.skip(f"needs mount, which many containers do not allow: {refused.strip()}")


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Let a folder be on a disk of its own that is full; yield the file that fills it."""
    content = {path.name: path for path in folder.iterdir() if path.suffix != ".sqlite"}
    kept = {name: (path.read_bytes(), path.stat()) for name, path in content.items()}
    of_folder = folder.stat()
    mount("-t", "tmpfs", "-o", f"size={SMALL}", "none", str(folder))
    try:
        os.chown(folder, of_folder.st_uid, of_folder.st_gid)
        folder.chmod(0o700)
        for name, (data, status) in kept.items():
            (folder / name).write_bytes(data)
            os.chown(folder / name, status.st_uid, status.st_gid)
            (folder / name).chmod(status.st_mode & 0o777)
        filling = folder / "filling"
        subprocess.run(["dd", "if=/dev/zero", f"of={filling}", "bs=4096"], check=False,
                       capture_output=True)  # fmt: skip
        yield filling
    finally:
        run("umount", str(folder))


def test_a_disk_that_is_full_at_the_first_start(daemons: Daemons) -> None:
    """It says so, and what it could not write does not keep the next start from working."""
    state = daemons.folder / "state"
    with small_disk(state) as filling:
        line = complaint(daemons, 1)
        assert line.startswith(f"{state / 'pyvpn.sqlite'}: ")
        assert "the disk is full; free some space" in line
        filling.unlink()
        run("mount", "-o", "remount,size=16m", str(state))
        daemons.start_vpnd()
        assert daemons.status()["state"] == "up"
        assert daemons.vpnd.stop() == 0


def test_etc_that_is_read_only(daemons: Daemons) -> None:
    """Nothing of ours is written there while it runs, so nothing has to be said."""
    etc = daemons.folder / "etc"
    mount("--bind", str(etc), str(etc))
    try:
        run("mount", "-o", "remount,bind,ro", str(etc))
        daemons.start_vpnd()
        assert daemons.vpnctl("reload").stdout == "applied\tnothing, nothing has changed\n"
        assert daemons.vpnd.stop() == 0
    finally:
        run("umount", str(etc))


def test_a_clock_before_the_certificate(daemons: Daemons) -> None:
    """Exit status 1: systemd tries again, and the clock may be right by then."""
    certificate = daemons.folder / "state/server.crt"
    before = certificate.read_bytes()
    begin = datetime.now(UTC) + timedelta(days=2)
    certificate.write_bytes(
        certificate_of((daemons.folder / "state/server.key").read_bytes(), begin)
    )
    try:
        line = complaint(daemons, 1)
    finally:
        certificate.write_bytes(before)
    assert line.startswith(
        f"{certificate}: the certificate is not valid before {begin:%Y-%m-%d %H:%M} UTC, and the "
    )
    assert line.endswith("; set the clock (timedatectl)")


def test_ipv6_that_is_switched_off(bed: Bed, daemons: Daemons) -> None:
    """The tunnel has it all the same: or clients would send what is IPv6 outside of it."""
    for which in ("all", "default"):
        bed.server.sysctl(f"net/ipv6/conf/{which}/disable_ipv6", "1")
    try:
        off = snapshot(bed.server)
        daemons.start_vpnd()
        site = Site(bed, daemons)
        daemons.add_user("alice", "correct horse battery staple")
        client = site.connect(user="alice", passwords=["correct horse battery staple"])
        client.wait_connected()
        for gateway in (site.gateway4, site.gateway6):
            bed.client.ping(gateway, count=1)
        client.disconnect()
        assert daemons.vpnd.stop() == 0
        daemons.wait_undone()
        assert differences(off, snapshot(bed.server)) == []
    finally:
        for which in ("all", "default"):
            bed.server.sysctl(f"net/ipv6/conf/{which}/disable_ipv6", "0")
        bed.server.ip(
            f"address add {SERVER6}/64 dev uplink nodad", "route add ::/0 via 2001:db8:2::1"
        )
