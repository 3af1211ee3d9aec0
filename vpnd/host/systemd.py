"""Telling systemd how the service is (sd_notify(3)); nothing happens without systemd."""

import os
from functools import cache

import sdnotify


def ready(status: str) -> None:
    """Start-up is over; `status` is what `systemctl status` shows."""
    _notify(f"READY=1\nSTATUS={status}")


def status(text: str) -> None:
    """Say how the service is, in one line, for `systemctl status`."""
    _notify("STATUS=" + "".join(c if c.isprintable() else " " for c in text))


def stopping() -> None:
    _notify("STOPPING=1\nSTATUS=closing tunnels")


def _notify(state: str) -> None:
    if os.environ.get("NOTIFY_SOCKET"):  # without it the library leaves an open socket behind
        _notifier().notify(state)


@cache
def _notifier() -> sdnotify.SystemdNotifier:
    return sdnotify.SystemdNotifier()
