"""Settings of other links that the tunnel needs: forwarding, and the source check loosened.

IPv4 has a switch for each incoming link.  IPv6 has one since Linux 6.17 (force_forwarding);
before, only conf/all/forwarding counts, and setting it sets every link's own value and makes links
that live by router advertisements deaf to them unless accept_ra is 2.  Where the host forwards
already (conf/all/forwarding is 1) nothing is touched: a link that is off there is off on purpose.

Strict rp_filter drops what comes in on another link than an answer would leave by; with a table
for everybody but one user the kernel takes the tunnel for that link.  Loose is what it becomes.

Several tunnels may claim one setting: each journal holds the value from before all of them, and
the last to let go restores it, if it still is what we wrote.
"""

from collections.abc import Collection, Iterable

from helper import link as links
from helper import sysctl
from helper.journal import Claim, Journal
from helper.ruleset import EVERY_LINK, Guard

ALL4 = "ipv4/conf/all/forwarding"
ALL6 = "ipv6/conf/all/forwarding"
CONF6 = "ipv6/conf"
FORCE = "force_forwarding"
STRICT, LOOSE = "1", "2"  # rp_filter, RFC 3704; the larger of all's and the link's own holds


def wanted(versions: Collection[int], journals: Collection[Journal]) -> dict[str, str]:
    """Return the settings, in order, that forwarding between tunnel and host needs."""
    held = {path for journal in journals for path in journal.claims}
    settings: dict[str, str] = {}
    if 4 in versions and sysctl.read(ALL4) == "0":
        settings |= {f"ipv4/conf/{name}/forwarding": "1" for name in links.carriers(4)}
    if 6 not in versions or (sysctl.read(ALL6) != "0" and ALL6 not in held):
        return settings
    if sysctl.read(f"{CONF6}/all/{FORCE}") is not None:
        return settings | {f"{CONF6}/{n}/{FORCE}": "1" for n in links.carriers(6)}
    listening = [f"{CONF6}/{name}/accept_ra" for name in links.uplinks().values()]
    settings |= {path: "2" for path in listening if path in held or sysctl.read(path) == "1"}
    return settings | {ALL6: "1"}


def loosened(journals: Collection[Journal]) -> dict[str, str]:
    """Return the settings under which packets come in for a user (not root) kept outside."""
    held = {path for journal in journals for path in journal.claims}
    general = sysctl.read("ipv4/conf/all/rp_filter") or "0"
    paths = [f"ipv4/conf/{name}/rp_filter" for name in links.uplinks().values()]
    return {
        path: LOOSE
        for path in paths
        if path in held or max(general, sysctl.read(path) or "0") == STRICT
    }


def record(journal: Journal, others: Collection[Journal], settings: dict[str, str]) -> None:
    """Enter in `journal` what applying `settings` will change; changes nothing else."""
    for path, new in settings.items():
        if path in journal.claims:
            continue
        shared = next((o.claims[path] for o in others if path in o.claims), None)
        old = sysctl.read(path)
        if shared:
            journal.claims[path] = shared
        elif old is not None and old != new:
            along = _links6() if path == ALL6 else {}
            journal.claims[path] = Claim(old, new, along)


def apply(journal: Journal, versions: Collection[int], *, tunnel: bool) -> None:
    """Write what `journal` claims, and the tunnel's own switches (they end with it)."""
    for path, claim in journal.claims.items():
        sysctl.write(path, claim.new)
    on = "1" if tunnel else "0"
    sysctl.write(f"ipv4/conf/{journal.interface}/forwarding", on)
    if 6 in versions:
        sysctl.write(f"{CONF6}/{journal.interface}/{FORCE}", on)


def release(journal: Journal, others: Collection[Journal], paths: Iterable[str]) -> None:
    """Give `paths` of the journal's claims back; the caller stores the journal afterwards."""
    for path in reversed(list(paths)):
        claim = journal.claims[path]
        if not any(path in other.claims for other in others):
            _restore(path, claim)
        del journal.claims[path]


def _restore(path: str, claim: Claim) -> None:
    forwards = path.startswith("ipv4") and path.endswith("forwarding")
    taken_over = forwards and sysctl.read(ALL4) != "0"  # all forward now: not ours
    if taken_over or sysctl.read(path) != claim.new:
        return
    before = _links6() if path == ALL6 else {}
    sysctl.write(path, claim.old)
    for name, value in before.items():  # what another changed since stays as it is
        target = claim.links.get(name, claim.old) if value == claim.new else value
        sysctl.write(f"{CONF6}/{name}/forwarding", target)


def _links6() -> dict[str, str]:
    names = [path.name for path in sorted((sysctl.ROOT / CONF6).iterdir()) if path.name != "all"]
    values = ((name, sysctl.read(f"{CONF6}/{name}/forwarding")) for name in names)
    return {name: value for name, value in values if value is not None}


def guards(journal: Journal) -> tuple[Guard, ...]:
    """Return the links that forward only because of `journal`'s claims."""
    return tuple(
        (family, EVERY_LINK if link == "all" else link)
        for family, _, link, setting in (path.split("/") for path in journal.claims)
        if setting.endswith("forwarding")
    )
