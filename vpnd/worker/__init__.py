"""The processes that face the network: TLS, DTLS and packets, no privilege, no database."""
