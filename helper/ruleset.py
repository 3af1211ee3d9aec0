"""The firewall of one interface as a value, and what a backend must be able to do."""

from dataclasses import dataclass
from typing import Protocol

from helper.messages import SetFirewall

EVERY_LINK = "*"
Guard = tuple[str, str]  # "ipv4" or "ipv6", and a link's name or EVERY_LINK


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Everything that is to be in force for `interface`; replaces what was there, as one change.

    With `filter`:
    - a packet whose source is in its networks, on any link but the tunnel and lo, is dropped;
    - from tunnel to tunnel: as client_to_client says;
    - into the tunnel from elsewhere: only what belongs to a connection made from inside;
    - out of the tunnel: masqueraded, if asked for;
    - TCP through the tunnel: MSS no larger than the path takes, if asked for.
    With `guards`, links that only forward because we switched it on: what is forwarded from them
    neither to nor from a tunnel is dropped.
    A packet for one of the addresses `inner` on any link but the tunnel and lo is dropped.
    """

    interface: str
    filter: SetFirewall | None = None
    guards: tuple[Guard, ...] = ()
    inner: tuple[str, ...] = ()


class Backend(Protocol):
    """One way of putting rules into the kernel, by a short-lived child process."""

    name: str

    def lacking(self) -> str | None:
        """Return what must be done before this backend can be used, or None."""

    def apply(self, rules: RuleSet) -> None:
        """Put `rules` in force, all at once, in place of the interface's earlier ones, if any.

        With only its name given nothing of the interface is left.
        """
