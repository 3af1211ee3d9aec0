"""The journal: on disk before the change, and readable by the next helper."""

import json
from pathlib import Path

import pytest

from helper import journal
from helper.journal import Claim, Journal, JournalDirectory
from helper.messages import Refused

FULL = Journal(
    "pyvpn0",
    999,
    link_index=7,
    firewall="nftables",
    filter={"networks": ["10.8.0.0/24"], "masquerade": True},
    claims={"ipv6/conf/all/forwarding": Claim("0", "1", {"eth0": "1"})},
    inner=["10.8.0.2", "fd00::2"],
)


def reopened(directory: JournalDirectory) -> dict[str, Journal]:
    """Return what the helper after this one reads (which is killed, so unlocks)."""
    directory.close()
    after = JournalDirectory(directory.path)
    try:
        return after.load()
    finally:
        after.close()


def test_the_next_helper_reads_what_this_one_wrote(tmp_path: Path) -> None:
    """Everything needed for undoing is there."""
    directory = JournalDirectory(tmp_path / "run")
    directory.save(Journal("pyvpn0", 999))
    directory.save(FULL)
    directory.save(Journal("pyvpn1", 998))
    directory.remove("pyvpn1")
    directory.remove("pyvpn2")
    assert reopened(directory) == {"pyvpn0": FULL}


def test_a_write_that_was_cut_short_counts_as_not_made(tmp_path: Path) -> None:
    """The change comes after the journal, so the old journal is still true."""
    directory = JournalDirectory(tmp_path / "run")
    directory.save(FULL)
    (tmp_path / "run/pyvpn0.new").write_text('{"interface": "pyv')
    assert reopened(directory) == {"pyvpn0": FULL}


def test_what_was_noted_before_the_last_boot_is_over(tmp_path: Path) -> None:
    """Kernel settings do not survive a boot; a run directory on disk does."""
    directory = JournalDirectory(tmp_path / "run")
    directory.save(FULL)
    path = tmp_path / "run/pyvpn0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "another"}))
    assert reopened(directory) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"boot": BOOT, "claims": {}}'])
def test_an_unreadable_journal_is_not_passed_over(tmp_path: Path, text: str) -> None:
    """Nobody knows what was changed: a person must look."""
    directory = JournalDirectory(tmp_path / "run")
    boot = json.dumps(journal.BOOT_ID.read_text())
    (tmp_path / "run/pyvpn0.json").write_text(text.replace("BOOT", boot))
    with pytest.raises(Refused, match=r"pyvpn0.json: unreadable .* remove it and reboot"):
        reopened(directory)


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    """Whoever writes a journal has root undo things."""
    (tmp_path / "run").mkdir(mode=0o755)
    with pytest.raises(Refused, match="chmod 0700"):
        JournalDirectory(tmp_path / "run")
    (tmp_path / "run").chmod(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(OSError, match="link"):
        JournalDirectory(tmp_path / "link")


def test_two_helpers_do_not_share_a_directory(tmp_path: Path) -> None:
    """Each would take the other's interfaces for left-overs."""
    first = JournalDirectory(tmp_path / "run")
    with pytest.raises(Refused, match="in use by another pyvpn-helper"):
        JournalDirectory(tmp_path / "run")
    first.close()
    JournalDirectory(tmp_path / "run").close()
