"""An HTTP server for embeddings and text generation that speaks OpenAI's protocol.

>>> from model_manager.server import create_app                 # an application of its own: uvicorn --factory
>>> app = create_app()
>>> from model_manager.server import router                     # or the endpoints inside an application that exists
>>> my_fastapi_app.include_router(router())

``python -m model_manager serve`` runs it. It needs ``pip install model-manager-rs[server]``.
"""

from __future__ import annotations

try:
    from .app import create_app, router
    from .config import ServedModel, ServerConfig
    from .service import Service
except ModuleNotFoundError as error:
    if (error.name or "").startswith("model_manager"):
        raise
    raise ImportError(
        f"model_manager.server needs {error.name}: pip install 'model-manager-rs[server]'", name=error.name
    ) from error

__all__ = ["ServedModel", "ServerConfig", "Service", "create_app", "router"]
