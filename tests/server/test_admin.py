"""What vpnctl may ask of the server: that a refused change leaves nothing behind."""

import asyncio
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from tests.protocol.authority import TestSite
from vpnd.auth.hasher import PasswordHasher
from vpnd.config.model import ServerConfig
from vpnd.errors import StoreError
from vpnd.host.systemd import Kept
from vpnd.policy.leases import Pool
from vpnd.server.admin import Admin
from vpnd.server.network import Network
from vpnd.server.reload import Reloader
from vpnd.server.rotation import Rotation
from vpnd.server.sessions import Sessions
from vpnd.server.supervisor import Supervisor
from vpnd.store.contract import Store
from vpnd.store.memory import MemoryStore


@pytest.fixture
def store() -> Store:
    return MemoryStore()


@pytest.fixture
def admin(store: Store, tmp_path: Path) -> Iterator[Admin]:
    config = ServerConfig()
    pool = Pool(IPv4Network("10.8.0.0/24"), None)
    sessions = Sessions(config, store, pool, lambda _number, _reason: None)
    hasher = PasswordHasher()
    worker = Supervisor(
        lambda: pytest.fail("no worker here"), lambda _: pytest.fail("nor messages"), bool
    )
    TestSite(tmp_path)
    network = Network(config, pool, Kept())
    yield Admin(
        reloader=Reloader(
            config,
            tmp_path / "server.toml",
            tmp_path,
            check=lambda wanted: wanted,
            network=network,
            tell_worker=lambda _: pytest.fail("nor a reload"),
            adopt=bool,
        ),
        state_dir=tmp_path,
        store=store,
        sessions=sessions,
        hasher=hasher,
        network=network,
        worker=worker,
        rotation=Rotation(sessions, lambda _: None),
    )
    hasher.close()


@pytest.mark.parametrize("serial", ["1f", "not hexadecimal"])
def test_a_client_that_is_refused_leaves_no_user_behind(
    admin: Admin, store: Store, serial: str
) -> None:
    """A user nobody asked for could be given a password by mistake later."""
    asyncio.run(admin.add_client("alice", "laptop", "1f", 2_000_000_000, foreign=False))
    with pytest.raises(StoreError):
        asyncio.run(admin.add_client("bob", "phone", serial, 2_000_000_000, foreign=False))
    assert [user.name for user in store.users.all()] == ["alice"]
    assert [client.name for client in store.clients.all()] == ["laptop"]


def test_a_user_who_was_there_stays(admin: Admin, store: Store) -> None:
    """Only what the command itself has made is taken back."""
    asyncio.run(admin.add_client("alice", "laptop", "1f", 2_000_000_000, foreign=False))
    with pytest.raises(StoreError):
        asyncio.run(admin.add_client("alice", "phone", "1f", 2_000_000_000, foreign=False))
    assert store.users.get("alice") is not None
