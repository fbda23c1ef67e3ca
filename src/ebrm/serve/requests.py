"""Bodies of ebrm's own routes, and errors: every status but 200 has `{"error": {"kind", "message", "row"}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from ebrm.data import ROLE_NAMES

#: Most nodes of a density curve.
MAX_NODES = 1025
#: Characters that an error shows of a field's name.
NAME = 40


class FirstFault(FailFast):
    """A list is checked up to its first fault: errors of a hundred thousand items take minutes and gigabytes."""

    def __hash__(self) -> int:  # an alternative of a union must have one
        return hash(FirstFault)


T = TypeVar("T")
Many = Annotated[list[T], FirstFault()]


class Message(BaseModel):
    """One turn; tool_calls, tool_call_id, name and reasoning_content go to the chat template, others are ignored."""

    model_config = ConfigDict(extra="allow")

    role: str = Field(max_length=64, examples=["user"])
    content: str | Many[str | dict[str, Any]] | None = Field(
        default=None,
        examples=["What is the capital of France?"],
        description="A text, or parts of type text; null beside tool calls.",
    )


Conversation = Many[Message]


class PromptWithTools(BaseModel):
    """A conversation with the tools that it offers, which go to the chat template."""

    model_config = ConfigDict(extra="forbid")

    messages: Conversation
    tools: Many[dict[str, Any]] | None = None


PromptBody = str | Conversation | PromptWithTools
ResponseBody = str | Message

_PROMPT = "A string (one user turn), messages that end in a user turn, or messages and tools."
_NODES = "Also return p(r | e) at this many rewards, equally spaced over its range."
_Nodes = Annotated[int | None, Field(ge=3, le=MAX_NODES, description=_NODES)]
_RESPONSES = "The assistant's answers: strings, which may be empty, or messages with tool calls or reasoning."


def prompt_of(body: PromptBody) -> Any:
    """The prompt in the form `EnergyRewardModel.score` takes: a string, messages, or messages and tools."""
    if isinstance(body, PromptWithTools):
        return {"messages": prompt_of(body.messages), "tools": body.tools}
    return body if isinstance(body, str) else [response_of(message) for message in body]


def response_of(body: ResponseBody) -> Any:
    """The response in the form `EnergyRewardModel.score` takes: a string, or a message."""
    return body if isinstance(body, str) else body.model_dump(exclude_none=True)


def split_conversation(body: Conversation | PromptWithTools) -> tuple[Any, Any]:
    """(prompt, response) of a conversation that ends in the response."""
    messages = body.messages if isinstance(body, PromptWithTools) else body
    prompt = prompt_of(messages[:-1])
    tools = body.tools if isinstance(body, PromptWithTools) else None
    return ({"messages": prompt, "tools": tools} if tools else prompt), response_of(messages[-1])


def must_end_in_answer(body: Conversation | PromptWithTools, row: int) -> None:
    """Refuse a conversation that has no response to score."""
    messages = body.messages if isinstance(body, PromptWithTools) else body
    if not messages or ROLE_NAMES.get(messages[-1].role.strip().lower()) != "assistant":
        raise PydanticCustomError(
            "conversation", "Conversation {row} does not end in an assistant message: nothing to score", {"row": row}
        )


def _refuse_one_string(data: Any, *names: str) -> Any:
    """Refuse one string where a list is meant: it would be read letter by letter."""
    for name in names if isinstance(data, dict) else ():
        if isinstance(data.get(name), str):
            one = "text" if name == "rendered" else name.removesuffix("s")
            told = {"name": name, "one": one}
            raise PydanticCustomError("one_string", "{name} is one string; give a list, one {one} a row", told)
    return data


def _body(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [example]})


class ScoreRequest(BaseModel):
    """Texts to score: `prompts` with `responses`, or `messages`, or `rendered`."""

    model_config = _body({"prompts": ["What is the capital of France?"], "responses": ["Paris."]})

    prompts: Many[PromptBody] | None = Field(default=None, description=f"One a response. {_PROMPT}")
    responses: Many[ResponseBody] | None = Field(default=None, description=_RESPONSES)
    messages: Many[Conversation | PromptWithTools] | None = Field(
        default=None, description="Conversations that end in the assistant's answer, which is scored."
    )
    rendered: Many[str] | None = Field(
        default=None, description="Whole texts that went through the reward model's chat template already."
    )
    density: _Nodes = None

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: Any) -> Any:
        return _refuse_one_string(data, "prompts", "responses", "rendered")

    @model_validator(mode="after")
    def _one_form(self) -> ScoreRequest:
        pair = self.prompts is not None or self.responses is not None
        if pair + (self.messages is not None) + (self.rendered is not None) > 1:
            raise ValueError("Give prompts and responses, or messages, or rendered, not several of these.")
        for row, messages in enumerate(self.messages or []):
            must_end_in_answer(messages, row)
        if self.messages is None and self.rendered is None:
            if self.prompts is None or self.responses is None:
                raise ValueError("Give prompts and responses, or messages, or rendered.")
            prompts, responses = len(self.prompts), len(self.responses)
            if prompts != responses:
                raise ValueError(f"There are {prompts} prompts but {responses} responses; give one each.")
        return self


class RankRequest(BaseModel):
    """Responses to one prompt, to be ranked."""

    model_config = _body({"prompt": "What is the capital of France?", "responses": ["Paris.", "I don't know."]})

    prompt: PromptBody = Field(description=_PROMPT)
    responses: Many[ResponseBody] = Field(description=_RESPONSES)
    density: _Nodes = None

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: Any) -> Any:
        return _refuse_one_string(data, "responses")


class _Numbers(BaseModel):
    reward: float = Field(description="The refined reward.")
    base_reward: float = Field(description="The frozen reward model's reward.")
    std: float = Field(description="Standard deviation of the reward under the fitted density.")
    interval: tuple[float, float] = Field(description="Central interval; 90% unless /info has another coverage.")


class ScoreResult(_Numbers):
    """The numbers of one response, in the base reward model's units."""

    log_density: float = Field(description="log p(reward | e), per unit.")
    delta: float = Field(description="reward - base_reward.")


