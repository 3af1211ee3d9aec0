"""The server role: the master process that owns everything but the packets."""
