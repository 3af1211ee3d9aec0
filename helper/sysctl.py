"""Settings below /proc/sys/net."""

from pathlib import Path

from helper.messages import Refused

ROOT = Path("/proc/sys/net")


def read(path: str) -> str | None:
    """Return the setting, or None where this kernel, host or link has no such setting."""
    file = ROOT / path
    return file.read_text().strip() if file.exists() else None


def write(path: str, value: str) -> None:
    """Set the setting unless it is so, or is not there; raise Refused where the host forbids."""
    if read(path) in (value, None):
        return
    try:
        (ROOT / path).write_text(value)
    except OSError as exc:
        raise Refused(
            f"{ROOT / path} cannot be written ({exc.strerror}): "
            "let the helper write it (ProtectKernelTunables=no, or a writable /proc/sys/net)"
        ) from exc