class RankResult(_Numbers):
    """One response in a ranking by refined reward."""

    index: int = Field(description="Its index in the list that was given, from 0.")
    rank: int = Field(description="1 is best.")
    p_best: float = Field(description="Probability that it is the best; calibrated where /info has a calibration.")


class Density(BaseModel):
    """Curves p(r | e)."""

    rewards: list[float] = Field(description="[g], in the base reward model's units.")
    p: list[list[float]] = Field(description="[n][g], per unit, one curve a response in the order given.")


class ScoreAnswer(BaseModel):
    """The answer of `/v1/score`."""

    model: str = Field(description="The model's name.")
    results: list[ScoreResult] = Field(description="One a response, in the order given.")
    density: Density | None = None


class RankAnswer(ScoreAnswer):
    """The answer of `/v1/rank`."""

    results: list[RankResult] = Field(description="Best first; ties in the order given.")  # type: ignore[assignment]
    confidence: float | None = Field(
        default=None,
        description="max(P, 1 - P) of the first against the second, 0.5 to 1; null for fewer than two responses.",
    )


class _Fault(BaseModel):
    kind: str = Field(description="The reason in one word, for programs.")
    message: str = Field(description="The reason for people.")
    row: int | None = Field(description="The text it is about, from 0.")


class ErrorAnswer(BaseModel):
    """Every status but 200."""

    error: _Fault


_STATUSES = {
    400: "The body is not JSON, or the Host is not one of this server.",
    401: "No token, or a wrong one.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    422: "Another shape, over a limit, or a text that the reward model cannot read.",
    503: "The queue is full, the deadline has passed, or the server is ending.",
}
#: Statuses of the scoring routes besides 200.
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorAnswer, "description": reason} for code, reason in _STATUSES.items()
}


