"""A judge behind an OpenAI-compatible API (vLLM, SGLang, Ollama, hosted): asked concurrently, cached and counted."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from ebrm.errors import ConfigError, ServerError
from ebrm.utils.backoff import backoff
from ebrm.utils.files import sha256_json, write_json
from ebrm.utils.validation import check_setting

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Statuses after which the same request may succeed.
_RETRIED = (408, 409, 429, 500, 502, 503, 504)
#: Statuses of a judge that cannot be asked at all: wrong key, wrong address, no such model.
_FATAL = (401, 402, 403, 404, 405)
#: Most bytes of an answer.
_LARGEST = 4 * 2**20
_FORMAT = "ebrm-judge-answer-1"


@dataclass(frozen=True)
class JudgeRequest:
    """A question to a judge.

    Attributes:
        prompt: the user's turn.
        system: the system text; empty for none.
        top_logprobs: how many of the likeliest first tokens to return with their log-probabilities; 0 for none.
        max_tokens: longest answer; None: the judge's.
    """

    prompt: str
    system: str = ""
    top_logprobs: int = 0
    max_tokens: int | None = None


@dataclass(frozen=True)
class JudgeAnswer:
    """A judge's answer.

    Attributes:
        text: what it said; None where it did not answer.
        logprobs: log-probabilities of the likeliest first tokens; None where they were not asked for, or not given.
        error: why there is no text.
    """

    text: str | None
    logprobs: Mapping[str, float] | None = None
    error: str | None = None


#: A judge: requests to answers, one each, in order.
Judge = Callable[[Sequence[JudgeRequest]], Sequence[JudgeAnswer]]


@dataclass
class JudgeUsage:
    """What a judge was asked so far.

    Attributes:
        requests: questions, cached ones included.
        cached: those answered from the cache.
        calls: HTTP requests, retries included.
        failed: questions without an answer after all tries.
        prompt_tokens: tokens read, as the server counts them (cached answers not counted).
        completion_tokens: tokens written.
        cost: price of these tokens; None where no price was given.
    """

    requests: int = 0
    cached: int = 0
    calls: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None


@dataclass(frozen=True)
class OpenAIJudge:
    """A judge behind `POST {url}/chat/completions`: call it with requests, get an answer for each.

    Requests run concurrently, each with retries, exponential back-off (Retry-After honored) and time limits. Answers
    are cached by content: server, model, texts and sampling. A question without an answer has `error` set, is counted
    and logged; a judge that refuses the key, the address or the model, or of which every question fails, raises.

    Attributes:
        url: address of the API up to its version, such as "http://127.0.0.1:8000/v1".
        model: the judge's name there.
        api_key: None: the environment variable `EBRM_JUDGE_TOKEN`, if it is set. It is sent to `url` alone, and never
            written to a file, log or error.
        concurrency: most requests at a time.
        tries: most tries of a question.
        timeout: seconds for one try.
        max_tokens: longest answer, unless the request says otherwise.
        temperature: of sampling.
        seed: of sampling; None: the server's.
        cache: folder to keep answers in; None: none are kept.
        price: price of a million tokens read and of a million written; None: costs are not counted.
        usage: what was asked so far, by all calls.

    Raises:
        ConfigError: a setting out of range. ServerError: see above.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 8
    tries: int = 4
    timeout: float = 120.0
    max_tokens: int = 1024
    temperature: float = 0.0
    seed: int | None = None
    cache: str | Path | None = None
    price: tuple[float, float] | None = None
    usage: JudgeUsage = field(default_factory=JudgeUsage, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"`url` is {self.url!r}; the address of an API is like http://127.0.0.1:8000/v1.")
        if httpx.URL(self.url).userinfo:
            raise ConfigError("`url` holds a password; give it as `api_key`, or in the environment (EBRM_JUDGE_TOKEN).")
        if not self.model:
            raise ConfigError("`model` is empty; give the judge's name at the server.")
        for name in ("concurrency", "tries", "max_tokens"):
            check_setting(name, getattr(self, name), at_least=1)
        check_setting("timeout", self.timeout, above=0)
        check_setting("temperature", self.temperature, at_least=0)
        for one in self.price or ():
            check_setting("price", one, at_least=0)

    def __call__(self, requests: Sequence[JudgeRequest]) -> list[JudgeAnswer]:
        """The answers, in the order of the requests; equal requests are asked once."""
        different = list(dict.fromkeys(requests))
        answers = dict(zip(different, _run(self._ask_all(different)), strict=True))
        with self._lock:
            self.usage.requests += len(requests)
            self.usage.cached += len(requests) - len(different)
        failed = [one for one in answers.values() if one.error is not None]
        if failed:
            if len(failed) == len(different):
                raise ServerError(
                    f"The judge {self.model} at {self.url} answered none of {len(different)} questions. The first: "
                    f"{failed[0].error} Check that it runs there, or allow more (tries, timeout)."
                )
            logger.warning(
                "The judge %s gave no answer to %d of %d questions; their scores are NaN. The first: %s",
                self.model, len(failed), len(different), failed[0].error,
            )  # fmt: skip
        return [answers[request] for request in requests]

    async def _ask_all(self, requests: Sequence[JudgeRequest]) -> list[JudgeAnswer]:
        key = self.api_key if self.api_key is not None else os.environ.get("EBRM_JUDGE_TOKEN")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        slots = asyncio.Semaphore(self.concurrency)
        limits = httpx.Limits(max_connections=self.concurrency)
        async with httpx.AsyncClient(
            headers=headers, timeout=self.timeout, limits=limits, follow_redirects=False, trust_env=False
        ) as client:
            tasks = [asyncio.create_task(self._answer(client, slots, request)) for request in requests]
            try:
                return list(await asyncio.gather(*tasks))
            except BaseException:  # the others are of no use
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise

    async def _answer(self, client: httpx.AsyncClient, slots: asyncio.Semaphore, request: JudgeRequest) -> JudgeAnswer:
        body = self._body(request)
        stored = self._stored_at(body)
        if stored is not None and (known := _read_stored(stored)) is not None:
            with self._lock:
                self.usage.cached += 1
            return known
        async with slots:
            answer = await self._try(client, body)
        if stored is not None and answer.error is None:
            write_json(stored, {"format": _FORMAT, "text": answer.text, "logprobs": answer.logprobs})
        return answer

    async def _try(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> JudgeAnswer:
        reason = ""
        for attempt in range(self.tries):
            with self._lock:
                self.usage.calls += 1
            after = ""
            try:
                async with asyncio.timeout(self.timeout):
                    status, headers, content = await self._post(client, body)
            except (httpx.HTTPError, TimeoutError) as error:
                reason = f"{type(error).__name__}{f' ({error})' if str(error) else ''}."
            else:
                if status == 200:
                    answer, tokens = _parse(content)
                    self._count(tokens)
                    if answer.error is None:
                        return answer
                    reason = answer.error or ""
                else:
                    reason = f"{status} {_message(content)}"
                    if status in _FATAL:
                        raise ServerError(
                            f"The judge {self.model} at {self.url} refuses: {reason} Check `url`, `model` and the "
                            "key (EBRM_JUDGE_TOKEN)."
                        )
                    if status not in _RETRIED:
                        break
                    after = headers.get("retry-after", "")
            if attempt + 1 < self.tries:
                await asyncio.sleep(backoff(attempt, after))
        with self._lock:
            self.usage.failed += 1
        return JudgeAnswer(None, error=reason)

    async def _post(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        url = f"{self.url.rstrip('/')}/chat/completions"
        async with client.stream("POST", url, json=body) as response:
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > _LARGEST:
                    raise httpx.RemoteProtocolError(f"an answer of over {_LARGEST} bytes")
            return response.status_code, response.headers, bytes(content)

    def _body(self, request: JudgeRequest) -> dict[str, Any]:
        messages = [{"role": "system", "content": request.system}] if request.system else []
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*messages, {"role": "user", "content": request.prompt}],
            "temperature": self.temperature,
            "max_tokens": request.max_tokens or self.max_tokens,
        }
        if self.seed is not None:
            body["seed"] = self.seed
        if request.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        return body

    def _stored_at(self, body: Mapping[str, Any]) -> Path | None:
        if self.cache is None:
            return None
        name = sha256_json({"url": self.url.rstrip("/"), **body})
        return Path(self.cache) / name[:2] / f"{name}.json"

    def _count(self, tokens: tuple[int, int]) -> None:
        with self._lock:
            self.usage.prompt_tokens += tokens[0]
            self.usage.completion_tokens += tokens[1]
            if self.price is not None:
                read, written = self.price
                self.usage.cost = (
                    self.usage.prompt_tokens * read + self.usage.completion_tokens * written
                ) / 1_000_000  # fmt: skip


