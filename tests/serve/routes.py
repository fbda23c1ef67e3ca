"""Requests to an application in this process, and the six kinds of input."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import httpx
from fastapi import FastAPI

from ebrm.data import render
from ebrm.model import EnergyRewardModel

JSON = {"content-type": "application/json"}

#: Inputs that every way to a score must read alike: (prompt, response).
KINDS: dict[str, tuple[Any, str]] = {
    "plain": ("Question 3", "alpha beta 7"),
    "conversational": ([{"role": "user", "content": "Question 3"}], "alpha beta 7"),
    "multi-turn": (
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Question 3"},
            {"role": "assistant", "content": "gamma"},
            {"role": "user", "content": "And 4?"},
        ],
        "delta",
    ),
    "unicode": ("你好 \ud83d\ude00 é \ud800", "ß naïve \U0001f600"),
    "over-long": ("eta theta " * 60, "zeta"),
    "empty": ("Question 5", ""),
}


def rendered(energy: EnergyRewardModel, kind: str) -> str:
    """An input as a policy writes it, in the reward model's template."""
    prompt, response = KINDS[kind]
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    rule, tokenizer = energy.backbone.text_rule, energy.backbone.tokenizer
    return render(rule, tokenizer, [*turns, {"role": "assistant", "content": response}])


def features(energy: EnergyRewardModel, prompts: Sequence[Any], responses: Sequence[str]) -> tuple[Any, Any]:
    """(embedding, base reward) of texts, as the model refines them."""
    reading, _ = energy.backbone.read_texts(prompts, responses)
    return reading.embedding, reading.reward


def client(app: FastAPI, **more: Any) -> httpx.AsyncClient:
    """A client of an application in this process; a defect shows as its answer."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server", **more)


def ask(app: FastAPI, method: str, path: str, **more: Any) -> httpx.Response:
    """One answer."""

    async def once() -> httpx.Response:
        async with client(app) as c:
            return await c.request(method, path, **more)

    return asyncio.run(once())


def together(app: FastAPI, bodies: Sequence[Any], path: str = "/v1/score") -> list[httpx.Response]:
    """Answers to requests made at the same time."""

    async def all_of_them() -> list[httpx.Response]:
        async with client(app) as c:
            return list(await asyncio.gather(*(c.post(path, json=body) for body in bodies)))

    return asyncio.run(all_of_them())


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run async code."""
    return asyncio.run(work)


async def turns() -> None:
    """Let everything on the event loop go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)
