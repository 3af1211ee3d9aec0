"""Children that give up their privileges; what runs as root takes made-up numeric users."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vpnd.errors import ConfigError, VpnError
from vpnd.pki.child import Account, ensure_directory, run_as

STRANGER = Account("stranger", 64321, 64322)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes users, which root alone can")


def facts(_: Mapping[str, Any]) -> Mapping[str, Any]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {key: " ".join(value.split()) for key, value in (line.split(":", 1) for line in lines)}


def test_answer_is_plain_data_from_another_process() -> None:
    """Only JSON crosses: no pickle, no object with behaviour."""
    answer = run_as(
        Account.current(), lambda r: {"pid": os.getpid(), "sum": sum(r["n"])}, {"n": [1, 2]}
    )
    assert answer["sum"] == 3
    assert answer["pid"] != os.getpid()


@needs_root
def test_child_has_no_privilege_left() -> None:
    """All user ids, groups and capabilities are gone, and none can come back."""
    found = run_as(STRANGER, facts, {})
    assert found["Uid"] == "64321 64321 64321 64321"
    assert found["Gid"] == "64322 64322 64322 64322"
    assert found["Groups"] == ""
    assert found["NoNewPrivs"] == "1"
    assert {int(found[name], 16) for name in ("CapPrm", "CapEff", "CapAmb")} == {0}


@needs_root
def test_child_has_no_network() -> None:
    """The authority's key has nobody to talk to."""
    found = run_as(STRANGER, lambda _: {"net": Path("/proc/self/net/dev").read_text()}, {})
    assert [line.split(":")[0].strip() for line in found["net"].splitlines()[2:]] == ["lo"]


@needs_root
def test_child_inherits_no_open_file() -> None:
    """A descriptor of root's would be a hole in the wall."""
    with Path("/etc/shadow").open():
        answer = run_as(STRANGER, lambda _: {"n": len([*Path("/proc/self/fd").iterdir()])}, {})
    assert answer["n"] == 5  # three standard ones, the pipe, and the listing itself


@needs_root
def test_child_cannot_read_what_root_can(tmp_path: Path) -> None:
    """The answer to a forbidden path is a sentence that names path and user."""
    secret = tmp_path / "secret"
    secret.touch(0o600)
    with pytest.raises(VpnError, match=r"secret: Permission denied \(as user stranger\)|denied"):
        run_as(STRANGER, lambda r: {"text": Path(r["path"]).read_text()}, {"path": str(secret)})


def become_another(_: Mapping[str, Any]) -> Mapping[str, Any]:
    with pytest.raises(VpnError) as refused:
        run_as(Account("another", STRANGER.uid + 1, STRANGER.gid), facts, {})
    return {"said": str(refused.value)}


def test_without_root_nobody_becomes_another() -> None:
    """The refusal comes before any file is touched."""
    nobody_special = STRANGER if os.geteuid() == 0 else Account.current()
    assert "run this as root" in run_as(nobody_special, become_another, {})["said"]


def fail(_: Mapping[str, Any]) -> Mapping[str, Any]:
    raise VpnError("the moon is full; wait")


def crash(_: Mapping[str, Any]) -> Mapping[str, Any]:
    raise AssertionError


def test_expected_trouble_keeps_its_sentence() -> None:
    """An operator reads the child's words, not the pipe's."""
    with pytest.raises(VpnError, match="the moon is full; wait"):
        run_as(Account.current(), fail, {})


def test_crash_of_the_child_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    """A bug shows its traceback once and never continues as the parent."""
    with pytest.raises(VpnError, match="ended without an answer"):
        run_as(Account.current(), crash, {})
    assert "AssertionError" in capfd.readouterr().err


def test_endless_answer_is_cut(capfd: pytest.CaptureFixture[str]) -> None:
    """The parent reads a bounded amount."""
    with pytest.raises(VpnError, match="ended without an answer"):
        run_as(Account.current(), lambda _: {"x": "x" * 1_000_000}, {})
    capfd.readouterr()


def test_unknown_account_names_the_remedy() -> None:
    """A machine without our users is one command away from having them."""
    with pytest.raises(ConfigError, match="there is no user pyvpn-t-absent: create it with"):
        Account.named("pyvpn-t-absent")


def test_directory_is_made_private_for_its_account(tmp_path: Path) -> None:
    """Root makes it, the account owns it, nobody else enters."""
    account = STRANGER if os.geteuid() == 0 else Account.current()
    ensure_directory(tmp_path / "ca", account, widest=0o700)
    found = (tmp_path / "ca").stat()
    assert (found.st_uid, found.st_gid) == (account.uid, account.gid)
    assert stat.S_IMODE(found.st_mode) == 0o700
    ensure_directory(tmp_path / "ca", account, widest=0o700)


def test_unfit_directories_are_refused_with_a_remedy(tmp_path: Path) -> None:
    """Another's, open, linked or missing directories hold no keys."""
    me = Account.current()
    with pytest.raises(VpnError, match="no such directory; create it first"):
        ensure_directory(tmp_path / "a" / "b", me, widest=0o700)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o750)
    with pytest.raises(VpnError, match="too open to others; chmod 700 it"):
        ensure_directory(tmp_path / "open", me, widest=0o700)
    ensure_directory(tmp_path / "open", me, widest=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(VpnError, match="not a directory"):
        ensure_directory(tmp_path / "link", me, widest=0o755)
    with pytest.raises(VpnError, match=r"belongs to .*, not to stranger; "):
        ensure_directory(tmp_path / "open", STRANGER, widest=0o755)
