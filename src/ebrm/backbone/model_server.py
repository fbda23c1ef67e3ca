"""A running vLLM or SGLang server: what it serves, and requests to it that wait, try again and say what was wrong.

Both name themselves in `GET /v1/models` (`owned_by`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import httpx

from ebrm.errors import ServerError

logger = logging.getLogger(__name__)

#: Environment variable with the server's API key (`--api-key` of both servers).
TOKEN = "EBRM_SERVER_TOKEN"
_IN_FLIGHT = 8  # requests at once: the server forms its batches of what is waiting
_MOST_TEXTS = 256  # in a request: bounds the answer, some MB for a hidden size of 8,192
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before the second, third, … try
_LONGEST_PAUSE = 30.0  # of what a server asks for in Retry-After
_TIMEOUT = httpx.Timeout(10.0, read=600.0, write=60.0)
_PASSING = (429, 502, 503, 504)

Answered = TypeVar("Answered")


class ModelServer:
    """A running server with one model. Nothing is kept open between calls, so it may be used from several threads.

    Attributes:
        url: without a path.
        kind: "vllm", or "sglang".
        model, root: the name it serves its model under, and where it loaded it from.
        limit: most tokens it takes, None if unknown.
        flags: by kind, the command that starts a server which gives what is read here.
        started: how a server was started that does not give it.
    """

    flags: ClassVar[Mapping[str, str]]
    started: ClassVar[str]

    def __init__(self, url: str, *, pause: Callable[[float], None] = time.sleep) -> None:
        """Ask the server what it serves."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self._pause = pause
        with self._client() as client:
            listed = self._json(client, "GET", "/v1/models")
        cards = listed.get("data") if isinstance(listed, dict) else None
        card = cards[0] if isinstance(cards, list) and cards else None
        if not isinstance(card, dict) or not isinstance(card.get("id"), str):
            raise ServerError(
                f"{self.url}/v1/models lists no model. Expected a running vLLM or SGLang server; start one with the "
                f"model: {self.flags['vllm']}, or {self.flags['sglang']}."
            )
        self.kind = "sglang" if card.get("owned_by") == "sglang" else "vllm"
        self.model: str = card["id"]
        root, limit = card.get("root"), card.get("max_model_len")
        self.root = root if isinstance(root, str) else self.model
        self.limit: int | None = limit if isinstance(limit, int) and limit > 0 else None

    @property
    def name(self) -> str:
        """Its name at the beginning of a sentence."""
        return f"The {'SGLang' if self.kind == 'sglang' else 'vLLM'} server {self.url} ({self.model})"

    def refuse_other_model(self, name: str, folder: Path, what: str) -> None:
        """ServerError unless one of the server's names for its model ends like `name`, or is its folder."""
        wanted = {_last(name), _last(str(folder.resolve()))}
        for own in (self.model, self.root):
            if _last(own) in wanted or Path(own).expanduser().resolve() == folder.resolve():
                return
        known = self.model if self.root == self.model else f"{self.model} (from {self.root})"
        raise ServerError(
            f"The server {self.url} serves {known}, and the {what} asked for is {name}. Give the one it serves, or "
            f"another server; if it is the same model, start it with --served-model-name {_last(name)}."
        )

    def _ask_all(
        self,
        ask: Callable[[httpx.Client, list[list[int]]], Answered],
        token_ids: Sequence[Sequence[int]],
        token_budget: int,
    ) -> list[Answered]:
        """What `ask` gives for token sequences, in requests of neighbors that fit the budget, several at once."""
        requests = _divide(token_ids, token_budget)
        with self._client() as client, ThreadPoolExecutor(min(_IN_FLIGHT, len(requests))) as pool:
            waiting = [pool.submit(ask, client, ids) for ids in requests]
            try:
                return [future.result() for future in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _rows(self, answer: Any, path: str, count: int, key: str = "data") -> list[dict[str, Any]]:
        """The entries of `data` (or another key) in the order of their `index`: one a text."""
        data = answer.get(key) if isinstance(answer, dict) else None
        rows = [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
        places = sorted(row["index"] for row in rows if isinstance(row.get("index"), int))
        if len(rows) != count or places != list(range(count)):
            raise ServerError(
                f"{self.name} answers {path} with {len(rows)} results (index {places[:5]}…) for {count} texts; "
                "one each, numbered from 0, was expected. Is this a vLLM or SGLang server?"
            )
        return sorted(rows, key=lambda row: int(row["index"]))

    def _client(self) -> httpx.Client:
        token = os.environ.get(TOKEN)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, timeout=_TIMEOUT, headers=headers)

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
                f"{self.name} does not offer {path} (HTTP {code}): {self.started}. "
                f"Start it as: {self.flags[self.kind]}."
            )
        if code != 200:
            hint = (
                "" if path == "/v1/models" else f" If it was started otherwise, start it as: {self.flags[self.kind]}."
            )
            raise ServerError(f"The server {self.url} refuses {path} (HTTP {code}): {_said(answer)}.{hint}")
        try:
            return answer.json()
        except ValueError:
            raise ServerError(
                f"The server {self.url} answers {path} with {answer.headers.get('content-type', 'something')}, not "
                f"JSON: {answer.text[:100]!r}. Is this a vLLM or SGLang server?"
            ) from None


def _last(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _divide(token_ids: Sequence[Sequence[int]], budget: int) -> list[list[list[int]]]:
    """Neighbors together, as many as fit into the budget."""
    requests: list[list[list[int]]] = [[]]
    left = budget
    for ids in token_ids:
        if requests[-1] and (len(ids) > left or len(requests[-1]) == _MOST_TEXTS):
            requests.append([])
            left = budget
        requests[-1].append([int(token) for token in ids])
        left -= len(ids)
    return requests


def prompt_tokens(answer: Any) -> int | None:
    """How many tokens the server says it read."""
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