def _run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, also where an event loop runs already (a notebook, a server)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    found: list[T] = []
    failed: list[BaseException] = []

    def target() -> None:
        try:
            found.append(asyncio.run(work))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def _parse(content: bytes) -> tuple[JudgeAnswer, tuple[int, int]]:
    """The answer in the body of a 200, and the tokens that were read and written for it."""
    try:
        value = json.loads(content)
        choice = value["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, RecursionError, KeyError, IndexError, TypeError):
        return JudgeAnswer(None, error=f"No chat completion: {content[:80]!r}."), (0, 0)
    usage = value.get("usage") if isinstance(value.get("usage"), dict) else {}
    tokens = (_whole(usage.get("prompt_tokens")), _whole(usage.get("completion_tokens")))
    if not isinstance(text, str):
        return JudgeAnswer(None, error=f"The completion has no text: {content[:80]!r}."), tokens
    return JudgeAnswer(text, _first_logprobs(choice.get("logprobs"))), tokens


def _first_logprobs(found: Any) -> dict[str, float] | None:
    """Log-probabilities of the first token's alternatives; None where there are none."""
    try:
        listed = found["content"][0]["top_logprobs"]
        made = {str(one["token"]): float(one["logprob"]) for one in listed}
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return made if made and all(value <= 0 for value in made.values()) else None  # NaN is not


def _message(content: bytes) -> str:
    try:
        fault = json.loads(content)
        fault = fault.get("error", fault) if isinstance(fault, dict) else fault
        said = fault.get("message") if isinstance(fault, dict) else fault
    except (ValueError, RecursionError):
        said = content[:200].decode("utf-8", "replace")
    return f"{str(said)[:200] or 'without a reason'}."


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0


def _read_stored(path: Path) -> JudgeAnswer | None:
    """A cached answer; None where there is none, or it is damaged (it is asked for again)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        text, logprobs = value["text"], value["logprobs"]
        if value["format"] != _FORMAT or not isinstance(text, str):
            raise ValueError("another format")
        made = None if logprobs is None else {str(token): float(number) for token, number in logprobs.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is not a cached answer of a judge (%s); it is asked for again.", path, type(error).__name__)
        return None
    return JudgeAnswer(text, made)
