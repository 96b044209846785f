"""Errors in the form of OpenAI's API: ``{"error": {message, type, param, code}}``; at the endpoints of Ollama's API in
its form: ``{"error": message}``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from .. import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI
    from starlette.requests import Request

logger = logging.getLogger("model_manager.server")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
    504: "service_unavailable",
}
"""All other statuses have the type invalid_request_error."""
_LONGEST = 1000
"""Maximum characters of a message."""


class ApiError(HTTPException):
    """An error answer. `param` names the field at fault, `code` names the mistake for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # Messages quote the request, which may be megabytes.
        super().__init__(status, message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…", headers)
        self.param = param
        self.code = code

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = _TYPES.get(self.status_code, "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The answer."""
        return Response(
            orjson.dumps(self.to_dict()), self.status_code, headers=self.headers, media_type="application/json"
        )

    def plain_response(self) -> Response:
        """The answer in the form of Ollama's API, whose status for a busy server is 503."""
        status = 503 if self.status_code == 429 else self.status_code
        body = orjson.dumps({"error": self.detail})
        return Response(body, status, headers=self.headers, media_type="application/json")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400."""
    return ApiError(400, message, param=param, code=code)


def overloaded(message: str, seconds: int = 1) -> ApiError:
    """429: the client may retry after `seconds`."""
    return ApiError(429, message, code="overloaded", headers={"retry-after": str(max(1, seconds))})


def unavailable(message: str, code: str, seconds: int = 5) -> ApiError:
    """503: the client may retry after `seconds`."""
    return ApiError(503, message, code=code, headers={"retry-after": str(seconds)})


def shut_down() -> ApiError:
    """503: the request ran longer than a server that shuts down waits."""
    return unavailable(
        "The server is shutting down, and the answer was not complete within its drain_timeout; use another one",
        "shutting_down",
        1,
    )


def timed_out(message: str) -> ApiError:
    """504: the request took longer than the server waits."""
    return ApiError(504, message, code="timeout", headers={"retry-after": "5"})


def unknown_model(name: str, known: list[str]) -> ApiError:
    """404: no model with this name is served."""
    return ApiError(
        404,
        f"The model {name!r} is not served here; served are: {', '.join(known)}",
        param="model",
        code="model_not_found",
    )


def from_exception(error: BaseException) -> ApiError:
    """The error answer for an exception. A defect of the server is logged with its traceback; the client gets one
    sentence.
    """
    if isinstance(error, ApiError):
        return error
    message = str(error)
    if isinstance(error, errors.InputError):
        return bad_request(message, "model" if isinstance(error, errors.TaskError) else None)
    if isinstance(error, errors.UnknownModelError):
        return ApiError(404, message, param="model", code="model_not_found")
    if isinstance(error, errors.NoGeneratorError):
        return ApiError(404, message, param="model", code="no_generator")
    if isinstance(error, errors.OverloadedError):
        return overloaded(message)
    if isinstance(error, errors.WaitTimeoutError):
        return timed_out(message)
    if isinstance(error, errors.ClosedError | errors.RequestCancelledError):
        return unavailable(message, "shutting_down")
    if isinstance(error, errors.ModelManagerError) and not isinstance(
        error, errors.InternalError | errors.NotFiniteError
    ):
        # The remaining errors are about a model that cannot be loaded: not found, damaged, too large, unreachable.
        return unavailable(message, "model_unavailable")
    logger.error("A request failed because of a defect", exc_info=error)
    return ApiError(500, "The server failed to answer; its log has the details", code="internal_error")


def refused(error: Exception, fields: Mapping[str, str], default: str, *, single: bool = False) -> ApiError:
    """400: the core did not accept an argument. The message names the field and the item that the client sent.

    Args:
        error: What the core raised. Its `param` is the argument's name.
        fields: Arguments of the core, and the request fields that they come from.
        default: The field that everything else is about.
        single: Whether the field holds one input, which the core was given as the first of a list.
    """
    if isinstance(error, errors.TaskError):
        return bad_request(str(error), "model")
    param = getattr(error, "param", None)
    field = fields.get(param or "", default)
    rest, code = getattr(error, "_rest", None), getattr(error, "code", None)
    if rest is None:
        # Messages about settings, and some others, begin with a name.
        named = (
            param is None or isinstance(error, errors.ConfigError) or str(error).startswith((f"{field} ", f"{field}["))
        )
        return bad_request(str(error) if named else f"{field}: {error}", field, code)
    place = getattr(error, "_place", ())[1 if single else 0 :]
    return bad_request(f"{field}{''.join(f'[{number}]' for number in place)}{rest}", field, code)


async def _http_error(request: Request, error: Exception) -> Response:
    """Errors that the framework raises: unknown paths and methods."""
    if isinstance(error, ApiError):
        return error.response()
    assert isinstance(error, HTTPException)
    message, code = error.detail, None
    if error.status_code == 404:
        message, code = f"Nothing is served at {request.url.path}; GET / lists the endpoints", "unknown_path"
    elif error.status_code == 405:
        message, code = f"{request.method} is not allowed at {request.url.path}", "method_not_allowed"
    return ApiError(error.status_code, message, code=code, headers=error.headers).response()


async def _defect(request: Request, error: Exception) -> Response:
    return from_exception(error).response()


def install(app: FastAPI) -> None:
    """Give errors outside the endpoints the same form."""
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)
