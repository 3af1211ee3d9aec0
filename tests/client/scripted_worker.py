"""A worker that talks to no server: it plays a scene from a file, for the tests of the master.

Started in the place of `python -m vpnd.worker`, as `scripted_worker.py SCENE ... FD`.  The scene
is Python; in it `tell(message)` and `await ask(message)` speak to the master, `start` is what it
said first, `heard` a queue of the messages that came later.
"""

import asyncio
import socket
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from vpnd.worker import messages
from vpnd.worker.control import ControlChannel, decode

TUNNEL = messages.TunnelStatus(
    tunnel=1,
    outer="192.0.2.1:55555",
    channel="DTLS",
    cipher="PSK-AES256-GCM-SHA384",
    tls_version="TLSv1.3",
    tls_cipher="TLS_AES_256_GCM_SHA384",
    group="X25519MLKEM768",
    keys_age_s=5,
    rx_bytes=1,
    rx_packets=2,
    tx_bytes=3,
    tx_packets=4,
    drops={},
)


async def main(scene: str, border: socket.socket, start: messages.Message) -> int:
    stopped = asyncio.Event()
    heard: asyncio.Queue[messages.Message] = asyncio.Queue()

    async def receive(message: messages.Message) -> messages.Message | None:
        if isinstance(message, messages.Ping):
            return messages.Ready()
        if isinstance(message, messages.StatusQuery):
            return messages.StatusReply([TUNNEL], {}, [])
        if isinstance(message, messages.Stop):
            stopped.set()
        await heard.put(message)
        return None

    border.setblocking(False)
    channel = ControlChannel(*await asyncio.open_connection(sock=border), receive)
    running = asyncio.create_task(channel.run())
    channel.send(messages.Ready())
    names = {
        **vars(messages), "start": start, "heard": heard, "tell": channel.send,
        "ask": channel.ask, "asyncio": asyncio, "sys": sys,
    }  # fmt: skip
    lines = "".join(f"    {line}\n" for line in scene.splitlines())
    exec(f"async def play():\n{lines}    await asyncio.sleep(0)\n", names)
    await names["play"]()
    stopping = asyncio.create_task(stopped.wait())
    await asyncio.wait({stopping, running}, return_when=asyncio.FIRST_COMPLETED)
    channel.close()
    return 0


def receive_start(border: socket.socket) -> messages.Message:
    data, _fds, _, _ = socket.recv_fds(border, 4, 8)
    (size,) = struct.unpack("!I", data)
    return decode(border.recv(size, socket.MSG_WAITALL))[0]


if __name__ == "__main__":
    own = socket.socket(fileno=int(sys.argv[-1]))
    sys.exit(asyncio.run(main(Path(sys.argv[1]).read_text(), own, receive_start(own))))
