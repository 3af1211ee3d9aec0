"""A web server that answers with the address it sees (HTTP, port 80), and a client for it.

python -m tests.netns.web ADDRESS...
"""

import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.netns.namespace import Namespace


class ShowAddress(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"{self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Ipv6Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def fetch(client: Namespace, address: str) -> str:
    """Ask the web server at an address, from a namespace, which address it sees."""
    host = f"[{address}]" if ":" in address else address
    ask = "import sys; from urllib.request import urlopen as get; "
    ask += "print(get(sys.argv[1], timeout=15).read().decode())"
    return client.run(sys.executable, "-c", ask, f"http://{host}/").stdout.strip()


def main() -> None:
    servers = [
        (Ipv6Server if ":" in address else ThreadingHTTPServer)((address, 80), ShowAddress)
        for address in sys.argv[1:]
    ]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    print("ready", flush=True)


if __name__ == "__main__":
    main()
