"""HTTP clients of `ebrm serve`: sans-IO requests with retries and exponential back-off, sent blocking or by asyncio."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import httpx

from ebrm.errors import ConfigError, ServerError, TextError
from ebrm.utils.backoff import backoff

if TYPE_CHECKING:
    from torch import Tensor

    from ebrm.backbone import OnError
    from ebrm.data import Prompt, Reply
    from ebrm.model import Ranked, RefinedReward

T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., Any])
P = ParamSpec("P")

#: Statuses after which the same request may succeed: the server's own 503, and a balancer's for a server that is down.
_RETRIED = (429, 502, 503, 504)
_JSON = {"Content-Type": "application/json"}


class RefusedText(TextError):
    """A text that the served reward model cannot read; `row` is its index among the texts given."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


class Send(NamedTuple):
    """A request to be sent."""

    method: str
    url: str
    body: bytes | None = None


#: The outcome of a step: the response, or the error of the connection; None after a pause.
Answer = httpx.Response | httpx.TransportError | None
#: A call as a coroutine of steps: it yields a request to be sent, or seconds to sleep, and is sent the answer.
Steps = Generator[Send | float, Answer, T]


class Requests:
    """The calls of both clients as :data:`Steps`, without any input or output of their own."""

    def __init__(self, url: str | Sequence[str], tries: int) -> None:
        self._urls = [one.rstrip("/") for one in ([url] if isinstance(url, str) else url)]
        if not self._urls or not all(one.startswith(("http://", "https://")) for one in self._urls):
            raise ConfigError(f"url is {url!r}; the address of a server is like http://127.0.0.1:8080 (or several).")
        if tries < 1:
            raise ConfigError(f"tries is {tries}; it must be 1 or more.")
        self._tries, self._turn = tries, 0
        self._info: dict[str, Any] | None = None

    def score(
        self, prompts: Prompt | Sequence[Prompt], responses: Reply | Sequence[Reply], *, on_error: OnError = "raise"
    ) -> Steps[RefinedReward]:
        """Refined rewards of responses [n]; a list over the server's limits goes in several requests.

        Args:
            prompts: one prompt (a string, a list of messages, or a mapping of `messages` and `tools`), or one for each
                response.
            responses: the assistant's answers, strings or messages; one alone is one row.
            on_error: for rows that the reward model cannot read: "raise", or "nan" with the reason in `errors`.

        Raises:
            TextError: lists that do not match; with "raise", as RefusedText, a text that the reward model cannot read.
            ServerError: no answer after all tries, or a server that refuses.
        """
        from ebrm.backbone import pair_texts

        pairs = pair_texts(prompts, responses)
        columns = {"prompts": [_plain(prompt) for prompt, _ in pairs], "responses": [response for _, response in pairs]}
        return (yield from self._score(columns, on_error))

    def score_rendered(self, texts: str | Sequence[str], *, on_error: OnError = "raise") -> Steps[RefinedReward]:
        """As `score`, of conversations that already went through the RM's chat template, one text each."""
        return (yield from self._score({"rendered": [texts] if isinstance(texts, str) else list(texts)}, on_error))

    def rank(self, prompt: Prompt, responses: Sequence[Reply]) -> Steps[list[Ranked]]:
        """The responses to one prompt, best refined reward first; errors as `score`."""
        from ebrm.model import Ranked

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

    def to_score(self, reward: Tensor) -> Steps[Tensor]:
        """Rewards as numbers between 0 and 1, as `EnergyRewardModel.to_score`."""
        units = (yield from self._served_info())["units"]
        return ((reward - units["mean"]) / units["std"]).sigmoid()

    def info(self) -> Steps[dict[str, Any]]:
        """The server's description: model, reward model, units, limits."""
        return (yield from self._ask("GET", "/info"))

    def wait_until_ready(self, seconds: float = 600.0) -> Steps[None]:
        """Return when every server scores; ServerError after `seconds`, or where they serve different models."""
        until = time.monotonic() + seconds
        served = {}
        for url in self._urls:
            while True:
                answer = yield Send("GET", f"{url}/ready")
                if isinstance(answer, httpx.Response) and answer.status_code == 200:
                    answer = yield Send("GET", f"{url}/info")  # it may end in between
                    if isinstance(answer, httpx.Response) and answer.status_code == 200:
                        break
                reason = _reason(answer)
                if isinstance(answer, httpx.Response) and answer.status_code not in _RETRIED:
                    raise ServerError(f"{url} refuses: {reason}")
                if time.monotonic() >= until:
                    raise ServerError(
                        f"{url} is not ready after {seconds:g} seconds: {reason} Look at the server's own output, or "
                        "wait longer (wait_until_ready(seconds))."
                    )
                yield 1.0
            served[url] = _content(answer).get("fingerprint")
        if len(set(served.values())) > 1:
            raise ServerError(
                f"The servers do not serve the same model ({served}), so their rewards must not be mixed. Give only "
                "servers of one."
            )

    def _served_info(self) -> Steps[dict[str, Any]]:
        if self._info is None:
            self._info = yield from self.info()
        return self._info

    def _score(self, columns: Mapping[str, list[Any]], on_error: OnError) -> Steps[RefinedReward]:
        if on_error not in ("raise", "nan"):
            raise ConfigError(f"`on_error` is {on_error!r}; it must be one of raise, nan.")
        sizes = [(1, len(_dumps(row)), _values(row)) for row in zip(*columns.values(), strict=True)]
        results: list[Mapping[str, Any] | None] = [None] * len(sizes)
        errors: list[str | None] = [None] * len(sizes)
        parts = [range(len(sizes))] if sizes else []
        if len(sizes) > 1:
            limits = (yield from self._served_info()).get("limits") or {}
            texts, size = int(limits.get("max_texts", 1)), int(limits.get("max_body", 2**20)) - 100
            parts = _split(sizes, (texts, size, int(limits.get("max_values", sys.maxsize)) - 10))
        for part in parts:
            rows = list(part)
            while rows:
                body = {name: [column[row] for row in rows] for name, column in columns.items()}
                try:
                    answer = yield from self._ask("POST", "/v1/score", body, rows)
                except RefusedText as refused:  # the first that cannot be read; the others are sent again
                    if on_error == "raise":
                        raise
                    rows.remove(refused.row)
                    errors[refused.row] = str(refused)
                    continue
                found = answer.get("results")
                if not isinstance(found, list) or len(found) != len(rows):
                    count = f"{len(found)} results" if isinstance(found, list) else "no results"
                    raise ServerError(f"A server gave {count} for {len(rows)} texts. Is it `ebrm serve`?")
                for row, result in zip(rows, found, strict=True):
                    results[row] = result
                break
        return _refined(results, errors)

    def _ask(self, method: str, path: str, body: Any = None, rows: Sequence[int] = ()) -> Steps[dict[str, Any]]:
        """The content of one answer, after retries; `rows` are those of the request's texts among the texts given."""
        sent = None if body is None else _dumps(body)
        started, reasons = time.monotonic(), []
        for attempt in range(self._tries):
            url = self._urls[self._turn % len(self._urls)]
            self._turn += 1
            answer = yield Send(method, url + path, sent)
            if isinstance(answer, httpx.Response) and answer.status_code not in _RETRIED and not _cut(answer):
                return _final(url, answer, rows)
            reasons.append(f"{url}: {_reason(answer)}")
            # No pause while there are other servers to try.
            if attempt + 1 < self._tries and (attempt + 1) % len(self._urls) == 0:
                after = answer.headers.get("retry-after", "") if isinstance(answer, httpx.Response) else ""
                yield backoff(attempt // len(self._urls), after)
        seconds = time.monotonic() - started
        raise ServerError(
            f"No answer to {method} {path} after {self._tries} {'tries' if self._tries > 1 else 'try'} in "
            f"{seconds:.0f} seconds. The last: {'; '.join(dict.fromkeys(reasons[-len(self._urls) :]))} Check that "
            "`ebrm serve` runs there and is not overloaded, or allow more (tries=…, timeout=…)."
        )


def _documented(method: M, call: Callable[..., Any]) -> M:
    functools.update_wrapper(method, call)
    signature = inspect.signature(call)
    returned = str(signature.return_annotation).removeprefix("Steps[").removesuffix("]")
    method.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
    return method


def _blocking(call: Callable[Concatenate[Any, P], Steps[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, *args: P.args, **kwargs: P.kwargs) -> T:
        steps, answer = call(self._requests, *args, **kwargs), None
        try:
            while True:
                answer = self._perform(steps.send(answer))
        except StopIteration as end:
            return end.value

    return _documented(method, call)


def _awaited(call: Callable[Concatenate[Any, P], Steps[T]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    async def method(self: AsyncClient, *args: P.args, **kwargs: P.kwargs) -> T:
        steps, answer = call(self._requests, *args, **kwargs), None
        try:
            while True:
                answer = await self._perform(steps.send(answer))
        except StopIteration as end:
            return end.value

    return _documented(method, call)


class Client:
    """HTTP client of one `ebrm serve`, or of several that serve the same model.

    Several servers take turns; one that is busy or down is passed over. `score`, `score_rendered`, `rank` and
    `to_score` are those of `EnergyRewardModel`, so a client can stand in for a model. Safe for several threads.

    Args:
        url: `http://127.0.0.1:8080`, or several such.
        token: the server's bearer token, if it requires one.
        timeout: seconds until an answer is given up.
        tries: how often a request is sent before an error is raised; retried on 429, 502 to 504, connections that are
            refused, reset or closed, and answers that are cut off, with exponential back-off up to 30 seconds.
        transport: replaces the network, for tests.

    Raises:
        ConfigError: `url` or `tries` that cannot be used.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        token: str | None = None,
        timeout: float = 90.0,
        tries: int = 8,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._requests = Requests(url, tries)
        self._http = httpx.Client(**_options(token, timeout), transport=transport)

    score = _blocking(Requests.score)
    score_rendered = _blocking(Requests.score_rendered)
    rank = _blocking(Requests.rank)
    to_score = _blocking(Requests.to_score)
    info = _blocking(Requests.info)
    wait_until_ready = _blocking(Requests.wait_until_ready)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _perform(self, step: Send | float) -> Answer:
        if isinstance(step, float):
            time.sleep(step)
            return None
        try:
            return self._http.request(step.method, step.url, content=step.body, headers=_JSON)
        except httpx.TransportError as error:
            return error


class AsyncClient:
    """:class:`Client` for asyncio: the same arguments; every call is awaited."""

    def __init__(
        self,
        url: str | Sequence[str],
        token: str | None = None,
        timeout: float = 90.0,
        tries: int = 8,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._requests = Requests(url, tries)
        self._http = httpx.AsyncClient(**_options(token, timeout), transport=transport)

    score = _awaited(Requests.score)
    score_rendered = _awaited(Requests.score_rendered)
    rank = _awaited(Requests.rank)
    to_score = _awaited(Requests.to_score)
    info = _awaited(Requests.info)
    wait_until_ready = _awaited(Requests.wait_until_ready)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _perform(self, step: Send | float) -> Answer:
        if isinstance(step, float):
            await asyncio.sleep(step)
            return None
        try:
            return await self._http.request(step.method, step.url, content=step.body, headers=_JSON)
        except httpx.TransportError as error:
            return error


def _options(token: str | None, timeout: float) -> dict[str, Any]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    # As many connections as there are callers: the server's queue is the limit.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    return {"headers": headers, "timeout": httpx.Timeout(timeout, connect=min(10.0, timeout)), "limits": limits}


def _cut(answer: httpx.Response) -> bool:
    """Whether an answer of status 200 is no JSON: a server that was killed, behind a balancer that hides it."""
    try:
        return answer.status_code == 200 and answer.json() is ...
    except ValueError:
        return True


def _final(url: str, answer: httpx.Response, rows: Sequence[int]) -> dict[str, Any]:
    content = _content(answer)
    if answer.status_code == 200 and content:
        return content
    reason, fault = _reason(answer), content.get("error")
    row = fault.get("row") if isinstance(fault, dict) else None
    if answer.status_code == 422 and isinstance(row, int) and row >= 0 and (not rows or row < len(rows)):
        at = rows[row] if rows else row
        raise RefusedText(at, reason if at == row else f"{reason} (row {at} of all)")
    advice = {401: " Give the client the server's token (token=…).", 404: " Is it `ebrm serve`?"}
    raise ServerError(f"{url} refuses: {reason}{advice.get(answer.status_code, '')}")


def _content(answer: httpx.Response) -> dict[str, Any]:
    try:
        content = answer.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _reason(answer: Answer) -> str:
    """Why there is no result, in the words of the server or the system."""
    if not isinstance(answer, httpx.Response):
        return f"{type(answer).__name__}{f' ({answer})' if str(answer) else ''}."
    if _cut(answer):
        return "the answer is no JSON, or was cut off."
    fault = _content(answer).get("error")
    message = fault.get("message") if isinstance(fault, dict) else None
    return f"{answer.status_code} {message or answer.reason_phrase or 'without a reason'}"


def _split(sizes: Sequence[tuple[int, ...]], limits: tuple[int, ...]) -> list[range]:
    """Consecutive rows whose texts, bytes and values keep to the limits; a larger one goes alone, and is refused."""
    parts, start, held = [], 0, [0] * len(limits)
    for row, more in enumerate(sizes):
        if row > start and any(a + b > limit for a, b, limit in zip(held, more, limits, strict=True)):
            parts.append(range(start, row))
            start, held = row, [0] * len(limits)
        held = [a + b for a, b in zip(held, more, strict=True)]
    return [*parts, range(start, len(sizes))]


def _values(value: Any) -> int:
    """How many JSON values it is."""
    if isinstance(value, Mapping):
        return 1 + sum(map(_values, value.values()))
    return 1 + sum(map(_values, value)) if isinstance(value, list | tuple) else 1


def _refined(results: Sequence[Mapping[str, Any] | None], errors: Sequence[str | None]) -> RefinedReward:
    import torch

    from ebrm.model import RefinedReward

    names, nan = ("reward", "base_reward", "std", "log_density", "delta"), float("nan")
    nothing = {**dict.fromkeys(names, nan), "interval": (nan, nan)}
    rows = [nothing if result is None else result for result in results]
    try:
        columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in names}
        interval = torch.tensor([row["interval"] for row in rows], dtype=torch.float32).reshape(len(rows), 2)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ServerError(f"A server's answer holds no rewards ({error!r}). Is it `ebrm serve`?") from error
    return RefinedReward(interval=interval, errors=tuple(errors), **columns)


def _plain(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str | Mapping) else list(prompt)


def _dumps(value: Any) -> bytes:
    # In ASCII: lone surrogates have no UTF-8 form, and the server reads them as `ebrm score` does.
    return json.dumps(value, default=_as_json).encode("ascii")


def _as_json(value: Any) -> Any:
    """Arrays as lists, and other mappings as objects."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be sent")
