"""From the command line to a running client: profile, secrets, who is asked."""

import argparse
import asyncio
import os
from dataclasses import replace
from pathlib import Path

from vpnd import log
from vpnd.client import master
from vpnd.client.prompts import Answers, Relay, Terminal, read_all, read_secrets
from vpnd.config import values
from vpnd.config.load import MAX_FILE, read
from vpnd.config.load_profile import interface, load_profile, profile_of_url, system_ca
from vpnd.config.profile_options import ClientConfig, ClientTlsOptions
from vpnd.errors import ConfigError, VpnError

CREDENTIAL = "profile"  # as pyvpn-client@.service calls it
RUN_DIR = "/run/pyvpn-client-{}"
STATE_DIR = "/var/lib/pyvpn-client/{}"
FOR_URLS = ("pin", "ca", "certificate", "key", "allow_tls12")  # what a profile says itself


def start(options: argparse.Namespace) -> int:
    """Run a client; return its exit status.  Raises VpnError, and tells whoever asks for us."""
    relay = Relay.of(options.prompt_fd) if options.prompt_fd is not None else None
    try:
        return _start(options, relay)
    except VpnError as exc:
        if relay is not None:
            relay.tell(ended=str(exc))
        raise
    finally:
        if relay is not None:
            relay.close()


def _start(options: argparse.Namespace, relay: Relay | None) -> int:
    config = configuration(options)
    log.setup(config.log.level, anonymise=config.log.anonymise)
    passwords = read_secrets(options.password_fd) if options.password_fd is not None else []
    codes = read_secrets(options.otp_fd) if options.otp_fd is not None else []
    answers = Answers(
        config.client.user,
        relay or Terminal.open(),
        group=config.client.group,
        passwords=passwords,
        codes=codes,
    )
    run_dir = options.run_dir or Path(RUN_DIR.format(config.client.name))
    state_dir = options.state_dir or Path(STATE_DIR.format(config.client.name))
    return asyncio.run(master.run(config, run_dir, state_dir, answers, relay))


def configuration(options: argparse.Namespace) -> ClientConfig:
    """Return the profile that the command line names, with what it says otherwise."""
    if "://" in options.profile:
        config = _of_url(options)
    else:
        given = [name for name in FOR_URLS if getattr(options, name)]
        if given:
            raise ConfigError(
                f"--{given[0].replace('_', '-')}: stands beside a URL only; "
                f"write it into {options.profile}"
            )
        config = load_profile(options.profile, _given(options))
    return _overruled(config, options)


def _given(options: argparse.Namespace) -> bytes | None:
    """Return the profile where not this process but root has opened it, else None.

    The unit of systemd hands it over as a credential (systemd.exec(5), LoadCredential=).
    """
    if options.profile_fd is not None:
        return read_all(options.profile_fd, MAX_FILE)
    credential = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), CREDENTIAL)
    if credential.exists():
        return read(credential, "start the unit again").strip() or None  # empty: no such file
    return None


def _of_url(options: argparse.Namespace) -> ClientConfig:
    pem = {
        name: _pem(getattr(options, name))
        for name in ("ca", "certificate", "key")
        if getattr(options, name) is not None
    }
    if "ca" not in pem and not options.pin:
        pem["ca"] = system_ca()
    tls = ClientTlsOptions(**pem, min_version="1.2" if options.allow_tls12 else "1.3")
    return profile_of_url(options.profile, user=options.user or "", pins=options.pin, tls=tls)


def _pem(path: Path) -> str:
    try:
        return read(path, "name another").decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not PEM; convert it with openssl") from None


def _overruled(config: ClientConfig, options: argparse.Namespace) -> ClientConfig:
    try:
        for name in ("user", "group"):
            if getattr(options, name) is not None:
                who = {name: values.text(getattr(options, name))}
                config = replace(config, client=replace(config.client, **who))
        if options.interface is not None:
            network = replace(config.network, interface=interface(options.interface))
            config = replace(config, network=network)
    except values.BadValue as exc:
        raise ConfigError(f"vpnd client: {exc}") from None
    if options.script is not None:
        script = options.script.absolute()
        config = replace(config, network=replace(config.network, script=script))
    if options.helper_socket is not None:
        config = replace(config, helper=replace(config.helper, socket=options.helper_socket))
    return config
