"""Files of keys and certificates: appear whole or not at all, private from the first byte."""

import os
import secrets
from pathlib import Path

from vpnd.errors import ConfigError

PRIVATE = 0o600
PUBLIC = 0o644


def write_new(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Create a file with its whole content; raise FileExistsError where there is one."""
    temporary = _write_temporary(path, data, mode)
    try:
        os.link(temporary, path, follow_symlinks=False)  # unlike rename(2), never overwrites
    finally:
        temporary.unlink()
    sync_directory(path.parent)


def replace(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Replace the content of a file, or create it, in one step."""
    temporary = _write_temporary(path, data, mode)
    try:
        temporary.rename(path)
    except BaseException:
        temporary.unlink()
        raise
    sync_directory(path.parent)


def write_all_new(files: dict[Path, tuple[bytes, int]]) -> None:
    """Create several files (content and mode each), or none of them."""
    written: list[Path] = []
    try:
        for path, (data, mode) in files.items():
            write_new(path, data, mode)
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def read_pem(path: Path) -> bytes:
    """Return a file's content; raise ConfigError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; make the PKI with vpnctl pki init") from None
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror})") from exc


def _write_temporary(path: Path, data: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name[:128]}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, PRIVATE)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
    except BaseException:
        temporary.unlink()
        raise
    return temporary


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
