"""What a balancer sees of a host, in one small process: `fake_front.py NAME PORT LOG MODEL...`; standard library only.

Every request for a model is a line of the log before it is answered: when, id, model, and whether the host has that.
The answer names the host. `?sleep_s=` answers later. SIGUSR1 takes all models away, SIGUSR2 brings them back.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar


class Front(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    name: ClassVar[str] = ""
    models: ClassVar[frozenset[str]] = frozenset()
    is_ready: ClassVar[bool] = True
    log_fd: ClassVar[int] = -1

    def do_GET(self) -> None:
        """Health, readiness, and whatever else."""
        parts = self.path.split("/")
        if parts[-1] == "ready" and len(parts) == 5:
            self._answer(200 if self.is_ready and parts[3] in self.models else 404, {})
        else:
            self._answer(200, {"host": self.name})

    def do_POST(self) -> None:
        """Inference."""
        received = len(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
        url = urllib.parse.urlsplit(self.path)
        model = urllib.parse.unquote(url.path).split("/")[3].partition(":")[0]
        known = model in self.models
        given = self.headers.get("X-Request-Id", "-")
        os.write(self.log_fd, f"{time.monotonic():.6f} {given} {model} {'known' if known else 'unknown'}\n".encode())
        time.sleep(float(dict(urllib.parse.parse_qsl(url.query)).get("sleep_s", "0")))
        seen = {key.lower(): ", ".join(self.headers.get_all(key, [])) for key in self.headers}
        self._answer(200 if known else 404, {"host": self.name, "received": received, "headers": seen})

    def _answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.wfile.write(head.encode() + body)

    def log_message(self, format: str, *args: object) -> None:
        """Not on standard error."""


class Server(ThreadingHTTPServer):
    """Connections as fast as a balancer makes them."""

    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nothing to speak of."""


def main() -> None:
    """Serve until a signal ends it."""
    Front.name, port, log, *models = sys.argv[1:]
    Front.models = frozenset(models)
    Front.log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def be_ready(number: int, _: object) -> None:
        Front.is_ready = number == signal.SIGUSR2

    signal.signal(signal.SIGUSR1, be_ready)
    signal.signal(signal.SIGUSR2, be_ready)
    Server(("127.0.0.1", int(port)), Front).serve_forever()


if __name__ == "__main__":
    main()
