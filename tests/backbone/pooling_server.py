"""A small pooling server that answers as vLLM or SGLang do, rightly or in one of the ways that go wrong."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification


@cache
def _load(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


class FakeServer:
    """One tiny reward model behind the HTTP of vLLM or SGLang.

    Attributes:
        kind: "vllm" or "sglang".
        wrong: what it does wrong to embeddings or scores; "" for nothing.
        classifies: whether vLLM's /classify is offered beside the embeddings.
        requests: (path, body) of what was asked, and `headers` of the last.
        first: answers (status, headers, body) given before all others, whatever is asked.
        meet: as many requests as this barrier has parties must be under way before one is answered.
    """

    def __init__(
        self, folder: Path, kind: str = "vllm", wrong: str = "", classifies: bool = False, **card: Any
    ) -> None:
        self.model = self.load(folder)
        self.kind, self.wrong, self.classifies = kind, wrong, classifies
        self.card = {"id": str(folder), "object": "model", "owned_by": kind, "root": str(folder), "max_model_len": 128}
        self.card |= card
        self.requests: list[tuple[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.first: list[tuple[int, dict[str, str], str]] = []
        self.meet: threading.Barrier | None = None
        self.under_way = self.most_under_way = 0
        self.url = ""
        self._lock = threading.Lock()

    def load(self, folder: Path) -> Any:
        """The model in a folder."""
        return _load(folder)

    def states(self, ids: list[int]) -> Tensor:
        """Hidden states [L, d] as they go into the head."""
        with torch.no_grad():
            return self.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]

    def pooled(self, ids: list[int], activation: bool) -> Any:
        """The vector of one text, as lists."""
        states = self.states(ids)
        last = states[-1]
        if activation:
            last = last / last.norm()
        made = {
            "softmax": last.softmax(0), "sigmoid": last.sigmoid(), "short": last[:-1], "tokens": states.flatten(),
            "nested": states, "first": states[0], "mean": states.mean(0),
            "constant": torch.arange(len(last)) - 3.0, "nan": last * torch.nan,
            "infinite": torch.cat([torch.tensor([torch.inf]), last[1:]]),
            "score": self.model.score(last).sigmoid(),
        }  # fmt: skip
        return made.get(self.wrong, last).tolist()

    def score(self, ids: list[int]) -> list[float]:
        """What the server's own head says."""
        with torch.no_grad():
            value = float(self.model.score(self.states(ids)[-1]))
        made = {
            "softmaxed score": [1.0], "sigmoid score": [float(torch.tensor(value).sigmoid())],
            "other head": [float(self.states(ids)[-1].sum())], "shifted score": [value + 3.0],
            "two labels": [value, -value], "nan score": [float("nan")],
        }  # fmt: skip
        return made.get(self.wrong, [value])

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON for a request."""
        if path == "/v1/models":
            return 200, {"object": "list", "data": [self.card]}
        if body.get("model") != self.card["id"]:
            return 404, {"error": {"message": f"The model `{body.get('model')}` does not exist.", "code": 404}}
        if path == "/v1/embeddings" and self.kind == "vllm":
            return self._embeddings(body)
        if path == "/classify" and self.kind == "vllm" and self.classifies:
            assert body["use_activation"] is False
            rows = [self.score(ids) for ids in body["input"]]
            data = [{"index": i, "label": "LABEL_0", "probs": row, "num_classes": 1} for i, row in enumerate(rows)]
            return 200, {"object": "list", "model": body["model"], "data": data}
        if path == "/v1/score" and self.kind == "sglang":
            return self._scored(body)
        return 404, {"detail": "Not Found"}

    def _embeddings(self, body: dict[str, Any]) -> tuple[int, Any]:
        if "normalize" in body:
            return 400, {"error": {"message": "Parameter `normalize` was removed", "code": 400}}
        too_long = [ids for ids in body["input"] if len(ids) > 128]
        if too_long:
            return 400, {"error": {"message": "This model's maximum context length is 128 tokens.", "code": 400}}
        ignored = self.wrong == "normalized"
        vectors = [self.pooled(ids, ignored or body.get("use_activation") is not False) for ids in body["input"]]
        data = [{"index": i, "object": "embedding", "embedding": vector} for i, vector in enumerate(vectors)]
        if body.get("encoding_format") == "base64" and self.wrong != "nested":
            assert (body["embed_dtype"], body["endianness"]) == ("float32", "little")
            for row in data:
                floats = torch.tensor(row["embedding"]).numpy().astype("<f4").tobytes()
                row["embedding"] = base64.b64encode(floats).decode()
        tokens = sum(map(len, body["input"])) + (len(data) if self.wrong == "special tokens" else 0)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return 200, {"object": "list", "model": body["model"], "data": data[::-1], "usage": usage}

    def _scored(self, body: dict[str, Any]) -> tuple[int, Any]:
        assert (body["query"], body["apply_softmax"]) == ([], False)
        made: dict[str, Any] = {"object": "scoring", "scores": [self.score(ids) for ids in body["items"]]}
        if body.get("return_pooled_hidden_states") and self.wrong != "old":
            made["pooled_hidden_states"] = [self.pooled(ids, self.wrong == "normalized") for ids in body["items"]]
        return 200, made

    def handle(self, path: str, body: Any) -> tuple[int, dict[str, str], str]:
        """Answer one request, counting those under way."""
        with self._lock:
            self.requests.append((path, body))
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            early = self.first.pop(0) if self.first else None
        try:
            if self.meet is not None and path != "/v1/models":
                self.meet.wait(timeout=60)
            if early is not None:
                return early
            status, made = self.answer(path, body)
            return status, {}, json.dumps(made)
        finally:
            with self._lock:
                self.under_way -= 1


@contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
    """Run a fake server on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, body: Any) -> None:
            server.headers = dict(self.headers)
            status, headers, text = server.handle(self.path, body)
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{listening.server_port}"
    try:
        yield server
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
