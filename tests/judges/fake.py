"""A judge's server that answers as it is told: well, late, badly, or never."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: From a request's body and how often the same body came before, to a status and what is sent.
Behavior = Callable[[dict[str, Any], int], tuple[int, Any]]


class Fake:
    """What the server saw."""

    def __init__(self, behavior: Behavior) -> None:
        self.behavior = behavior
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.url = ""


def completion(text: Any, logprobs: dict[str, float] | None = None) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
    if logprobs is not None:
        top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
        choice["logprobs"] = {
            "content": [{"token": top[0]["token"], "logprob": top[0]["logprob"], "top_logprobs": top}]
        }
    return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 2}}


@contextmanager
def serving(behavior: Behavior) -> Iterator[Fake]:
    fake = Fake(behavior)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with fake.lock:
                before = fake.bodies.count(body)
                fake.bodies.append(body)
                fake.keys.append(self.headers.get("Authorization"))
                fake.paths.append(self.path)
                fake.now += 1
                fake.most = max(fake.most, fake.now)
            status, sent = fake.behavior(body, before)
            with fake.lock:
                fake.now -= 1
            if status == 0:  # hangs up
                self.connection.close()
                return
            content = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
