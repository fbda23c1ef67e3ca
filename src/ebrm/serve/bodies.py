"""Request bodies: JSON read within limits, off the event loop where it is large, checked up to its first fault."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Awaitable, Callable
from functools import partial
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NamedTuple

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.types import Receive, Scope

from ebrm.serve.requests import NAME, Refused, shape_refused

#: Levels of lists and objects in a body, and fields of one object: more than any request needs.
MAX_DEPTH, MAX_FIELDS = 32, 512
#: Characters of a number. Python reads an integer in time that grows with the square of its length.
MAX_NUMBER = 400
#: Bytes of a body that is read on the event loop itself: in at most a few milliseconds, less than a thread costs.
_SMALL = 16 * 2**10
_SPACE = re.compile(rb"[ \t\n\r]*+")
# The run of escapes is possessive, or an unterminated string would be tried from every escape in it.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*+)(\.[0-9]++)?([eE][-+]?[0-9]++)?")
_WORDS = (
    (b"null", None), (b"true", True), (b"false", False),
    (b"NaN", float("nan")), (b"Infinity", float("inf")), (b"-Infinity", float("-inf")),
)  # fmt: skip
_OPEN_LIST, _CLOSE_LIST, _OPEN, _CLOSE, _COMMA, _COLON, _QUOTE = b'[]{},:"'
#: Fields whose items are texts, which errors name by their row.
_ROWS = frozenset(("prompts", "responses", "rendered", "query", "input"))


class JsonLimits(NamedTuple):
    """Most values in a body (strings, numbers, lists, …), and most characters of a string in it."""

    values: int
    characters: int


def read_json(body: bytes, limits: JsonLimits) -> Any:
    """The value of a body, as `json.loads` reads it, but in UTF-8 alone, each name once, and within limits.

    Written in Python, so that other threads have their turns while a large body is read; a limit is checked before
    what exceeds it is read.

    Raises:
        Refused: 400 for what is not JSON or nested too deep, 422 for what is over another limit.
    """
    return _Reader(body, limits).read()


class _Reader:
    def __init__(self, body: bytes, limits: JsonLimits) -> None:
        self._body, self._limits = body, limits
        self._left = limits.values
        self._longest = 6 * limits.characters + 2  # bytes of a string: all of it escaped (\u0041), and its quotes
        self._path: list[str | int] = []

    def read(self) -> Any:
        body = self._body
        start = self._skip(3 if body.startswith(b"\xef\xbb\xbf") else 0)
        value, end = self._value(start, 0)
        if (end := self._skip(end)) != len(body):
            raise self._malformed(end)
        return value

    def _skip(self, at: int) -> int:
        found = _SPACE.match(self._body, at)
        return at if found is None else found.end()

    def _byte(self, at: int) -> int:
        return self._body[at] if at < len(self._body) else -1

    def _value(self, at: int, depth: int) -> tuple[Any, int]:
        self._left -= 1
        if self._left < 0:
            raise Refused(
                422, "too_many_values",
                f"The body holds more than {self._limits.values:,} values (strings, numbers, lists, objects). Send "
                "several requests.",
            )  # fmt: skip
        first = self._byte(at)
        if first == _QUOTE:
            return self._string(at)
        if first in (_OPEN_LIST, _OPEN):
            if depth == MAX_DEPTH:
                raise Refused(400, "too_deep", f"The body is nested more than {MAX_DEPTH} levels deep.")
            return self._list(at + 1, depth + 1) if first == _OPEN_LIST else self._object(at + 1, depth + 1)
        return self._scalar(at)

    def _list(self, at: int, depth: int) -> tuple[list[Any], int]:
        made: list[Any] = []
        at = self._skip(at)
        if self._byte(at) == _CLOSE_LIST:
            return made, at + 1
        while True:
            self._path.append(len(made))
            value, at = self._value(at, depth)
            made.append(value)
            self._path.pop()
            at = self._skip(at)
            mark = self._byte(at)
            if mark == _CLOSE_LIST:
                return made, at + 1
            if mark != _COMMA:
                raise self._malformed(at)
            at = self._skip(at + 1)

    def _object(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        made: dict[str, Any] = {}
        at = self._skip(at)
        if self._byte(at) == _CLOSE:
            return made, at + 1
        while True:
            if self._byte(at) != _QUOTE:
                raise self._malformed(at)
            name, at = self._string(at)
            if name in made:
                raise self._refused("shape", f"The field {_shown(name)} is given twice; give it once.")
            if len(made) == MAX_FIELDS:
                raise self._refused("shape", f"An object has more than {MAX_FIELDS} fields.")
            at = self._skip(at)
            if self._byte(at) != _COLON:
                raise self._malformed(at)
            self._path.append(name)
            made[name], at = self._value(self._skip(at + 1), depth)
            self._path.pop()
            at = self._skip(at)
            mark = self._byte(at)
            if mark == _CLOSE:
                return made, at + 1
            if mark != _COMMA:
                raise self._malformed(at)
            at = self._skip(at + 1)

    def _string(self, at: int) -> tuple[str, int]:
        found = _STRING.match(self._body, at, at + self._longest)
        if found is None:
            if at + self._longest < len(self._body):
                raise self._too_long()
            raise self._malformed(at)
        try:
            text, _ = scanstring(found[0].decode(), 1)
        except UnicodeDecodeError as error:
            raise self._malformed(at + error.start) from None
        except json.JSONDecodeError as error:
            raise self._malformed(at + error.pos) from None
        if len(text) > self._limits.characters:
            raise self._too_long()
        return text, found.end()

    def _scalar(self, at: int) -> tuple[Any, int]:
        found = _NUMBER.match(self._body, at, at + MAX_NUMBER + 1)
        if found is not None:
            text = found[0]
            if len(text) > MAX_NUMBER:
                raise Refused(400, "malformed_json", f"The body holds a number of more than {MAX_NUMBER} characters.")
            return (int(text) if found[1] is None and found[2] is None else float(text)), found.end()
        for word, value in _WORDS:
            if self._body.startswith(word, at):
                return value, at + len(word)
        raise self._malformed(at)

    def _malformed(self, at: int) -> Refused:
        return Refused(400, "malformed_json", f"The body is not JSON in UTF-8: it goes wrong at byte {at:,}.")

    def _too_long(self) -> Refused:
        return self._refused("text", f"This text is longer than the {self._limits.characters:,} characters of a text.")

    def _refused(self, kind: str, message: str) -> Refused:
        path = self._path
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:NAME]}" for part in path).lstrip(".")
        row = None
        if len(path) > 1 and path[0] in _ROWS:
            row = path[1]
        elif len(path) > 2 and path[0] == "messages":  # of a conversation each, or on vLLM's routes of one
            row = path[1] if isinstance(path[2], int) else 0
        return Refused(422, kind, f"{place}: {message}" if place else message, row if isinstance(row, int) else None)


def _shown(name: str) -> str:
    return json.dumps(name if len(name) <= NAME else f"{name[:NAME]}…", ensure_ascii=False)


class BodyRoute(APIRoute):
    """A route whose `body` is read by `read_json` and then checked; errors are :class:`Refused`."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """The handler; the application's `state.scoring` has the limits and the thread."""
        handle = super().get_route_handler()
        shape = typing.get_type_hints(self.endpoint).get("body")
        if shape is None:
            return handle
        check = TypeAdapter(shape).validate_python

        async def checked(request: Request) -> Response:
            scoring = request.app.state.scoring
            if not _says_json(request.headers.get("content-type", "")):
                message = "The body is not declared as JSON. Send the header Content-Type: application/json."
                raise Refused(422, "shape", message)
            # Not `request.body()`, which keeps the bytes until the request is answered.
            body = b"".join([part async for part in request.stream()])
            if not body:
                raise Refused(422, "shape", "The body is empty. Send JSON; GET /docs lists what each route takes.")
            scoring.admit(1)
            if len(body) <= _SMALL:
                value = _read(body, scoring.json_limits, check)
            else:
                value = await scoring.answer(
                    request, partial(scoring.on_reader, _read, body, scoring.json_limits, check)
                )
            del body
            return await handle(_Read(request.scope, request.receive, value))

        return checked


def _says_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _read(body: bytes, limits: JsonLimits, check: Callable[[Any], BaseModel]) -> BaseModel:
    value = read_json(body, limits)
    try:
        return check(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
    raise shape_refused(faults)


class _Read(Request):
    """A request whose body is read already."""

    def __init__(self, scope: Scope, receive: Receive, value: BaseModel) -> None:
        super().__init__(scope, receive)
        self._value = value

    async def body(self) -> bytes:
        """Not empty, so that `json` is asked for."""
        return b"{}"

    async def json(self) -> Any:
        """What was read and checked, which FastAPI takes as it is."""
        return self._value
