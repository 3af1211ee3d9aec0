"""A socket of an older kernel on a link that loopback cannot play."""

import errno
import socket


class NarrowLink:
    """A link that carries 1000 bytes; kernels before 6.14 say EINVAL to a train."""

    family = socket.AF_INET

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def setsockopt(self, *_: object) -> None: ...

    def setblocking(self, flag: bool) -> None: ...

    def sendmsg(self, pieces: list[memoryview], ancillary: list[object], *_: object) -> int:
        data = b"".join(pieces)
        if ancillary and len(data) > 1000:
            raise OSError(errno.EINVAL, "Invalid argument")
        if len(data) > 1000:
            raise OSError(errno.EMSGSIZE, "Message too long")
        self.sent.append(data)
        return len(data)
