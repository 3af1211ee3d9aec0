"""pyvpn's daemon: the server (and later the client) role of the VPN."""

__version__ = "0.1.0"
