"""Reading configuration, keys and certificates anew while everything goes on.

All is checked first and refused whole; then the helper, which may still refuse, the worker,
which reads the keys for itself, and last the parts of this process, which cannot fail.  Users
are not read again: every login asks the store.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from vpnd import log
from vpnd.config.live import Merged, merge
from vpnd.config.load import load_server
from vpnd.config.model import ServerConfig
from vpnd.errors import VpnError
from vpnd.pki.files import read_pem

NEW_CONTENT = "{} (its content)"


class Changeable(Protocol):
    """The network, as far as a reload needs it."""

    async def change(self, config: ServerConfig) -> None:
        """Put in force what is new; raise HelperError, and then nothing has changed."""
        ...


class Reloader:
    """The configuration in force, and the way to another one."""

    config: ServerConfig
    """In force now; keys that need a restart have the values of the last start."""

    def __init__(
        self,
        config: ServerConfig,
        config_file: Path,
        state_dir: Path,
        *,
        check: Callable[[ServerConfig], ServerConfig],
        network: Changeable,
        tell_worker: Callable[[ServerConfig], Awaitable[None]],
        adopt: Callable[[ServerConfig], None],
    ) -> None:
        """Begin with `config`, which was checked.

        `check` returns what this host can do of a configuration, or raises; `tell_worker`
        raises where the worker refuses; `adopt` tells the rest and does not fail.
        """
        self.config = config
        self._config_file = config_file
        self._state_dir = state_dir
        self._check = check
        self._network = network
        self._tell_worker = tell_worker
        self._adopt = adopt
        self._files = self._read_files(config)
        self._reloading = asyncio.Lock()

    async def reload(self) -> tuple[list[str], list[str]]:
        """Read all again; return what was applied and what needs a restart, by key.

        Raises ConfigError or another VpnError, and then nothing has changed.
        """
        async with self._reloading:
            try:
                return await self._reload()
            except VpnError as exc:
                log.error("configuration not reloaded, nothing has changed", reason=str(exc))
                raise

    async def _reload(self) -> tuple[list[str], list[str]]:
        merged = merge(self.config, self._check(load_server(self._config_file)))
        files = self._read_files(merged.config)
        await self._network.change(merged.config)
        try:
            await self._tell_worker(merged.config)
        except VpnError:
            await self._network.change(self.config)
            raise
        anew = [key for key in files if files[key] != self._files[key]]
        self.config, self._files = merged.config, files
        self._adopt(merged.config)
        return self._report(merged, anew)

    def _read_files(self, config: ServerConfig) -> dict[str, bytes]:
        """Return a digest of each file that the configuration names."""
        tls, state = config.tls, self._state_dir
        files = {
            "tls.certificate": tls.certificate_file(state),
            "tls.key": tls.key_file(state),
            "tls.client_ca": tls.client_ca_file(state),
        }
        return {key: hashlib.sha256(read_pem(path)).digest() for key, path in files.items()}

    def _report(self, merged: Merged, anew: list[str]) -> tuple[list[str], list[str]]:
        applied = [*merged.applied]
        applied += [NEW_CONTENT.format(key) for key in anew if key not in applied]
        needs_restart = [*merged.needs_restart]
        log.event("configuration reloaded", settings=", ".join(applied) or "no changes")
        if needs_restart:
            log.warning("changes that wait for a restart", settings=", ".join(needs_restart))
        log.setup(self.config.log.level, anonymise=self.config.log.anonymise)
        return applied, needs_restart
