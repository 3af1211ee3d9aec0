"""What each process of ours takes away from itself before it faces anybody."""

import ctypes
import os

PR_SET_DUMPABLE = 4  # linux/prctl.h
PR_SET_NO_NEW_PRIVS = 38


def harden() -> None:
    """No core file with keys in it, no ptrace by the same user, no way to more privilege."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_DUMPABLE, 0), (PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option})")
    os.umask(0o077)
