"""A web server on a test host: listener.py PORT. Prints each request as a line, refuses the first of each path."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

seen: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    """Answers 503 to the first request of a path, 200 to the others."""

    def answer(self) -> None:
        """Note the request and answer it."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        print(json.dumps([self.command, self.path, json.loads(body or "{}")]), flush=True)
        self.send_response(200 if self.path in seen else 503)
        seen.add(self.path)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing else: what is printed is one request a line."""

    do_GET = do_POST = answer  # noqa: N815 - names of http.server


HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
