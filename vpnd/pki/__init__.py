"""Certificates: the authority that issues them, what they contain, and pins of public keys.

A root CA signs an issuing CA, and that signs the leaves.  Everything that needs a CA key runs
as a user of its own (`vpnd.pki.child`); the network-facing processes only read `ca.crt`.
"""
