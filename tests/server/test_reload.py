"""Reading the configuration anew: all or nothing, and told key by key."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.protocol.authority import TestSite
from vpnd.config import ServerConfig, load_server
from vpnd.errors import ConfigError, HelperError, VpnError
from vpnd.server.reload import Reloader

OTHER = """
[server]
port = 443
[network]
dns = ["10.8.0.1"]
[session]
dpd_s = 60
[firewall]
masquerade = false
"""


class Server:
    """What a reload reaches, in the order in which it does; each can refuse."""

    def __init__(self, folder: Path) -> None:
        self.site = TestSite(folder)
        self.file = folder / "server.toml"
        self.file.write_text("")
        self.told: list[tuple[str, ServerConfig]] = []
        self.refuses = ""
        self.reloader = Reloader(
            load_server(self.file),
            self.file,
            folder,
            check=self._check,
            network=self,
            tell_worker=self._worker,
            adopt=lambda config: self.told.append(("adopt", config)),
        )

    def _say(self, who: str, config: ServerConfig, error: type[VpnError]) -> None:
        if self.refuses == who:
            raise error(f"refused by {who}")
        self.told.append((who, config))

    def _check(self, config: ServerConfig) -> ServerConfig:
        self._say("check", config, ConfigError)
        return config

    async def change(self, config: ServerConfig) -> None:
        self._say("network", config, HelperError)

    async def _worker(self, config: ServerConfig) -> None:
        self._say("worker", config, ConfigError)

    def reload(self, text: str | None = None) -> tuple[list[str], list[str]]:
        if text is not None:
            self.file.write_text(text)
        self.told.clear()
        return asyncio.run(self.reloader.reload())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield Server(tmp_path)
    logging.disable(logging.NOTSET)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_what_is_new_is_in_force_and_the_rest_is_named(server: Server) -> None:
    """All parts get the same configuration, the port of which is still the old one."""
    applied, needs_restart = server.reload(OTHER)
    assert applied == ["network.dns", "session.dpd_s", "firewall.masquerade"]
    assert needs_restart == ["server.port"]
    assert [who for who, _ in server.told] == ["check", "network", "worker", "adopt"]
    in_force = server.reloader.config
    assert in_force.session.dpd_s == 60
    assert in_force.server.port == 55555
    assert [config for _, config in server.told[1:]] == [in_force] * 3


@pytest.mark.parametrize(
    ("text", "refuses", "said"),
    [
        ("[network]\nmtu = 400\n", "", r"server\.toml: network\.mtu: 400 is below 576; use"),
        ("[[", "", r"server\.toml: not valid TOML: .*; correct that line"),
        (OTHER, "check", "refused by check"),
        (OTHER, "network", "refused by network"),
        (OTHER, "worker", "refused by worker"),
    ],
)
def test_a_refusal_changes_nothing(
    server: Server, caplog: pytest.LogCaptureFixture, text: str, refuses: str, said: str
) -> None:
    """Half a configuration is one that nobody wrote."""
    before = server.reloader.config
    server.refuses = refuses
    with pytest.raises(VpnError, match=said):
        server.reload(text)
    assert server.reloader.config is before
    assert "adopt" not in [who for who, _ in server.told]
    networks = [config for who, config in server.told if who == "network"]
    assert not networks or networks[-1] is before  # what the helper was told is taken back
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.message.startswith("configuration not reloaded, nothing has changed: reason=")
    server.refuses = ""
    assert server.reload("[session]\ndpd_s = 60\n") == (["session.dpd_s"], [])


def test_a_file_that_is_gone_is_refused(server: Server) -> None:
    """An editor that failed must not reset a server to the defaults."""
    server.reload(OTHER)
    server.file.unlink()
    with pytest.raises(ConfigError, match="no such file"):
        server.reload()
    assert server.reloader.config.session.dpd_s == 60


def test_new_content_of_the_keys_files_is_told(server: Server, tmp_path: Path) -> None:
    """A renewed certificate has the name of the old one."""
    assert server.reload() == ([], [])
    TestSite(tmp_path_beside(tmp_path))
    for name in ("server.crt", "server.key"):
        (tmp_path / name).write_bytes((tmp_path / "beside" / name).read_bytes())
    applied, needs_restart = server.reload("")
    assert applied == ["tls.certificate (its content)", "tls.key (its content)"]
    assert needs_restart == []
    assert server.reload() == ([], [])
    client_ca = tmp_path / "beside/ca.crt"
    assert server.reload(f'[tls]\nclient_ca = "{client_ca}"\n')[0] == ["tls.client_ca"]


def tmp_path_beside(path: Path) -> Path:
    beside = path / "beside"
    beside.mkdir()
    return beside


def test_reloads_that_come_together_are_one_after_the_other(server: Server) -> None:
    """vpnctl and systemctl at once."""

    async def both() -> None:
        await asyncio.gather(server.reloader.reload(), server.reloader.reload())

    server.file.write_text(OTHER)
    asyncio.run(both())
    assert [who for who, _ in server.told] == ["check", "network", "worker", "adopt"] * 2


@pytest.mark.parametrize(
    ("level", "is_loud"), [("debug", lambda n: n <= 10), ("error", lambda n: n == 40)]
)
def test_the_log_level_is_live(server: Server, level: str, is_loud: Callable[[int], bool]) -> None:
    """To look at a fault one must not lose its sessions."""
    server.reload(f'[log]\nlevel = "{level}"\n')
    assert is_loud(logging.getLogger("pyvpn").getEffectiveLevel())
