"""An HTTP server for embeddings and text generation that speaks OpenAI's protocol.

>>> from model_manager.server import create_app                 # a complete application: uvicorn --factory
>>> app = create_app()
>>> from model_manager.server import router                     # or the endpoints inside an existing application
>>> my_fastapi_app.include_router(router())

``python -m model_manager serve`` runs it. It needs ``pip install model-manager-rs[server]``.
"""

from __future__ import annotations

from .._extras import extra

with extra("server"):
    from .app import create_app, router
    from .config import ServedModel, ServerConfig
    from .service import Service

__all__ = ["ServedModel", "ServerConfig", "Service", "create_app", "router"]
