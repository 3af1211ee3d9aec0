"""Telling systemd how the service is (sd_notify(3)); nothing happens without systemd."""

import sdnotify

_notifier = sdnotify.SystemdNotifier()


def ready(status: str) -> None:
    """Start-up is over; `status` is what `systemctl status` shows."""
    _notifier.notify(f"READY=1\nSTATUS={status}")


def stopping() -> None:
    _notifier.notify("STOPPING=1\nSTATUS=closing tunnels")
