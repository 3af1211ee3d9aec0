"""Log lines: one line each, named fields, nothing that could be mistaken for another line."""

import logging
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network

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


@pytest.fixture
def _own_logging() -> Iterator[None]:
    """A daemon sets up the logging of its process; the tests after this one are no daemon's."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.disable(logging.NOTSET)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_own_logging")
def test_with_level_none_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Not even errors, which may name an address; and it can be switched on again."""
    log.setup("none")
    log.error("worker died", address="192.0.2.7")
    logging.getLogger("vpnd.ipc.server").error("192.0.2.7")
    assert capsys.readouterr().err == ""
    log.setup("info")
    log.event("again")
    assert capsys.readouterr().err.endswith(" INFO again\n")


@pytest.mark.usefixtures("_own_logging")
def test_an_anonymised_line_has_no_address_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    """Reasons quote addresses too, and so do tracebacks and other modules' lines."""
    log.setup("info", anonymise=True)
    log.event("x", address="[2001:db8:5:6::7]:443", reason="192.0.2.7 is not reachable")
    logging.getLogger("asyncio").error("from %s", ("192.0.2.8", 4000))
    trouble = OSError("cannot connect to 192.0.2.9:443.")
    logging.getLogger("asyncio").error("failed", exc_info=trouble)
    said = capsys.readouterr().err
    assert 'address=2001:db8:5::/48 reason="192.0.2.0/24 is not reachable"' in said
    assert "192.0.2.8" not in said
    assert "OSError: cannot connect to 192.0.2.0/24.\n" in said


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("192.0.2.7:4000,", "192.0.2.0/24,"),
        ("10.8.0.2 fd12:3456:789a::2", "10.8.0.0/24 fd12:3456:789a::/48"),
        ("fe80::1%eth0", "fe80::/48"),
        ("::ffff:192.0.2.7", "192.0.2.0/24"),
        ("10.8.0.0/16 2001:db8::/32", "10.8.0.0/16 2001:db8::/32"),
        ("0.0.0.0:55555 [::]:55555 127.0.0.1:9 ::1", "0.0.0.0:55555 [::]:55555 127.0.0.1:9 ::1"),
        ("17:54:08 pin-sha256:ab:cd version 1.2.3", "17:54:08 pin-sha256:ab:cd version 1.2.3"),
        ("300.1.2.3", "300.1.2.3"),
    ],
)
def test_addresses_are_cut_and_nothing_else_is(text: str, cut: str) -> None:
    """A /24 and a /48 are a network's, not a person's."""
    assert log.anonymised(text) == cut


@given(st.ip_addresses(), st.integers(1, 65535), st.sampled_from([" ", "=", "(", "'", ", "]))
def test_no_address_survives_being_anonymised(
    address: IPv4Address | IPv6Address, port: int, before: str
) -> None:
    """In whatever way it is written."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    cut = ip_network((address, 24 if address.version == 4 else 48), strict=False)
    for form in {str(address), log.endpoint((str(address), port)), address.exploded}:
        if not (address.is_unspecified or address.is_loopback):
            assert log.anonymised(f"from{before}{form} to") == f"from{before}{cut} to"


@pytest.mark.parametrize(
    ("address", "shown"),
    [(("192.0.2.7", 443), "192.0.2.7:443"), (("2001:db8::7", 443), "[2001:db8::7]:443")],
)
def test_addresses_are_written_as_people_do(address: tuple[str, int], shown: str) -> None:
    """And as the configuration takes them."""
    assert log.endpoint(address) == shown
