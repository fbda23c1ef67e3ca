"""Compatible routes: vLLM's `/classify` and `/pooling` (used by verl), and OpenRLHF's `/get_reward`."""

from __future__ import annotations

import time
import uuid
from typing import Any, Generic, Literal, TypeVar

import torch
from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ebrm.serve.requests import ERRORS, Conversation, Many, PromptWithTools, must_end_in_answer, split_conversation
from ebrm.serve.scoring import ScoreItem, Scoring

T = TypeVar("T")


class PoolingRequest(BaseModel):
    """vLLM's request; its other fields (add_special_tokens, …) are decided by the model's text rule."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"input": "<|user|>Hi<|assistant|>Hello", "use_activation": False}]}
    )
    model: str | None = Field(default=None, description="Ignored: one model is served.")
    input: str | Many[str] | None = Field(default=None, description="Whole texts, already in the chat template.")
    messages: Conversation | None = Field(
        default=None, description="Instead of input: a conversation that ends in the assistant's answer."
    )
    tools: Many[dict[str, Any]] | None = Field(default=None, description="With messages: the tools they offer.")
    use_activation: Literal[False] = Field(description="Must be false: rewards come without an activation.")

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

    def texts(self) -> list[ScoreItem]:
        """The texts to score."""
        if self.messages is not None:
            prompt, response = split_conversation(PromptWithTools(messages=self.messages, tools=self.tools))
            return [ScoreItem(response, prompt)]
        return [ScoreItem(text) for text in ([self.input] if isinstance(self.input, str) else self.input or [])]


class _PoolRequest(PoolingRequest):
    task: Literal["classify"] = Field(default="classify", description="Embeddings are not served.")


class _Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class _Classified(BaseModel):
    index: int
    label: str = "reward"
    probs: list[float] = Field(description="The refined reward. It is no probability; the name is vLLM's.")
    num_classes: int = 1


class _Pooled(BaseModel):
    index: int
    object: str = "pooling"
    data: list[float] = Field(description="The refined reward.")


class _PoolingAnswer(BaseModel, Generic[T]):
    id: str
    object: str = "list"
    created: int
    model: str
    data: list[T]
    usage: _Usage


class GetRewardRequest(BaseModel):
    """OpenRLHF's request: `query` holds prompt and response as the policy generated them, with special tokens."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": ["<|user|>Hi<|assistant|>Hello"]}]})

    query: Many[str] = Field(description="Whole texts; the list may be empty.")
    prompts: list[Any] | None = Field(default=None, description="Ignored: query holds them.")
    labels: list[Any] | None = Field(default=None, description="Ignored.")


class _GetRewardAnswer(BaseModel):
    rewards: list[float] = Field(description="Refined rewards.")
    scores: list[float] = Field(description="Refined rewards between 0 and 1, for OpenRLHF's dynamic filtering.")
    extra_logs: dict[str, list[float]] = Field(description="base_reward and std.")


def add_compat_routes(app: FastAPI, scoring: Scoring, name: str) -> None:
    """Add the three routes."""

    async def pooled(request: Request, body: PoolingRequest, kind: str, values: str) -> dict[str, Any]:
        scored = await scoring.answer(request, lambda: scoring.score(body.texts()))
        tokens = sum(one.tokens for one in scored)
        data = [{"index": i, values: [one.values["reward"]]} for i, one in enumerate(scored)]
        usage = _Usage(prompt_tokens=tokens, total_tokens=tokens)
        made = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time())}
        return {**made, "model": name, "data": data, "usage": usage}

    @app.post("/classify", response_model=_PoolingAnswer[_Classified], responses=ERRORS)
    async def classify(request: Request, body: PoolingRequest) -> Any:
        """Refined rewards in vLLM's shape, as verl's discriminative reward model requests them."""
        return await pooled(request, body, "classify", "probs")

    @app.post("/pooling", response_model=_PoolingAnswer[_Pooled], responses=ERRORS)
    async def pooling(request: Request, body: _PoolRequest) -> Any:
        """Refined rewards in vLLM's other shape."""
        return await pooled(request, body, "pool", "data")

    @app.post("/get_reward", response_model=_GetRewardAnswer, responses=ERRORS)
    async def get_reward(request: Request, body: GetRewardRequest) -> Any:
        """Refined rewards for OpenRLHF's `--reward.remote_url`."""
        scored = await scoring.answer(request, lambda: scoring.score([ScoreItem(text) for text in body.query]))
        rewards = [one.values["reward"] for one in scored]
        scores = scoring.model.to_score(torch.tensor(rewards)).tolist()
        logs = {key: [one.values[key] for one in scored] for key in ("base_reward", "std")}
        return _GetRewardAnswer(rewards=rewards, scores=scores, extra_logs=logs)
