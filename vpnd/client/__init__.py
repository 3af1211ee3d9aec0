"""The client role: one tunnel to a server, its network on this host, and the person who asked."""
