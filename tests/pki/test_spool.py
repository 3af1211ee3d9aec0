"""The folders between vpnd and the authority: bounded, and only what belongs there is read."""

import os
import stat
from pathlib import Path

import pytest

from vpnd.pki import spool
from vpnd.pki.spool import MAX_REQUEST


@pytest.fixture
def state(tmp_path: Path) -> Path:
    spool.prepare(tmp_path)
    return tmp_path


def names(state: Path, folder: str = "requests") -> set[str]:
    return {path.name for path in (state / folder).iterdir()}


def test_a_request_waits_until_it_is_answered(state: Path) -> None:
    """One place for each certificate, however often its client asks."""
    assert spool.put_request(state, "1f", "AAAA", "BBBB")
    assert spool.put_request(state, "1f", "AAAB", "BBBB")
    (entry,) = spool.pending(state, 10)
    assert entry == {"serial": "1f", "request": "AAAB", "certificate": "BBBB"}
    spool.answer(state, "1f", "PEM")
    assert spool.pending(state, 10) == []
    assert spool.get_answer(state, "1f") == b"PEM"
    spool.forget(state, "1f")
    assert spool.get_answer(state, "1f") == b""


def test_folders_and_files_are_the_servers_alone(state: Path) -> None:
    """Who asks for what is nobody else's business."""
    spool.put_request(state, "1f", "AAAA", "BBBB")
    spool.answer(state, "2f", "PEM")
    for path in state.rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted


def test_a_refused_request_is_gone_without_an_answer(state: Path) -> None:
    """The client may ask again; nothing waits for ever."""
    spool.put_request(state, "1f", "AAAA", "BBBB")
    spool.answer(state, "1f", "")
    assert names(state) == names(state, "answers") == set()


def test_the_spool_is_bounded(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In files and in bytes; who is there already may ask again."""
    monkeypatch.setattr(spool, "MAX_REQUESTS", 3)
    for serial in ("1", "2", "3"):
        assert spool.put_request(state, serial, "A", "B")
    assert not spool.put_request(state, "4", "A", "B")
    assert spool.put_request(state, "2", "C", "B")
    assert len(spool.pending(state, 2)) == 2
    spool.forget(state, "1")
    assert not spool.put_request(state, "1", "A" * MAX_REQUEST, "B")


@pytest.mark.parametrize("serial", ["", "0", "..", "../1f", "1F", "1f.pem", "1" * 41])
def test_what_is_no_serial_number_names_no_file(state: Path, serial: str) -> None:
    """It comes out of a certificate and goes into a path."""
    with pytest.raises(ValueError, match="not a serial number"):
        spool.put_request(state, serial, "A", "B")
    with pytest.raises(ValueError, match="not a serial number"):
        spool.get_answer(state, serial)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"request": 1}', b"[" * 9000, b"x" * 20_000])
def test_what_is_no_request_is_removed(state: Path, data: bytes) -> None:
    """The reader is a child of the server's user; it stumbles over nothing."""
    (state / "requests/1f.json").write_bytes(data)
    (state / "requests/other").write_bytes(b"x")
    spool.put_request(state, "2f", "A", "B")
    assert [entry["serial"] for entry in spool.pending(state, 10)] == ["2f"]
    assert names(state) == {"2f.json"}


def test_links_and_pipes_are_not_followed(state: Path) -> None:
    """Whoever took vpnd over could point them at other files of its user, or block the reader."""
    secret = state / "server.key"
    secret.write_text('{"request": "A", "certificate": "B"}')
    (state / "requests/1f.json").symlink_to(secret)
    os.mkfifo(state / "requests/2f.json")
    assert spool.pending(state, 10) == []
    assert secret.exists()


def test_what_is_being_written_is_left_alone(state: Path) -> None:
    """The writer renames it in a moment."""
    (state / "requests/.1f.json.00112233aabbccdd").write_bytes(b"{")
    assert spool.pending(state, 10) == []
    assert names(state) == {".1f.json.00112233aabbccdd"}


def test_without_folders_nothing_waits(tmp_path: Path) -> None:
    """The renewal may run before the server ever did."""
    assert spool.pending(tmp_path, 10) == []
    assert spool.get_answer(tmp_path, "1f") == b""
