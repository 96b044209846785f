"""The endpoints put together: as an application of their own, or as a router for one that exists."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Match, Route

from .. import __version__
from . import admin, embeddings, errors, generation, health, metrics, models, page
from .config import ServerConfig
from .errors import ApiError
from .middleware import Endpoint
from .schemas import ErrorBody
from .service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from pydantic import BaseModel
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ..chatbot import ModelManager
    from .middleware import Handler

_PARTS = (embeddings, generation, models, health, metrics, admin, page)
"""The first is matched first."""


class _Documentation(APIRoute):
    """An endpoint's place in the OpenAPI document. It matches nothing: FastAPI's own handling of a request costs more
    than answering it from the cache.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return Match.NONE, {}


class Routes:
    """Where the parts of the server register their endpoints."""

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
        probe: bool = False,
    ) -> None:
        """Serve `path` by `handler`, which reads and checks the request itself and may raise `ApiError` or any
        `ModelManagerError`.

        Args:
            body, answer: What the OpenAPI document says of them; nothing is checked against these.
            parameters: Path parameters for that document.
            responses: Further answers for that document. Errors are in it already.
            probe: Answers while the server drains.
        """
        # In figures and settings a path parameter stands without its converter.
        endpoint: Any = Endpoint(handler, self.service, path.replace(":path}", "}"), method=method, probe=probe)
        # Of all methods: the endpoint itself refuses the others, so that it does in every application alike.
        self.target.add_route(path, endpoint, include_in_schema=False)
        if not path.endswith(("/", ":path}")):
            # A redirect instead would make some clients drop the body or the key.
            self.target.add_route(f"{path}/", endpoint, include_in_schema=False)
        extra: dict[str, Any] = {}
        if body is not None:
            schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
            extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        if parameters:
            extra["parameters"] = list(parameters)

        def documented_handler() -> None:
            """Named and described like the handler, whose own parameter means nothing to FastAPI."""

        documented_handler.__name__, documented_handler.__doc__ = handler.__name__, handler.__doc__
        self.target.add_api_route(
            path,
            documented_handler,
            methods=[method],
            response_model=answer,
            summary=summary,
            tags=list(tags),
            responses={
                "4XX": {"model": ErrorBody, "description": "The request is at fault."},
                "5XX": {"model": ErrorBody, "description": "The server is at fault."},
                **(responses or {}),
            },
            openapi_extra=extra or None,
            route_class_override=_Documentation,
        )


def _add_all(target: APIRouter, service: Service) -> None:
    routes = Routes(target, service)
    for part in _PARTS:
        part.add_routes(routes, service)


def _guard_document(app: FastAPI, service: Service) -> None:
    """Ask for the key at the framework's own endpoints too."""
    for route in app.router.routes:
        if isinstance(route, Route):
            endpoint = Endpoint(_answered_by(route.app), service, route.path, probe=True)
            route.app, route.methods = endpoint, None


def _answered_by(answer: ASGIApp) -> Handler:
    async def framework(request: Request) -> ASGIApp:
        return answer

    return framework


def _answer_unknown_paths(app: FastAPI, service: Service) -> None:
    """In the form of all errors, and without waiting for a body."""

    async def unknown(request: Request) -> ASGIApp:
        raise ApiError(404, f"Nothing is served at {request.url.path}; GET / lists what is", code="unknown_path")

    endpoint, other = Endpoint(unknown, service, "(unknown)", method=None, probe=True), app.router.default

    async def default(scope: Scope, receive: Receive, send: Send) -> None:
        await (endpoint if scope["type"] == "http" else other)(scope, receive, send)

    app.router.default = default


def create_app(config: ServerConfig | None = None, manager: ModelManager | None = None) -> FastAPI:
    """An application that serves the models of `manager`: for uvicorn, or to be mounted.

    Args:
        config: Settings; None: those of the environment.
        manager: None: one of its own, with a larger cache, closed with the application.

    Raises:
        ConfigError: A setting is out of range.
        InputError: A served model has neither a source nor a slot.
    """
    config = config or ServerConfig()
    service = Service(config, manager)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="model_manager",
        version=__version__,
        summary="Sentence embeddings and text generation with OpenAI's protocol.",
        root_path=config.root_path,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.service = service
    errors.install(app)
    _guard_document(app, service)
    _add_all(app.router, service)
    _answer_unknown_paths(app, service)
    if config.cors_origins:
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            # Those that the browser asks for: SDKs send headers of their own.
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


def router(config: ServerConfig | None = None, manager: ModelManager | None = None) -> APIRouter:
    """The same endpoints for an application that exists: ``app.include_router(router(), prefix="/ai")``.

    Keys, errors, limits and figures are the same; `open_paths` are given without the prefix. CORS, the answers to
    unknown paths, and without `allowed_hosts` the check of `Host`, are the application's own.

    Args:
        config: Settings; None: those of the environment.
        manager: None: the process-wide `model_manager`.
    """
    from ..chatbot import model_manager

    config = config or ServerConfig()
    # Which names lead to the application is known to itself, unless the settings name some.
    service = Service(config, model_manager if manager is None else manager, check_hosts=bool(config.allowed_hosts))

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    target = APIRouter(lifespan=lifespan)
    _add_all(target, service)
    return target
