"""A web server for tests that answers well and badly."""

from __future__ import annotations

import threading
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

CREDENTIALS = "Basic " + b64encode(b"somebody:sesame").decode()


class Web:
    """Serves `content` at several paths, each in its own way; `requests` holds what was asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.requests: list[str] = []
        self.half_sent = threading.Event()
        """Set when a request of /half has got one half."""
        self.other_half = threading.Event()
        """Set to send the other half."""
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                web._answer(self)

            def do_GET(self) -> None:
                web._answer(self)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def url(self, path: str) -> str:
        """Where something is."""
        return f"http://{self.address}/{path}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.other_half.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0].strip("/")
        self.requests.append(f"{request.command} {request.path}")
        body = b"" if request.command == "HEAD" else self.content
        length = str(len(self.content))
        try:
            if path == "moved":
                self._head(request, 302, {"Location": "/package.tar", "Content-Length": "0"})
            elif path == "locked" and request.headers.get("Authorization") != CREDENTIALS:
                self._head(request, 401, {"Content-Length": "0"})
            elif path in ("missing", "broken"):
                self._head(request, {"missing": 404, "broken": 500}[path], {"Content-Length": "0"})
            elif path == "headless" and request.command == "HEAD":
                self._head(request, 403, {"Content-Length": "0"})
            elif path == "unknown":
                self._head(request, 200, {"Connection": "close"})
                request.close_connection = True
                request.wfile.write(body)
            elif path == "chunked":
                self._head(request, 200, {"Transfer-Encoding": "chunked"})
                for part in (body[: len(body) // 2], body[len(body) // 2 :], b"") if body else ():
                    request.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            elif path == "cut":
                self._head(request, 200, {"Content-Length": length})
                request.wfile.write(body[: len(body) // 2])
                request.close_connection = True
            elif path == "half":
                self._head(request, 200, {"Content-Length": length})
                if body:
                    request.wfile.write(body[: len(body) // 2])
                    request.wfile.flush()
                    self.half_sent.set()
                    self.other_half.wait(60)
                    request.wfile.write(body[len(body) // 2 :])
            elif path == "silent":
                self.half_sent.set()
                self.other_half.wait(60)
                request.close_connection = True
            elif path == "lying":
                self._head(request, 200, {"Content-Length": "0" if request.command == "HEAD" else length})
                request.wfile.write(body)
            else:
                self._head(request, 200, {"Content-Length": length})
                request.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            request.close_connection = True

    def _head(self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
