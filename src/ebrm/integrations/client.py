"""Clients of `ebrm serve`: they come again when a server is busy or away, and raise when that does not help."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import httpx

from ebrm.integrations.client_requests import Answer, Plan, RefusedText, Steps
from ebrm.model import Prompt, Ranked, RefinedReward

__all__ = ["AsyncClient", "Client", "RefusedText"]

T = TypeVar("T")

_JSON = {"Content-Type": "application/json"}
# As many at a time as there are callers: the server's queue is the limit, not ours.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64)


class Client:
    """A client of one server of `ebrm serve`, or of several that serve the same model.

    Several servers take turns; one that is busy or away is passed over. `score` gives what `EnergyRewardModel.score`
    gives, so that a client can stand in for a model. May be used from several threads.

    Args:
        url: `http://127.0.0.1:8080`, or several such.
        token: the server's token, if it asks for one.
        timeout: seconds until an answer is taken to be lost.
        tries: how often a request is sent before an error is raised, with pauses that double up to 30 seconds.
        transport: instead of the network, for tests.

    Raises:
        ConfigError: no URL, or one that is none.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        token: str | None = None,
        timeout: float = 90.0,
        tries: int = 8,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._plan = Plan(url, tries)
        self._http = httpx.Client(
            headers=_headers(token), timeout=_timeout(timeout), limits=_LIMITS, transport=transport
        )

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> RefinedReward:
        """Refined rewards of responses, one prompt each; large lists go in several requests.

        Args:
            prompts: a string (one user turn) or a list of {"role", "content"} messages ending in a user turn, each.
            responses: the assistant's answers.

        Raises:
            RefusedText (a TextError): a text that the reward model cannot take; `row` says which.
            ServerError: no answer after all tries, or a server that refuses.
        """
        return self._drive(self._plan.score(prompts, responses))

    def rank(self, prompt: Prompt, responses: Sequence[str]) -> list[Ranked]:
        """The responses to one prompt, best refined reward first; errors as `score`."""
        return self._drive(self._plan.rank(prompt, responses))

    def get_reward(self, queries: Sequence[str]) -> dict[str, Any]:
        """Rewards of whole texts that went through the reward model's chat template, in one request.

        Returns:
            `rewards` [n], `scores` [n] between 0 and 1, and `extra_logs` with `base_reward` and `std` [n].

        Raises:
            RefusedText, ServerError: as `score`.
        """
        return self._drive(self._plan.get_reward(queries))

    def info(self) -> dict[str, Any]:
        """What is served: model, reward model, units, limits."""
        return self._drive(self._plan.info())

    def wait_until_ready(self, seconds: float = 600.0) -> None:
        """Return when every server scores.

        Raises:
            ServerError: one does not after `seconds`, or they serve different models.
        """
        self._drive(self._plan.wait_until_ready(seconds))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drive(self, steps: Steps[T]) -> T:
        answer: Answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value
            if isinstance(step, float):
                time.sleep(step)
                answer = None
            else:
                try:
                    answer = self._http.request(step.method, step.url, content=step.body, headers=_JSON)
                except httpx.TransportError as error:
                    answer = error


class AsyncClient:
    """The same for `async` code; see :class:`Client`."""

    def __init__(
        self,
        url: str | Sequence[str],
        token: str | None = None,
        timeout: float = 90.0,
        tries: int = 8,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._plan = Plan(url, tries)
        self._http = httpx.AsyncClient(
            headers=_headers(token), timeout=_timeout(timeout), limits=_LIMITS, transport=transport
        )

    async def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> RefinedReward:
        """As :meth:`Client.score`."""
        return await self._drive(self._plan.score(prompts, responses))

    async def rank(self, prompt: Prompt, responses: Sequence[str]) -> list[Ranked]:
        """As :meth:`Client.rank`."""
        return await self._drive(self._plan.rank(prompt, responses))

    async def get_reward(self, queries: Sequence[str]) -> dict[str, Any]:
        """As :meth:`Client.get_reward`."""
        return await self._drive(self._plan.get_reward(queries))

    async def info(self) -> dict[str, Any]:
        """As :meth:`Client.info`."""
        return await self._drive(self._plan.info())

    async def wait_until_ready(self, seconds: float = 600.0) -> None:
        """As :meth:`Client.wait_until_ready`."""
        await self._drive(self._plan.wait_until_ready(seconds))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _drive(self, steps: Steps[T]) -> T:
        answer: Answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value
            if isinstance(step, float):
                await asyncio.sleep(step)
                answer = None
            else:
                try:
                    answer = await self._http.request(step.method, step.url, content=step.body, headers=_JSON)
                except httpx.TransportError as error:
                    answer = error


def _headers(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(10.0, seconds))
