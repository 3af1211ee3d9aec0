"""How vpnctl and vpnd talk: Varlink (JSON objects ended by NUL) over a Unix socket.

`api` declares what can be asked, for both sides; `arguments` says which values are
accepted; `access` knows who is calling and what such a caller may do; `server` accepts
connections and keeps each of them within its bounds.
"""
