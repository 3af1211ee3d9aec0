"""What systemd keeps for vpnd: it follows the configuration, and connections go on over it."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.netns.bed import PORT
from tests.netns.client import device_profile, new_client
from tests.netns.manager import index_of, managed
from tests.netns.site import Site
from tests.netns.transfer import Transfer, serve_transfers

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
STORED = ["helper", "tcp-0", "tun-0", "udp-0"]
SIZE = 200 << 20
BACK_S = 3.0  # promised after a restart


@pytest.fixture(scope="module")
def site(make_managed: Callable[..., Site]) -> Site:
    site = make_managed(2, config={"server": {"addresses": ["0.0.0.0"]}})
    site.daemons.start()
    return site


def listening(site: Site) -> set[str]:
    """Return the ADDRESS:PORT of the server's TCP sockets; its UDP sockets must have the same."""
    tcp, udp = (
        {line.split()[3] for line in site.bed.server.run("ss", "-Hln", kind).stdout.splitlines()}
        for kind in ("-t", "-u")
    )
    assert tcp == udp
    return tcp


def test_what_is_stored_follows_the_configuration(site: Site) -> None:
    """The file may have been changed before the restart: port, interface, addresses."""
    daemons = managed(site)
    index, before = index_of(site.bed.server, "pyvpn0"), dict(daemons.config)
    two = {"addresses": ["127.0.0.1", "0.0.0.0"], "port": PORT}
    daemons.configure(before | {"server": two | {"addresses": ["127.0.0.1", "203.0.113.2"]}})
    daemons.restart()
    assert listening(site) == {f"127.0.0.1:{PORT}", f"203.0.113.2:{PORT}"}
    assert daemons.manager.names == ["helper", "tcp-0", "tcp-1", "tun-0", "udp-0", "udp-1"]
    assert index_of(site.bed.server, "pyvpn0") == index

    daemons.configure(before | {"server": {"addresses": ["203.0.113.2"], "port": 4433}})
    daemons.restart()
    assert listening(site) == {"203.0.113.2:4433"}
    assert daemons.manager.names == STORED

    daemons.configure(before | {"network": {"interface": "pyvpn3", "mtu": 1300}})
    daemons.restart()
    assert listening(site) == {f"0.0.0.0:{PORT}"}
    links = site.bed.server.run("ip", "-o", "link").stdout
    assert "pyvpn0" not in links
    assert "pyvpn3" in links
    assert daemons.manager.names == STORED
    daemons.configure(before)
    daemons.restart()
    assert index_of(site.bed.server, "pyvpn0")


def test_a_hang_up_reloads_and_a_refusal_is_in_the_status(site: Site) -> None:
    """`systemctl reload` waits for the answer; the file that was refused must not be forgotten."""
    daemons = managed(site)
    pid, before = daemons.vpnd.pid, dict(daemons.config)
    for config, said in (
        (before | {"session": {"dpd_s": -1}}, "the last reload was refused: .*dpd_s"),
        (before, "connected$"),
    ):
        daemons.configure(config)
        mark = daemons.manager.mark()
        daemons.vpnd.send(signal.SIGHUP)
        assert int(daemons.manager.wait_message("RELOADING", since=mark)["MONOTONIC_USEC"])
        answer = daemons.manager.wait_message("READY", since=mark)
        assert re.search(said, answer["STATUS"])
    assert daemons.vpnd.pid == pid
    assert daemons.vpnd.is_alive


def test_what_is_stored_and_unknown_is_let_go(site: Site) -> None:
    """A later version, taken back, has stored things that this one does not know."""
    daemons = managed(site)
    daemons.manager.stored += [("later-0", os.dup(0)), ("tcp-0", os.dup(0)), ("udp-7", os.dup(0))]
    daemons.restart()
    assert daemons.manager.names == STORED
    assert listening(site) == {f"0.0.0.0:{PORT}"}


def test_a_stop_undoes_everything_and_a_start_finds_the_sessions(site: Site) -> None:
    """After `systemctl stop` nothing is left; whoever was connected may still come back."""
    daemons = managed(site)
    client = site.connect(1, certificate=daemons.add_client("stopped"), dtls=False)
    address = client.wait_connected()["INTERNAL_IP4_ADDRESS"]
    mark = client.process.mark()
    daemons.stop_vpnd()
    daemons.wait_undone()
    assert "pyvpn0" not in site.bed.server.run("ip", "-o", "link").stdout
    daemons.start_vpnd()
    client.wait_reconnected(since=mark)
    assert site.session("stopped")["address4"] == address
    client.disconnect()


@pytest.fixture(scope="module")
def _downloads(site: Site) -> None:
    serve_transfers(site.bed.server, site.gateway4)


@pytest.mark.usefixtures("_downloads")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_tcp_connections_inside_outlive_a_restart(
    site: Site, held: ExitStack, signum: int
) -> None:
    """A stock client and ours: no prompt, the same addresses, and a download goes on."""
    daemons = managed(site)
    stock = site.connect(0, certificate=daemons.add_client(f"stock{signum}"))
    held.callback(stock.disconnect)
    stock.wait_connected()
    own = new_client(site.bed.clients[1])
    held.callback(shutil.rmtree, own.folder)
    held.callback(own.helper.stop)
    own.start(device_profile(daemons, f"own{signum}"))
    held.callback(own.stop)
    own.wait_connected()
    transfers = [
        Transfer.start(client, site.gateway4, up=0, down=SIZE) for client in site.bed.clients
    ]
    for transfer in transfers:
        transfer.wait_mebibytes("down", 3)
    marks = stock.process.mark(), own.vpnd.mark()
    before = {s["user"]: (s["address4"], s["address6"]) for s in daemons.sessions()}
    assert all(transfer.process.is_alive for transfer in transfers)
    began = time.monotonic()
    daemons.restart(signum)
    stock.wait_reconnected(since=marks[0])
    stock_took = time.monotonic() - began
    own.vpnd.wait_for(r"INFO connected\b", since=marks[1])
    took = time.monotonic() - began
    print(f"back after {took:.1f} s, the stock client after {stock_took:.1f} s")
    assert took < 3 * BACK_S
    for transfer in transfers:
        transfer.finish()
    assert {s["user"]: (s["address4"], s["address6"]) for s in daemons.sessions()} == before
    assert own.logins() == 1
