"""What a client is told when something goes wrong: OpenAI's error body, and nothing about our insides.

    400   {"error": {"message": "top_p must be in (0, 1], got 2.", "type": "invalid_request_error",
                     "param": "top_p", "code": null}}

The `openai` package turns the status into its exception classes: 400 into BadRequestError, 401 into
AuthenticationError, 404 into NotFoundError, 503 into InternalServerError (which it tries again by itself).

What the client did wrong is told in our own words, which name the field. What went wrong on our side is told
as "internal error"; the traceback goes into the log and not into a body, where it would show paths and code.

vLLM V1: `vllm/entrypoints/openai/engine/protocol.py` (`ErrorResponse`), `vllm/entrypoints/utils.py`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from minivllm.server.async_llm import EngineClosedError

logger = logging.getLogger(__name__)

# OpenAI's words for a status.
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    503: "overloaded_error",
}


class APIError(Exception):
    """An answer that is an error: a status, what to tell, and which field of the request is meant."""

    def __init__(
        self, status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, headers


def to_json(content: Any) -> bytes:
    """JSON in UTF-8. Half a character, which JSON's escapes can smuggle into a string, becomes a "?"."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(to_json(content), status, dict(headers or {}), media_type="application/json")


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error body."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def error_response(error: APIError) -> Response:
    """The answer that tells of `error`."""
    return json_response(error_body(error.status, error.message, error.param), error.status, error.headers)


def as_api_error(error: BaseException) -> APIError:
    """What a client is told of an exception that came up while its request ran."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, EngineClosedError):
        return APIError(503, "the server is shutting down.", headers={"Retry-After": "10"})
    logger.error("a request failed", exc_info=error)
    return APIError(500, "internal error: the server's log has the details.")


def wrong_request(error: ValueError | TypeError) -> APIError:
    """What the engine says of a wrong request; most messages begin with the field, as in "top_p must ..."."""
    message = str(error)
    name = re.match(r"[a-z]+(_[a-z]+)*(?= (must|cannot|is not|contains|asks|strings))", message)
    return APIError(400, message, name[0] if name else None)


def _invalid(first: Mapping[str, Any], content_type: str | None) -> APIError:
    """What a client is told of the first error that pydantic, or the JSON parser, has found in a body."""
    if first["type"] == "json_invalid":
        return APIError(
            400, f"the body must be JSON: {first['ctx']['error']}, at character {first['loc'][1]}."
        )
    if isinstance(first["input"], bytes):  # not parsed, because nothing said that it is JSON
        came = "none" if content_type is None else repr(content_type)
        return APIError(400, f'the header Content-Type must be "application/json", got {came}.')
    # ("body", "messages", 0, "content") -> "messages.0.content"
    param = ".".join(map(str, first["loc"][1:])) or None
    return APIError(400, f"{param or 'body'}: {first['msg']}", param)


def install_handlers(app: FastAPI) -> None:
    """Make every exception one of the bodies above, those of FastAPI itself too."""

    @app.exception_handler(APIError)
    async def on_api_error(request: Request, error: APIError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(_invalid(error.errors()[0], request.headers.get("content-type")))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        return error_response(APIError(error.status_code, str(error.detail), headers=error.headers))

    @app.exception_handler(ClientDisconnect)
    async def on_gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # for the log: there is no reader left

    # The last handler would make the same answer of it, and write a traceback into the log.
    @app.exception_handler(EngineClosedError)
    async def on_closed(request: Request, error: EngineClosedError) -> Response:
        return error_response(as_api_error(error))

    @app.exception_handler(Exception)
    async def on_any(request: Request, error: Exception) -> Response:
        return error_response(as_api_error(error))