#: An absolute path inside a text; its last name is kept.
_PATH = re.compile(r"(?<![\w.~/\\:-])(?:file:/*|~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"`,;:()<>]+[/\\])+([^\s/\\'\"`,;:()<>]*)")


def without_folders(value: Any) -> Any:
    """A JSON value whose absolute paths are their last names: where files lie on this machine is nobody's business."""
    if isinstance(value, Mapping):
        return {name: without_folders(inside) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inside) for inside in value]
    if not isinstance(value, str):
        return value
    for path in (PurePosixPath(value), PureWindowsPath(value)):
        if path.is_absolute() and path.name:
            return path.name
    return _PATH.sub(r"\1", value)


class Refused(HTTPException):
    """A request answered by an error; `message` holds none of its texts, `close` ends the connection after it."""

    # An HTTPException, since FastAPI turns any other error while it reads a body into "400 error parsing the body".
    def __init__(self, code: int, kind: str, message: str, row: int | None = None, close: bool = False) -> None:
        headers = {"Retry-After": "1"} if code == 503 else {}
        headers |= {"WWW-Authenticate": "Bearer"} if code == 401 else {}
        headers |= {"Connection": "close"} if close else {}
        super().__init__(code, without_folders(message), headers)
        self.kind, self.row = kind, row

    def response(self) -> JSONResponse:
        """The error as an HTTP response."""
        body = {"error": {"kind": self.kind, "message": self.detail, "row": self.row}}
        return JSONResponse(body, self.status_code, self.headers)


def handle_errors(app: FastAPI) -> None:
    """Give every error of the app the one shape, and no status of 500 and above but 503."""
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_shape_error)
    app.exception_handler(Exception)(_defect)


def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    if isinstance(error, Refused):
        return error.response()
    kind, message = {
        404: ("not_found", "There is nothing at this path; GET /docs lists what there is."),
        405: ("method", "This path does not take this method; GET /docs lists what there is."),
    }.get(error.status_code, ("http", str(error.detail)))
    refused = Refused(error.status_code, kind, message)
    refused.headers = {**(refused.headers or {}), **(error.headers or {})}
    return refused.response()


def _shape_error(request: Request, error: RequestValidationError) -> JSONResponse:
    return shape_refused([{**fault, "loc": fault["loc"][1:]} for fault in error.errors()]).response()


def shape_refused(faults: Sequence[Any]) -> Refused:
    """The refusal of a body of another shape, by pydantic's errors."""
    told = (str(fault["msg"]).removeprefix("Value error, ").rstrip(".") for fault in faults)
    sentences = list(dict.fromkeys(f"{_place(f['loc'])}{text}." for f, text in zip(faults, told, strict=True)))
    more = f" ({len(sentences) - 3} more like these)" if len(sentences) > 3 else ""
    row = next((part for part in faults[0]["loc"] if isinstance(part, int)), faults[0].get("ctx", {}).get("row"))
    return Refused(422, "shape", " ".join(sentences[:3]) + more, row)


#: What pydantic writes into a place for the alternatives of a union.
_ALTERNATIVES = ("str", Message.__name__, PromptWithTools.__name__)


def _place(parts: tuple[Any, ...]) -> str:
    """`prompts[3][0].content: ` (the names of alternatives that pydantic puts in are left out)."""
    shown = ""
    for part in parts:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif part.isidentifier() and part not in _ALTERNATIVES:
            shown += f".{part[:NAME]}" if shown else part[:NAME]
    return f"{shown}: " if shown else ""


def _defect(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises the error again after this answer, so that the log has its traceback.
    # Raised, it makes uvicorn end the connection: a client that is not told would send its next request into nothing.
    message = "The server failed on this request, which is a defect; see its log."
    return Refused(503, "defect", message, close=True).response()
