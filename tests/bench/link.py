"""Two namespaces joined by one veth pair, with nothing between the ends."""

from tests.netns.bed import SERVER4, SERVER6, Bed

CLIENT4, CLIENT6 = "203.0.113.3", "2001:db8:2::3"


class Link(Bed):
    """A bed without an internet: client and server see each other on a link of MTU 1500."""

    def build(self) -> None:
        """Create the namespaces and the link."""
        for namespace in (self.server, self.client):
            namespace.create()
        self.server.ip(f"link add uplink type veth peer name uplink netns {self.client.name}")
        for namespace, own, peer in (
            (self.server, (SERVER4, SERVER6), (CLIENT4, CLIENT6)),
            (self.client, (CLIENT4, CLIENT6), (SERVER4, SERVER6)),
        ):
            namespace.ip(
                f"address add {own[0]}/24 dev uplink",
                f"address add {own[1]}/64 dev uplink nodad",
                "link set uplink up",
                f"route add default via {peer[0]}",
                f"route add ::/0 via {peer[1]}",
            )
        self.client.wait_link("uplink")
        self.server.wait_link("uplink")
