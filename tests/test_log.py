"""Log lines: one line each, named fields, nothing that could be mistaken for another line."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd import log


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def line(text: str, **values: object) -> str:
    """Return what an event is logged as."""
    logger, handler = logging.getLogger("pyvpn"), Lines()
    logger.addHandler(handler)
    try:
        log.warning(text, **values)
    finally:
        logger.removeHandler(handler)
    return handler.lines[0]


def test_fields_follow_the_event() -> None:
    """Empty ones are left out, zero is not empty."""
    assert line("session opened", user="alice", client=None, reason="", count=0) == (
        "session opened: user=alice count=0"
    )
    assert line("vpnd is stopping") == "vpnd is stopping"


def test_a_field_that_is_not_in_the_table_is_a_bug() -> None:
    """So that nobody logs a secret by a new name."""
    with pytest.raises(ValueError, match="password"):
        log.event("login", password="s3cret")


@given(st.text(max_size=600))
def test_any_value_stays_one_quoted_printable_and_bounded_word(value: str) -> None:
    """User names, agents and reasons come from strangers."""
    shown = line("event", user=value, count=1)
    assert shown.isprintable()
    assert len(shown) <= log.MAX_VALUE + 40
    head, _, rest = shown.partition("user=")
    assert head in {"event: ", "event: count=1"}
    if rest.startswith('"'):
        assert rest.endswith('" count=1')
        assert '"' not in rest[1:-9]
    elif rest:
        assert " " not in rest.removesuffix(" count=1")


def test_under_systemd_a_line_carries_its_priority(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """sd-daemon(3): journalctl -p err finds what somebody has to act on."""
    before = list(logging.getLogger().handlers), logging.getLogger().level
    try:
        for stream, start in (("9:9", "<3>worker died"), (None, "20")):
            monkeypatch.delenv("JOURNAL_STREAM", raising=False)
            if stream:
                monkeypatch.setenv("JOURNAL_STREAM", stream)
            log.setup("info")
            log.error("worker died")
            log.event("quiet", level=logging.DEBUG)
            (said,) = capsys.readouterr().err.splitlines()
            assert said.startswith(start)
    finally:
        logging.getLogger().handlers[:], _ = before
        logging.getLogger().setLevel(before[1])


@pytest.mark.parametrize(
    ("address", "shown"),
    [(("192.0.2.7", 443), "192.0.2.7:443"), (("2001:db8::7", 443), "[2001:db8::7]:443")],
)
def test_addresses_are_written_as_people_do(address: tuple[str, int], shown: str) -> None:
    """And as the configuration takes them."""
    assert log.endpoint(address) == shown
