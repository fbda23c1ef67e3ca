"""What comes in and goes out of ebrm's own routes, and the shape of errors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

#: Most turns of a conversation, and longest name of a role.
_TURNS, _ROLE = 1024, 64
#: Most nodes of a density curve.
MAX_NODES = 1025


class Message(BaseModel):
    """One turn; what else a message holds is not looked at, as offline."""

    role: str = Field(max_length=_ROLE, examples=["user"])
    content: str = Field(examples=["What is the capital of France?"])


Conversation = list[Message]
PromptBody = str | list[Message]

_PROMPT = "A string (one user turn), or messages that end in a user turn."
_NODES = "Also give p(r | e) at this many rewards, equally spaced over its range."


def must_end_in_answer(messages: Conversation, row: int) -> None:
    """Refuse a conversation that has no answer to score."""
    if not messages or messages[-1].role != "assistant":
        raise PydanticCustomError(
            "conversation", "Conversation {row} does not end in an assistant message: nothing to score", {"row": row}
        )


class ScoreRequest(BaseModel):
    """Texts to score: `prompts` with `responses`, or `messages`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompts": ["What is the capital of France?"], "responses": ["Paris."]}],
        },
    )

    prompts: list[PromptBody] | None = Field(default=None, description=f"One a response. {_PROMPT}")
    responses: list[str] | None = Field(default=None, description="The assistant's answers; they may be empty.")
    messages: list[Conversation] | None = Field(
        default=None, description="Conversations that end in the assistant's answer, which is scored."
    )
    density: int | None = Field(default=None, ge=3, le=MAX_NODES, description=_NODES)

    @model_validator(mode="after")
    def _one_form(self) -> ScoreRequest:
        if self.messages is not None:
            if self.prompts is not None or self.responses is not None:
                raise ValueError("Give prompts and responses, or messages, not both.")
            for row, messages in enumerate(self.messages):
                must_end_in_answer(messages, row)
        elif self.prompts is None or self.responses is None:
            raise ValueError("Give prompts and responses, or messages.")
        elif len(self.prompts) != len(self.responses):
            raise ValueError(
                f"There are {len(self.prompts)} prompts but {len(self.responses)} responses; give one each."
            )
        return self


class RankRequest(BaseModel):
    """Responses to one prompt, to be ranked."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompt": "What is the capital of France?", "responses": ["Paris.", "I don't know."]}],
        },
    )

    prompt: PromptBody = Field(description=_PROMPT)
    responses: list[str] = Field(description="The assistant's answers; they may be empty.")
    density: int | None = Field(default=None, ge=3, le=MAX_NODES, description=_NODES)


class ScoreResult(BaseModel):
    """The numbers of one response, in the base reward model's units."""

    reward: float = Field(description="The refined reward.")
    base_reward: float = Field(description="What the frozen reward model says.")
    std: float = Field(description="Standard deviation of the reward under the fitted density.")
    interval: tuple[float, float] = Field(description="Central interval; 90% unless /info says otherwise.")
    log_density: float = Field(description="log p(reward | e), per unit.")
    delta: float = Field(description="reward - base_reward.")


class RankResult(BaseModel):
    """One response in a ranking."""

    index: int = Field(description="Its place in the list that was given, from 0.")
    rank: int = Field(description="1 is best.")
    reward: float = Field(description="The refined reward, by which they are ranked.")
    base_reward: float = Field(description="What the frozen reward model says.")
    std: float = Field(description="Standard deviation of the reward under the fitted density.")
    interval: tuple[float, float] = Field(description="Central interval.")
    p_best: float = Field(description="Probability that its reward is the largest, densities taken as independent.")


class Density(BaseModel):
    """Curves p(r | e)."""

    rewards: list[float] = Field(description="[g], in the base reward model's units.")
    p: list[list[float]] = Field(description="[n][g], per unit, one curve a response in the order given.")


class ScoreAnswer(BaseModel):
    """What `/v1/score` gives."""

    model: str = Field(description="What is served.")
    results: list[ScoreResult] = Field(description="One a response, in the order given.")
    density: Density | None = None


class RankAnswer(BaseModel):
    """What `/v1/rank` gives."""

    model: str = Field(description="What is served.")
    results: list[RankResult] = Field(description="Best first; ties in the order given.")
    density: Density | None = None


class Fault(BaseModel):
    """Why a request was not answered."""

    kind: str = Field(description="The reason in one word, for programs.")
    message: str = Field(description="The reason for people.")
    row: int | None = Field(description="The text it is about, from 0.")


class ErrorAnswer(BaseModel):
    """Every status but 200."""

    error: Fault
