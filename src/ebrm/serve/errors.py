"""What the server refuses: one shape of error, `{"error": {"kind", "message", "row"}}`."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)

#: Seconds after which a client may come again.
RETRY_AFTER = 1


class Refused(HTTPException):
    """A request that is not answered, and why.

    Args:
        code: HTTP status.
        kind: the reason in one word, for programs.
        message: the reason for people; it holds none of the request's texts.
        row: the text it is about, counted from 0; None for the request as a whole.
        close: end the connection after the answer.
    """

    # An HTTPException, since FastAPI turns any other error while it reads a body into "400 error parsing the body".
    def __init__(self, code: int, kind: str, message: str, row: int | None = None, close: bool = False) -> None:
        headers = {"Retry-After": str(RETRY_AFTER)} if code == 503 else {}
        headers |= {"WWW-Authenticate": "Bearer"} if code == 401 else {}
        headers |= {"Connection": "close"} if close else {}
        super().__init__(code, message, headers)
        self.kind, self.row = kind, row


def response(refused: Refused) -> JSONResponse:
    """The error as an HTTP response."""
    body = {"error": {"kind": refused.kind, "message": refused.detail, "row": refused.row}}
    return JSONResponse(body, refused.status_code, refused.headers)


def handle_errors(app: FastAPI) -> None:
    """Give every error of the app the one shape, and no status of 500 and above but 503."""
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(RequestValidationError)(_shape)
    app.exception_handler(Exception)(_defect)


def _http(request: Request, error: HTTPException) -> JSONResponse:
    if isinstance(error, Refused):
        return response(error)
    kind, message = {
        400: ("malformed_json", "The body cannot be read as JSON in UTF-8."),
        404: ("not_found", "There is nothing at this path; GET /docs lists what there is."),
        405: ("method", "This path does not take this method; GET /docs lists what there is."),
    }.get(error.status_code, ("http", str(error.detail)))
    refused = Refused(error.status_code, kind, message)
    refused.headers = {**(refused.headers or {}), **(error.headers or {})}
    return response(refused)


def _shape(request: Request, error: RequestValidationError) -> JSONResponse:
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        place = faults[0]["loc"][-1]
        return response(Refused(400, "malformed_json", f"The body is not JSON: it goes wrong at character {place}."))
    if "json" not in request.headers.get("content-type", ""):
        message = "The body is not declared as JSON. Send the header Content-Type: application/json."
        return response(Refused(422, "shape", message))
    said = list(dict.fromkeys(f"{_place(fault['loc'])}{_sentence(fault)}" for fault in faults))
    more = f" ({len(said) - 3} more like these)" if len(said) > 3 else ""
    row = next((part for part in faults[0]["loc"] if isinstance(part, int)), faults[0].get("ctx", {}).get("row"))
    return response(Refused(422, "shape", " ".join(said[:3]) + more, row))


def _place(parts: tuple[Any, ...]) -> str:
    """`prompts[3][0].content: ` (the names of alternatives that pydantic puts in are left out)."""
    shown = ""
    for part in parts[1:]:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif part.isidentifier() and part != "str":
            shown += f".{part}" if shown else part
    return f"{shown}: " if shown else ""


def _sentence(fault: dict[str, Any]) -> str:
    text = str(fault["msg"]).removeprefix("Value error, ").rstrip(".")
    return f"{text}."


def _defect(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises the error again after this answer, so that the log has its traceback.
    # Raised, it makes uvicorn end the connection: a client that is not told would send its next request into nothing.
    message = "The server failed on this request, which is a defect; its log says more."
    return response(Refused(503, "defect", message, close=True))
