"""How a worker fits its work to what the system gives it."""

from dataclasses import replace

import pytest

from vpnd.worker.files import BACKLOG, OWN_FILES, within_fd_limit
from vpnd.worker.messages import Start

SETTINGS = Start(
    tcp_listeners=2,
    udp_sockets=2,
    certificate="",
    key="",
    client_ca="",
    allow_tls12=False,
    dtls=True,
    port=55555,
    connections=4096,
    connections_per_address=64,
    handshakes_pending=128,
    login_timeout_s=240,
    log_level="info",
)


def test_connections_that_fit_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """systemd gives half a million files."""
    assert within_fd_limit(SETTINGS, 524288) is SETTINGS
    assert caplog.text == ""


@pytest.mark.parametrize("files", [64, 1024, 4096])
def test_there_are_fewer_connections_where_files_are_few(
    caplog: pytest.LogCaptureFixture, files: int
) -> None:
    """Who is over the limit is refused in good order, not by an accept that fails."""
    room = within_fd_limit(SETTINGS, files).connections
    assert room == max(files // 2, files - OWN_FILES - 2 * BACKLOG)
    assert within_fd_limit(SETTINGS, files) == replace(SETTINGS, connections=room)
    assert "raise LimitNOFILE" in caplog.text
