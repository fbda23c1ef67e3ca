"""Routes in the shapes of others: vLLM's `/classify` and `/pooling` (verl asks so), and OpenRLHF's `/get_reward`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

import torch
from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ebrm.serve.deadline import ERRORS, answer, prompt_of
from ebrm.serve.requests import Conversation, must_end_in_answer
from ebrm.serve.scoring import RenderedText, Scored, ScoreItem, Scoring


class PoolingRequest(BaseModel):
    """vLLM's request: `input`, texts that went through the reward model's chat template, or one conversation."""

    model_config = ConfigDict(
        # vLLM's other fields (add_special_tokens, truncate_prompt_tokens, …) are decided by the model's text rule.
        json_schema_extra={"examples": [{"input": "<|user|>Hi<|assistant|>Hello", "use_activation": False}]}
    )

    model: str | None = Field(default=None, description="Taken and not looked at: one model is served.")
    input: str | list[str] | None = Field(default=None, description="Whole texts, already in the chat template.")
    messages: Conversation | None = Field(
        default=None, description="Instead of input: a conversation that ends in the assistant's answer."
    )
    use_activation: Literal[False] = Field(description="Must be false: what is given are rewards as they are.")

    @model_validator(mode="before")
    @classmethod
    def _raw_rewards(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("use_activation") is not False:
            raise PydanticCustomError(
                "activation",
                "use_activation must be false. vLLM takes a sigmoid unless it is; these are rewards in the base "
                "reward model's units, and no activation is put on them",
            )
        return data

    @model_validator(mode="after")
    def _one_form(self) -> PoolingRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("Give input or messages, one of the two.")
        if self.messages is not None:
            must_end_in_answer(self.messages, 0)
        return self

    def texts(self) -> list[ScoreItem | RenderedText]:
        """What is to be scored."""
        if self.messages is not None:
            return [ScoreItem(prompt_of(self.messages[:-1]), self.messages[-1].content)]
        return [RenderedText(text) for text in ([self.input] if isinstance(self.input, str) else self.input or [])]


class PoolRequest(PoolingRequest):
    """vLLM's request to `/pooling`."""

    task: Literal["classify"] = Field(default="classify", description="Embeddings are not given.")


class Usage(BaseModel):
    """How much was read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class Classified(BaseModel):
    """One text's reward, as `/classify` gives it."""

    index: int
    label: str = "reward"
    probs: list[float] = Field(description="The refined reward. It is no probability; the name is vLLM's.")
    num_classes: int = 1


class ClassifyAnswer(BaseModel):
    """What `/classify` gives."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Classified]
    usage: Usage


class Pooled(BaseModel):
    """One text's reward, as `/pooling` gives it."""

    index: int
    object: str = "pooling"
    data: list[float] = Field(description="The refined reward.")


class PoolingAnswer(BaseModel):
    """What `/pooling` gives."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Pooled]
    usage: Usage


class GetRewardRequest(BaseModel):
    """OpenRLHF's request: `query` holds prompt and response as the policy wrote them, special tokens included."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": ["<|user|>Hi<|assistant|>Hello"]}]})

    query: list[str] = Field(description="Whole texts; none is fine.")
    prompts: list[Any] | None = Field(default=None, description="Taken and not looked at: query holds them.")
    labels: list[Any] | None = Field(default=None, description="Taken and not looked at.")


class GetRewardAnswer(BaseModel):
    """What `/get_reward` gives, one number a query each."""

    rewards: list[float] = Field(description="Refined rewards.")
    scores: list[float] = Field(description="Refined rewards between 0 and 1, for OpenRLHF's dynamic filtering.")
    extra_logs: dict[str, list[float]] = Field(description="base_reward and std.")


def add_compat_routes(app: FastAPI, scoring: Scoring, name: str) -> None:
    """Add the three routes."""

    @app.post("/classify", response_model=ClassifyAnswer, responses=ERRORS)
    async def classify(request: Request, body: PoolingRequest) -> Any:
        """Refined rewards in vLLM's shape; verl's discriminative reward model asks for them so."""
        scored = await answer(request, scoring, lambda: scoring.score(body.texts()))
        data = [Classified(index=i, probs=[one.values["reward"]]) for i, one in enumerate(scored)]
        return ClassifyAnswer(id=f"classify-{uuid.uuid4().hex}", created=_now(), model=name, data=data,
                              usage=_usage(scored))  # fmt: skip

    @app.post("/pooling", response_model=PoolingAnswer, responses=ERRORS)
    async def pooling(request: Request, body: PoolRequest) -> Any:
        """Refined rewards in vLLM's other shape."""
        scored = await answer(request, scoring, lambda: scoring.score(body.texts()))
        data = [Pooled(index=i, data=[one.values["reward"]]) for i, one in enumerate(scored)]
        return PoolingAnswer(id=f"pool-{uuid.uuid4().hex}", created=_now(), model=name, data=data,
                             usage=_usage(scored))  # fmt: skip

    @app.post("/get_reward", response_model=GetRewardAnswer, responses=ERRORS)
    async def get_reward(request: Request, body: GetRewardRequest) -> Any:
        """Refined rewards for OpenRLHF's `--reward.remote_url`."""
        scored = await answer(request, scoring, lambda: scoring.score([RenderedText(text) for text in body.query]))
        rewards = [one.values["reward"] for one in scored]
        scores = scoring.model.to_score(torch.tensor(rewards)).tolist()
        logs = {key: [one.values[key] for one in scored] for key in ("base_reward", "std")}
        return GetRewardAnswer(rewards=rewards, scores=scores, extra_logs=logs)


def _now() -> int:
    return int(time.time())


def _usage(scored: Sequence[Scored]) -> Usage:
    tokens = sum(one.tokens for one in scored)
    return Usage(prompt_tokens=tokens, total_tokens=tokens)
