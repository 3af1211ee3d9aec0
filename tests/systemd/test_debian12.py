"""Debian 12, whose libraries are too old: `PYVPN_SUITE=bookworm ./run.sh test -m systemd`."""

from pathlib import Path

import pytest

from tests.systemd.bed import Bed

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(300)]


def test_apt_names_what_is_too_old(bed: Bed, roots: Path, package: Path) -> None:
    """Better than a traceback at the first start; nothing is installed."""
    system = bed.add("old", roots / "bare")
    system.put(package, "/root/pyvpn.deb")
    said = system.shell("LANG=C apt-get install -y /root/pyvpn.deb", check=False)
    print(said)
    for library in ("python3-cryptography (>= 43)", "python3-openssl (>= 25)"):
        assert f"Depends: {library} but " in said
    assert system.shell("ls /usr/lib/pyvpn /etc/pyvpn", check=False).count("No such file") == 2
