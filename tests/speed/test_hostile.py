from __future__ import annotations

import http.server
import json
import os
import threading

import pytest
from benchmarks import hostile


@pytest.fixture
def url():
    """A server that answers 200 to everything, and hangs up on `/hang`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/hang":
                return
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            content = json.dumps({"limits": {"max_texts": 3}}).encode()
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_bodies_keep_to_the_limit_of_bytes_and_the_legal_ones_to_all():
    found = list(hostile.bodies(8, 200_000, 2000))
    assert len({name for name, _, _ in found}) == len(found) > 15
    legal = [body for name, _, body in found if name.startswith(("as many", "with as many", "ranked", "a text"))]
    assert len(legal) == 7
    for body in legal:
        fields = json.loads(body)
        assert len(body) <= 200_000
        for texts in fields.values():
            assert not isinstance(texts, list) or len(texts) == 8 or len(texts) == 1
    assert all(len(body) <= 200_000 for name, _, body in found if "megabyte" not in name and "few" not in name)


def test_what_a_body_costs_is_watched(url):
    assert hostile.post(url, "/v1/score", b"{}") == 200 and hostile.post(url, "/hang", b"") == 0
    assert hostile.in_chunks(url, b"  ", 1) == 200
    assert hostile.limits_of(url) == {"max_texts": 3}
    cost = hostile.measure(url, os.getpid(), lambda: 200, 1.0)
    assert cost.status == 200 and cost.most_mib > 1 and cost.cpu_seconds >= 0
