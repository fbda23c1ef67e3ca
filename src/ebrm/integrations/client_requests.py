"""What a client of `ebrm serve` sends and when, apart from the sending: the same for plain and `async` code."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import torch

from ebrm.errors import ConfigError, ServerError, TextError
from ebrm.model import Prompt, Ranked, RefinedReward

T = TypeVar("T")

#: Statuses after which the same request may succeed: the server's own 503, and what balancers say of a server away.
_AGAIN = (429, 502, 503, 504)
#: Seconds between tries: the first, doubled each time up to the longest. Longest that a server's Retry-After is obeyed.
_FIRST, _LONGEST, _OBEYED = 0.5, 30.0, 120.0


class RefusedText(TextError):
    """A text that the server's reward model cannot take; `row` is its place among the texts given."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class Send:
    """A request to be sent."""

    method: str
    url: str
    body: bytes | None = None


#: What a plan asks for: a request to be sent, or seconds to wait; and what it is given: the answer, or why none came.
Answer = httpx.Response | httpx.TransportError | None
Steps = Generator[Send | float, Answer, T]


class Plan:
    """What both clients do, step by step, without doing any input or output itself."""

    def __init__(self, url: str | Sequence[str], tries: int) -> None:
        self._urls = [one.rstrip("/") for one in ([url] if isinstance(url, str) else url)]
        if not self._urls or not all(one.startswith(("http://", "https://")) for one in self._urls):
            raise ConfigError(f"{url!r} is no address of a server; give one like http://127.0.0.1:8080, or several.")
        if tries < 1:
            raise ConfigError(f"tries is {tries}; it must be 1 or more.")
        self._tries, self._turn = tries, 0
        self._limits: Mapping[str, float] | None = None

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Steps[RefinedReward]:
        """Rewards of all texts, in as many requests as the server's limits ask for."""
        if len(prompts) != len(responses):
            raise TextError(f"There are {len(prompts)} prompts but {len(responses)} responses; give one each.")
        texts = [_dumps([_plain(prompt), response]) for prompt, response in zip(prompts, responses, strict=True)]
        rows: list[dict[str, Any]] = []
        for part in (yield from self._parts([len(text) for text in texts])):
            body = {
                "prompts": [_plain(prompt) for prompt in prompts[part.start : part.stop]],
                "responses": list(responses[part.start : part.stop]),
            }
            answer = yield from self._ask("POST", "/v1/score", body, part.start)
            found = answer.get("results")
            if not isinstance(found, list) or len(found) != len(part):
                raise ServerError(f"A server gave {_count(found)} for {len(part)} texts. Is it `ebrm serve`?")
            rows += found
        return _refined(rows)

    def rank(self, prompt: Prompt, responses: Sequence[str]) -> Steps[list[Ranked]]:
        """One ranking."""
        body = {"prompt": _plain(prompt), "responses": list(responses)}
        answer = yield from self._ask("POST", "/v1/rank", body)
        names = ("reward", "base_reward", "std", "p_best")
        try:
            return [
                Ranked(index=row["index"], response=responses[row["index"]], **{name: row[name] for name in names})
                for row in answer["results"]
            ]
        except (KeyError, TypeError, IndexError) as error:
            raise ServerError(f"A server gave no ranking ({error!r}). Is it `ebrm serve`?") from error

    def get_reward(self, queries: Sequence[str]) -> Steps[dict[str, Any]]:
        """Rewards of whole texts, as the server gives them."""
        answer = yield from self._ask("POST", "/get_reward", {"query": list(queries)})
        if _count(answer.get("rewards")) != _count(list(queries)):
            raise ServerError(f"A server gave {_count(answer.get('rewards'))} for {len(queries)} texts.")
        return answer

    def info(self) -> Steps[dict[str, Any]]:
        """What is served."""
        return (yield from self._ask("GET", "/info"))

    def wait_until_ready(self, seconds: float) -> Steps[None]:
        """Look every second whether each server scores; then that they serve one model."""
        until = time.monotonic() + seconds
        served = {}
        for url in self._urls:
            while True:
                answer = yield Send("GET", f"{url}/ready")
                if isinstance(answer, httpx.Response) and answer.status_code == 200:
                    break
                said = _said(answer)
                if isinstance(answer, httpx.Response) and answer.status_code not in _AGAIN:
                    raise ServerError(f"{url} refuses: {said}")
                if time.monotonic() >= until:
                    raise ServerError(
                        f"{url} is not ready after {seconds:g} seconds: {said} Look at the server's own output, or "
                        "wait longer (wait_until_ready(seconds))."
                    )
                yield 1.0
            answer = yield Send("GET", f"{url}/info")
            served[url] = _content(answer).get("fingerprint") if isinstance(answer, httpx.Response) else None
        if len(set(served.values())) > 1:
            raise ServerError(
                f"The servers do not serve the same model ({served}), so their rewards must not be mixed. Give only "
                "servers of one."
            )

    def _parts(self, sizes: Sequence[int]) -> Steps[list[range]]:
        """Rows in parts that a server takes in a request; `sizes` in bytes."""
        if len(sizes) < 2:
            return [range(len(sizes))] if sizes else []
        if self._limits is None:
            self._limits = (yield from self.info()).get("limits") or {}
        texts, room = int(self._limits.get("max_texts", 1)), int(self._limits.get("max_body", 2**20)) - 100
        return list(_cut(sizes, texts, room))

    def _ask(self, method: str, path: str, body: Any = None, first: int = 0) -> Steps[dict[str, Any]]:
        """One answer, after as many tries as it takes; `first` is the row of the request's first text."""
        sent = None if body is None else _dumps(body)
        started, said = time.monotonic(), []
        for attempt in range(self._tries):
            url = self._urls[self._turn % len(self._urls)]
            self._turn += 1
            answer = yield Send(method, url + path, sent)
            if isinstance(answer, httpx.Response) and answer.status_code not in _AGAIN:
                return _checked(url, answer, first)
            said.append(f"{url}: {_said(answer)}")
            # A server that is busy or away is no reason to wait while there are others.
            if attempt + 1 < self._tries and (attempt + 1) % len(self._urls) == 0:
                yield _pause(attempt // len(self._urls), answer)
        seconds = time.monotonic() - started
        raise ServerError(
            f"No answer to {method} {path} after {self._tries} {'tries' if self._tries > 1 else 'try'} in "
            f"{seconds:.0f} seconds. The last said: {'; '.join(dict.fromkeys(said[-len(self._urls) :]))} Check that "
            "`ebrm serve` runs there and is not overloaded, or allow more (tries=…, timeout=…)."
        )


def _checked(url: str, answer: httpx.Response, first: int) -> dict[str, Any]:
    """The content of an answer that is final."""
    content = _content(answer)
    if answer.status_code == 200 and content:
        return content
    said, fault = _said(answer), content.get("error")
    row = fault.get("row") if isinstance(fault, dict) else None
    if answer.status_code == 422 and isinstance(row, int):
        at = f" (row {first + row} of all)" if first else ""
        raise RefusedText(first + row, f"{said}{at}")
    advice = {401: " Give the client the server's token (token=…).", 404: " Is it `ebrm serve`?"}
    raise ServerError(f"{url} refuses: {said}{advice.get(answer.status_code, '')}")


def _content(answer: httpx.Response) -> dict[str, Any]:
    try:
        content = answer.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _said(answer: Answer) -> str:
    """Why there is no result, as the server or the system says."""
    if not isinstance(answer, httpx.Response):
        return f"{type(answer).__name__}{f' ({answer})' if str(answer) else ''}."
    fault = _content(answer).get("error")
    message = fault.get("message") if isinstance(fault, dict) else None
    return f"{answer.status_code} {message or answer.reason_phrase or 'without a reason'}"


def _pause(round_: int, answer: Answer) -> float:
    """Seconds until the next try: back-off, of which up to a fifth is chance, and no less than Retry-After."""
    pause = min(_LONGEST, _FIRST * 2.0**round_) * random.uniform(0.8, 1.0)
    if isinstance(answer, httpx.Response):
        asked = answer.headers.get("retry-after", "")
        pause = max(pause, min(_OBEYED, float(asked[:9]))) if asked.isdecimal() else pause
    return pause


def _cut(sizes: Sequence[int], texts: int, room: int) -> Iterator[range]:
    start, held = 0, 0
    for row, size in enumerate(sizes):
        if row > start and (row - start == texts or held + size > room):
            yield range(start, row)
            start, held = row, 0
        held += size
    yield range(start, len(sizes))


def _refined(rows: Sequence[Mapping[str, Any]]) -> RefinedReward:
    names = ("reward", "base_reward", "std", "log_density", "delta")
    try:
        columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in names}
        interval = torch.tensor([row["interval"] for row in rows], dtype=torch.float32).reshape(len(rows), 2)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ServerError(f"A server's answer holds no rewards ({error!r}). Is it `ebrm serve`?") from error
    return RefinedReward(interval=interval, **columns)


def _plain(prompt: Prompt) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [{"role": message.get("role"), "content": message.get("content")} for message in prompt]


def _dumps(value: Any) -> bytes:
    # In ASCII: broken emoji (lone surrogates) have no UTF-8 form, and the server reads them as `ebrm score` does.
    return json.dumps(value).encode("ascii")


def _count(found: Any) -> str:
    return f"{len(found)} results" if isinstance(found, list) else "no results"
