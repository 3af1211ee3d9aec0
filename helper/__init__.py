"""The one long-running root process: it changes the host for vpnd, and undoes what it changed.

The law of this package: the standard library and pyroute2, nothing else; at most 900 statements;
nobody who talks to it is trusted.  A connection speaks for one interface.  Every change is written
to a journal before it is made, and is undone when the connection ends.
"""
