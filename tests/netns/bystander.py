"""Another client at work: data through the tunnel and back, all the time, unharmed."""

import os
import socket
import threading
import time
from collections.abc import Sequence

from tests.netns.namespace import inside
from tests.netns.openconnect import OpenConnect
from tests.netns.site import Site
from tests.netns.transfer import receive_exactly

PORT = 5007
CHUNK = 16 * 1024  # a dozen packets
PAUSE_S = 0.02  # between two chunks: leaves the machine to the test
MAX_STALL_S = 3.0  # a lost tunnel costs more; a machine with work to do costs less
CHATTER = {"link-local", "multicast"}  # what kernels say on a new link, dropped by design


class Bystander:
    """A user's openconnect and a TCP flow through it that must never notice anything."""

    def __init__(self, site: Site, index: int, user: str) -> None:
        self._site = site
        self._user = user
        self._client: OpenConnect = site.connect(
            index, certificate=site.daemons.add_client(user, "--user", user)
        )
        self._client.wait_connected()
        self._session = site.session(user)["id"]
        server, namespace = site.bed.server, site.bed.clients[index]
        self._listener = inside(server, lambda: socket.create_server((site.gateway4, PORT)))
        self._sock = inside(
            namespace, lambda: socket.create_connection((site.gateway4, PORT), timeout=30)
        )
        self._echoing, _ = self._listener.accept()
        self._stopping = threading.Event()
        self._worst_s = 0.0
        self._chunks = 0
        self._trouble = ""
        self._threads: Sequence[threading.Thread] = [
            threading.Thread(target=work, daemon=True) for work in (self._echo, self._flow)
        ]
        for thread in self._threads:
            thread.start()

    def _echo(self) -> None:
        with self._echoing as sock:
            while data := sock.recv(65536):
                sock.sendall(data)

    def _flow(self) -> None:
        try:
            while not self._stopping.wait(PAUSE_S):
                chunk, began = os.urandom(CHUNK), time.monotonic()
                self._sock.sendall(chunk)
                if receive_exactly(self._sock, CHUNK) != chunk:
                    raise ConnectionError("other bytes came back")
                self._worst_s = max(self._worst_s, time.monotonic() - began)
                self._chunks += 1
        except OSError as exc:
            self._trouble = str(exc) or type(exc).__name__

    def check(self) -> None:
        """Fail unless the flow goes on and never waited long."""
        before, deadline = self._chunks, time.monotonic() + MAX_STALL_S
        while self._chunks < before + 2 and time.monotonic() < deadline and not self._trouble:
            time.sleep(PAUSE_S)
        assert not self._trouble
        assert self._chunks >= before + 2, "the flow has stopped"
        assert self._worst_s < MAX_STALL_S

    def stop(self) -> None:
        """End the flow, then the client; fail unless it had one and the same tunnel all along."""
        self.check()
        session = self._site.session(self._user)
        assert session["id"] == self._session
        assert session["drops"].keys() <= CHATTER
        assert "reconnect" not in self._client.process.text().lower()
        self._stopping.set()
        self._threads[1].join()
        self._sock.close()
        self._threads[0].join()
        self._listener.close()
        self._client.disconnect()
