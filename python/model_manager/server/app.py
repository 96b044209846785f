"""The server as a whole: an application, or a router for an existing one."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from starlette.routing import Route

from .. import __version__
from ..compat import ModelManager, model_manager
from . import errors
from .config import ServerConfig, config_error
from .errors import ApiError
from .middleware import Endpoint
from .prometheus import check_shared_folder
from .routes import (
    admin,
    embeddings,
    generation,
    health,
    metrics,
    models,
    ollama,
    responses,
    scores,
    sparse,
    status,
)
from .routing import Routes
from .service import Service, own_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from .middleware import Handler

_PARTS = (embeddings, sparse, scores, generation, responses, ollama, models, health, metrics, admin, status)
"""Modules with endpoints. A request goes to the first endpoint that matches."""
_DOCUMENTS = {"/docs", "/openapi.json"}
"""Endpoints of the framework."""


def _add_all(target: APIRouter, service: Service) -> None:
    routes = Routes(target, service)
    for part in _PARTS:
        part.add_routes(routes, service)


def _guard_document(app: FastAPI, service: Service) -> None:
    """Check the key at the framework's own endpoints too."""
    for route in app.router.routes:
        if isinstance(route, Route):
            endpoint = Endpoint(_answered_by(route.app), service, route.path, probe=True)
            route.app, route.methods = endpoint, None


def _answered_by(answer: ASGIApp) -> Handler:
    async def framework(request: Request) -> ASGIApp:
        return answer

    return framework


def _answer_unknown_paths(app: FastAPI, service: Service) -> None:
    """Answer unknown paths in the form of all errors, those of Ollama's API in its form, without waiting for a body."""
    known = {getattr(route, "path", "").rstrip("/") for route in app.routes} - {""}

    async def unknown(request: Request) -> ASGIApp:
        path = request.url.path
        meant = _meant(path.rstrip("/"), known)
        hint = f"did you mean {meant}? " if meant else ""
        raise ApiError(404, f"Nothing is served at {path}; {hint}GET / lists the endpoints", code="unknown_path")

    endpoint = Endpoint(unknown, service, "(unknown)", method=None, probe=True)
    ollama_endpoint = Endpoint(unknown, service, "(unknown)", method=None, probe=True, plain_errors=True)
    other = app.router.default

    async def default(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            answer = other
        elif scope["path"].removeprefix(scope.get("root_path", "")).startswith("/api/"):
            answer = ollama_endpoint
        else:
            answer = endpoint
        await answer(scope, receive, send)

    app.router.default = default


def _meant(path: str, known: Iterable[str]) -> str | None:
    """The known path that a client meant whose base URL lacks /v1, or has a part too much."""
    longer = [one for one in known if path and one.endswith(path)]
    if longer:
        return min(longer, key=lambda one: (len(one), one))
    return max((one for one in known if path.endswith(one)), key=len, default=None)


def _check_open_paths(target: APIRouter, service: Service) -> None:
    """Refuse an open path that no endpoint has: the one that was meant would need a key."""
    known = {getattr(route, "path", "").replace(":path}", "}") for route in target.routes} | _DOCUMENTS
    # A slash at the end changes nothing for a request, but the endpoint has one name.
    known = {path for path in known if path == "/" or not path.endswith("/")}
    for path in service.config.open_paths:
        if path not in known:
            meant = path.rstrip("/") if path.rstrip("/") in known else _meant(path, known - {"/"})
            hint = f"did you mean {meant}?" if meant else "GET / lists them"
            raise config_error("open_paths", f"open_paths: {path!r} is the path of no endpoint; {hint}")


class _RootPath:
    """Puts the prefix under which a proxy serves the application into the scopes of its requests. The prefix alone is
    the path of the status page.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope = {**scope, "root_path": self.root_path}
        if scope.get("path") == self.root_path:
            scope["path"] += "/"
        await self.app(scope, receive, send)


def _running(service: Service) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """The lifespan of an application that serves `service`."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    return lifespan


def create_app(config: ServerConfig | None = None, manager: ModelManager | None = None) -> FastAPI:
    """An application that serves the models of `manager`, for uvicorn or another ASGI server.

    Inside another application use `router`. One that mounts this application does not run its lifespan, which starts
    `warm_up`, tracing and the samples of the metrics: enter ``app.router.lifespan_context(app)`` in its own.

    Args:
        config: Settings. None: those of the environment.
        manager: None: a new manager with a larger cache, which is closed with the application.

    Raises:
        ConfigError: A setting is out of range, or names a path that no endpoint has.
        InputError: A served model has neither a source nor a slot.
    """
    config = config or ServerConfig()
    service = Service(config, manager)

    # Requests have spans of this package, with every version of FastAPI; new versions make spans of their own too.
    traces_itself = "telemetry" in inspect.signature(FastAPI).parameters
    own: dict[str, Any] = {"telemetry": {"tracing": False}} if traces_itself else {}
    app = FastAPI(
        title="model_manager",
        version=__version__,
        summary="Sentence embeddings and text generation with OpenAI's protocol.",
        lifespan=_running(service),
        redoc_url=None,
        redirect_slashes=False,
        swagger_ui_oauth2_redirect_url=None,
        **own,
    )
    app.state.service = service
    errors.install(app)
    _guard_document(app, service)
    _add_all(app.router, service)
    _answer_unknown_paths(app, service)
    _check_open_paths(app.router, service)
    if config.root_path:
        # FastAPI's own parameter is deprecated in favour of an option of its command.
        app.add_middleware(_RootPath, root_path=config.root_path)
    if config.cors_origins:
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            # Any header: SDKs send their own.
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


def check(config: ServerConfig) -> None:
    """Raise what `create_app` would in every worker process. Loads no model."""
    check_shared_folder()
    with ModelManager(own_settings(lazy_loading=True)) as manager:
        create_app(config, manager)


def router(config: ServerConfig | None = None, manager: ModelManager | None = None) -> APIRouter:
    """The same endpoints for an existing application: ``app.include_router(router(), prefix="/ai")``.

    Keys, errors, limits and metrics are the same; `open_paths` are written without the prefix. CORS, the answers to
    unknown paths, and without `allowed_hosts` the check of `Host`, stay with the application.

    Args:
        config: Settings. None: those of the environment.
        manager: None: the process-wide `model_manager`.
    """
    config = config or ServerConfig()
    # Only the application knows its host names, unless the settings list them.
    service = Service(config, model_manager if manager is None else manager, check_hosts=bool(config.allowed_hosts))

    target = APIRouter(lifespan=_running(service))
    _add_all(target, service)
    _check_open_paths(target, service)
    return target
