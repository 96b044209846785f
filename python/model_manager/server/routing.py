"""How endpoints are registered: served by this package's own wrapper, documented through FastAPI."""

from __future__ import annotations

from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute
from starlette.routing import Match

from .middleware import Endpoint
from .schemas import ErrorBody, PlainError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import APIRouter
    from pydantic import BaseModel
    from starlette.types import Scope

    from .middleware import Handler
    from .service import Service


class _Documentation(APIRoute):
    """An endpoint in the OpenAPI document. It matches no request: FastAPI's own handling of a request costs more time
    than an answer from the cache.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return Match.NONE, {}


class Routes:
    """Registers endpoints."""

    def __init__(self, target: APIRouter, service: Service) -> None:
        self.target = target
        self.service = service

    def add(
        self,
        path: str,
        handler: Handler,
        *,
        method: str = "GET",
        body: type[BaseModel] | None = None,
        answer: type[BaseModel] | None = None,
        summary: str,
        tags: Sequence[str],
        parameters: Sequence[dict[str, Any]] = (),
        responses: dict[int | str, dict[str, Any]] | None = None,
        any_method: bool = False,
        probe: bool = False,
        plain_errors: bool = False,
    ) -> None:
        """Serve `path` with `handler`, which reads and checks the request itself and may raise `ApiError` or any
        `ModelManagerError`.

        Args:
            path: The endpoint's path.
            handler: Answers the requests.
            method: The one allowed method; GET allows HEAD too.
            any_method: Whether the handler answers all methods; `method` is then the one in the OpenAPI document.
            body: The shape of requests in the OpenAPI document; requests are not checked against it.
            answer: The shape of answers in that document.
            summary: The endpoint's title in that document.
            tags: Its group in that document.
            parameters: Its path parameters in that document.
            responses: Further answers in that document. Errors are in it already.
            probe: Whether the endpoint answers while the server drains.
            plain_errors: Whether errors have the form of Ollama's API instead of OpenAI's.
        """
        # In metrics and settings a path parameter is written without its converter.
        endpoint: Any = Endpoint(
            handler,
            self.service,
            path.replace(":path}", "}"),
            method=method,
            any_method=any_method,
            probe=probe,
            plain_errors=plain_errors,
        )
        error = PlainError if plain_errors else ErrorBody
        # Registered for all methods: the endpoint refuses the others itself, in the same way in every application.
        self.target.add_route(path, endpoint, include_in_schema=False)
        if not path.endswith(("/", ":path}")):
            # On a redirect some clients would drop the body or the key.
            self.target.add_route(f"{path}/", endpoint, include_in_schema=False)
        extra: dict[str, Any] = {}
        if parameters:
            extra["parameters"] = list(parameters)

        def documented_handler() -> None:
            """Has the name and docstring of the handler. FastAPI cannot document the handler's own parameter."""

        documented_handler.__name__, documented_handler.__doc__ = handler.__name__, handler.__doc__
        if body is not None:
            # FastAPI puts the shape and all shapes in it among the document's components.
            parameter = Parameter("body", Parameter.KEYWORD_ONLY, annotation=body)
            documented_handler.__signature__ = Signature([parameter])  # type: ignore[attr-defined]
        self.target.add_api_route(
            path,
            documented_handler,
            methods=[method],
            response_model=answer,
            summary=summary,
            tags=list(tags),
            responses={
                "4XX": {"model": error, "description": "The request is at fault."},
                "5XX": {"model": error, "description": "The server is at fault."},
                **(responses or {}),
            },
            openapi_extra=extra or None,
            route_class_override=_Documentation,
        )
