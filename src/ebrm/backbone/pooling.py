"""A running vLLM or SGLang pooling server: which model it serves, and the vectors and scores it gives for token ids.

What differs between the two is here and nowhere else:

- vLLM answers `POST /v1/embeddings` with what its pooler gives. Normalization is switched off in each request
  (`use_activation`), and the numbers come as base64 of float32. Where it also has a classifier, `POST /classify` gives
  the head's score.
- SGLang keeps the reward head and answers `POST /v1/score` with its score; `return_pooled_hidden_states` adds what went
  into the head.

Both take token ids, and both name themselves in `GET /v1/models` (`owned_by`).
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from ebrm.errors import ServerError

logger = logging.getLogger(__name__)

#: Environment variable with the server's API key (`--api-key` of both servers).
TOKEN = "EBRM_SERVER_TOKEN"
#: Flags that make each server give what is read here.
FLAGS = {
    "vllm": (
        "vllm serve MODEL --runner pooling --convert embed --pooler-config "
        '\'{"pooling_type": "LAST", "use_activation": false}\''
    ),
    "sglang": "python -m sglang.launch_server --model-path MODEL --is-embedding",
}
_IN_FLIGHT = 8  # requests at once: the server forms its batches of what is waiting
_MOST_TEXTS = 256  # in a request: bounds the answer, some MB for a hidden size of 8,192
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before the second, third, … try
_LONGEST_PAUSE = 30.0  # of what a server asks for in Retry-After
_TIMEOUT = httpx.Timeout(10.0, read=600.0, write=60.0)
_PASSING = (429, 502, 503, 504)
_NOT_OFFERED = (400, 404, 405, 422, 501)


@dataclass(frozen=True)
class Answer:
    """What a server gave for n sequences of token ids, in their order.

    Attributes:
        vectors: n arrays, as they came: any shape, any size.
        scores: n scores of the server's own head, one or more numbers each; None where it gives none with the vectors.
        tokens: how many tokens it says it has read; None where it does not say.
    """

    vectors: list[NDArray[np.float32]]
    scores: list[list[float]] | None = None
    tokens: int | None = None


class PoolingServer:
    """A running pooling server. Nothing is kept open between calls, so it may be used from several threads.

    Attributes:
        url: without a path.
        kind: "vllm", or "sglang".
        model: the name it serves its model under.
        root: where it loaded the model from, as it says; the name where it does not.
        limit: most tokens it takes, None where it does not say.
    """

    def __init__(self, url: str, *, pause: Callable[[float], None] = time.sleep) -> None:
        """Ask the server what it serves.

        Args:
            url: "http://127.0.0.1:8000"; a trailing "/v1" is taken off.
            pause: waits before another try.

        Raises:
            ServerError: it cannot be reached, or lists no model.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        self._pause = pause
        with self._client() as client:
            listed = self._json(client, "GET", "/v1/models")
        cards = listed.get("data") if isinstance(listed, dict) else None
        card = cards[0] if isinstance(cards, list) and cards else None
        if not isinstance(card, dict) or not isinstance(card.get("id"), str):
            raise ServerError(
                f"{self.url}/v1/models lists no model. Expected a running vLLM or SGLang server; start one with the "
                f"reward model: {FLAGS['vllm']}, or {FLAGS['sglang']}."
            )
        self.kind = "sglang" if card.get("owned_by") == "sglang" else "vllm"
        self.model: str = card["id"]
        root, limit = card.get("root"), card.get("max_model_len")
        self.root = root if isinstance(root, str) else self.model
        self.limit: int | None = limit if isinstance(limit, int) and limit > 0 else None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"the {'SGLang' if self.kind == 'sglang' else 'vLLM'} server {self.url} ({self.model})"

    def read(self, token_ids: Sequence[Sequence[int]], token_budget: int) -> Answer:
        """Vectors of n token sequences, in the order given, through several requests at once.

        Args:
            token_ids: n sequences; at least one.
            token_budget: most tokens in a request; a longer sequence has one of its own.

        Raises:
            ServerError: the server cannot be reached after several tries, refuses, or gives another number of answers.
        """
        requests = _divide(token_ids, token_budget)
        ask = self._ask_sglang if self.kind == "sglang" else self._ask_vllm
        with self._client() as client, ThreadPoolExecutor(min(_IN_FLIGHT, len(requests))) as pool:
            waiting = [pool.submit(ask, client, ids) for ids in requests]
            try:
                answers = [future.result() for future in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        scores = [answer.scores for answer in answers]
        tokens = [answer.tokens for answer in answers]
        return Answer(
            [vector for answer in answers for vector in answer.vectors],
            None if None in scores else [score for part in scores for score in part or ()],
            None if None in tokens else sum(count or 0 for count in tokens),
        )

    def own_scores(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]] | None:
        """What the server's own head says of n token sequences, without an activation; None where it has no head.

        Raises:
            ServerError: it cannot be reached.
        """
        body = {"model": self.model, "input": [list(ids) for ids in token_ids], "use_activation": False}
        with self._client() as client:
            answer = self._send(client, "POST", "/classify", body)
        if answer.status_code in _NOT_OFFERED:
            return None
        rows = self._rows(self._parse(answer, "/classify"), "/classify", len(token_ids))
        return [_numbers(row.get("probs")) for row in rows]

    def _ask_vllm(self, client: httpx.Client, token_ids: list[list[int]]) -> Answer:
        path = "/v1/embeddings"
        body = {
            "model": self.model,
            "input": token_ids,
            "use_activation": False,
            "add_special_tokens": False,
            "encoding_format": "base64",
            "embed_dtype": "float32",
            "endianness": "little",
        }
        answer = self._json(client, "POST", path, body)
        vectors = [_vector(row.get("embedding")) for row in self._rows(answer, path, len(token_ids))]
        return Answer(vectors, None, _tokens(answer))

    def _ask_sglang(self, client: httpx.Client, token_ids: list[list[int]]) -> Answer:
        path = "/v1/score"
        body = {
            "model": self.model,
            "query": [],
            "items": token_ids,
            "apply_softmax": False,
            "return_pooled_hidden_states": True,
        }
        answer = self._json(client, "POST", path, body)
        states, scores = answer.get("pooled_hidden_states"), answer.get("scores")
        if not isinstance(states, list) or not isinstance(scores, list):
            raise ServerError(
                f"{_upper(self.name)} gives {path} without pooled_hidden_states, which are the embeddings. They were "
                "added in 2026 (return_pooled_hidden_states): use a newer SGLang, started as "
                f"{FLAGS['sglang']}, or vLLM."
            )
        if not len(states) == len(scores) == len(token_ids):
            raise ServerError(
                f"{_upper(self.name)} gives {len(states)} embeddings and {len(scores)} scores for {len(token_ids)} "
                "texts. Start it without --multi-item-scoring-delimiter."
            )
        return Answer([_vector(state) for state in states], [_numbers(row) for row in scores], _tokens(answer))

    def _rows(self, answer: Any, path: str, count: int) -> list[dict[str, Any]]:
        """The entries of `data` in the order of their `index`: one a text."""
        data = answer.get("data") if isinstance(answer, dict) else None
        rows = [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
        places = sorted(row["index"] for row in rows if isinstance(row.get("index"), int))
        if len(rows) != count or places != list(range(count)):
            raise ServerError(
                f"{_upper(self.name)} answers {path} with {len(rows)} results (index {places[:5]}…) for {count} texts; "
                "one each, numbered from 0, was expected. Is this a vLLM or SGLang server?"
            )
        return sorted(rows, key=lambda row: int(row["index"]))

    def _client(self) -> httpx.Client:
        token = os.environ.get(TOKEN)
        return httpx.Client(
            base_url=self.url, timeout=_TIMEOUT, headers={"Authorization": f"Bearer {token}"} if token else {}
        )

    def _json(self, client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._parse(self._send(client, method, path, body), path)

    def _send(self, client: httpx.Client, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """Send, and again after a pause while the server is away or busy."""
        for pause in (*_PAUSES, None):
            try:
                answer = client.request(method, path, json=body)
            except httpx.TransportError as error:
                what = f"{type(error).__name__}: {error}"
                wait = pause
            else:
                if answer.status_code not in _PASSING:
                    return answer
                what = f"HTTP {answer.status_code}: {_said(answer)}"
                wait = None if pause is None else max(pause, _asked_to_wait(answer))
            if wait is not None:
                logger.info("%s%s: %s; trying again in %g s", self.url, path, what, wait)
                self._pause(wait)
        raise ServerError(
            f"The server {self.url} does not answer: {method} {path} was tried {len(_PAUSES) + 1} times over "
            f"{sum(_PAUSES):g} s or more, and ended with {what}. Check that it is running there, has loaded its model "
            "(its /health answers) and is not overloaded; then run the same again."
        )

    def _parse(self, answer: httpx.Response, path: str) -> Any:
        code = answer.status_code
        if code in (401, 403):
            raise ServerError(
                f"The server {self.url} refuses {path} (HTTP {code}): it wants an API key. Put the one it was started "
                f"with (--api-key) into the environment variable {TOKEN}."
            )
        if code in (404, 405) and path != "/v1/models":
            raise ServerError(
                f"{_upper(self.name)} does not offer {path} (HTTP {code}): it was started to generate or to classify. "
                f"Start it as: {FLAGS[self.kind]}."
            )
        if code != 200:
            raise ServerError(f"The server {self.url} refuses {path} (HTTP {code}): {_said(answer)}.{self._hint(path)}")
        try:
            return answer.json()
        except ValueError:
            raise ServerError(
                f"The server {self.url} answers {path} with {answer.headers.get('content-type', 'something')}, not "
                f"JSON: {answer.text[:100]!r}. Is this a vLLM or SGLang server?"
            ) from None

    def _hint(self, path: str) -> str:
        return "" if path == "/v1/models" else f" If it was started otherwise, start it as: {FLAGS[self.kind]}."


def _divide(token_ids: Sequence[Sequence[int]], budget: int) -> list[list[list[int]]]:
    """Neighbors together, as many as fit into the budget."""
    requests: list[list[list[int]]] = [[]]
    room = budget
    for ids in token_ids:
        if requests[-1] and (len(ids) > room or len(requests[-1]) == _MOST_TEXTS):
            requests.append([])
            room = budget
        requests[-1].append([int(token) for token in ids])
        room -= len(ids)
    return requests


def _vector(value: Any) -> NDArray[np.float32]:
    """Floats from base64 of float32 or from (nested) lists; empty where there are none."""
    try:
        if isinstance(value, str):
            return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4").astype(np.float32)
        return np.asarray(value if isinstance(value, list) else [], dtype=np.float32)
    except (binascii.Error, ValueError, TypeError):
        return np.empty(0, dtype=np.float32)


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    return [float(x) if isinstance(x, int | float) else float("nan") for x in values]


def _tokens(answer: Any) -> int | None:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count > 0 else None


def _said(answer: httpx.Response) -> str:
    """The message in an error, whichever of the shapes in use it has; shortened."""
    try:
        body = answer.json()
    except ValueError:
        body = answer.text
    if isinstance(body, dict):
        inner = body.get("error", body)
        body = inner.get("message", inner.get("detail", inner)) if isinstance(inner, dict) else inner
    text = " ".join(str(body).split()) or "nothing said"
    return (text if len(text) <= 300 else text[:299] + "…").rstrip(".")


def _asked_to_wait(answer: httpx.Response) -> float:
    try:
        return min(max(float(answer.headers.get("retry-after", "0")), 0.0), _LONGEST_PAUSE)
    except ValueError:
        return 0.0


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
