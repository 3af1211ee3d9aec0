"""Which firewall backend is used, and when it is called."""

from helper import forwarding
from helper.firewall_nft import Nftables
from helper.journal import Journal, JournalDirectory
from helper.messages import Refused, SetFirewall
from helper.ruleset import Backend, RuleSet

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Nftables(),)}


def usable() -> list[str]:
    """Return the names of the backends that work on this host, best first."""
    return [name for name, backend in BACKENDS.items() if not backend.lacking()]


def apply(journal: Journal, directory: JournalDirectory) -> None:
    """Store the journal, then bring the rules to what it holds; raise Refused when impossible."""
    wanted = SetFirewall(**journal.filter) if journal.filter else None
    rules = RuleSet(journal.interface, wanted, forwarding.guards(journal), tuple(journal.inner))
    if rules != RuleSet(journal.interface):
        if not usable():
            raise Refused("; ".join(str(backend.lacking()) for backend in BACKENDS.values()))
        journal.firewall = journal.firewall or usable()[0]
    directory.save(journal)
    if journal.firewall:
        BACKENDS[journal.firewall].apply(rules)


def undo(journal: Journal) -> None:
    """Take the rules that the journal names away, and their mention."""
    if journal.firewall:
        BACKENDS[journal.firewall].apply(RuleSet(journal.interface))
    journal.firewall = journal.filter = None
