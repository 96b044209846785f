"""Former import path of `model_manager.server.routes.embeddings`."""

from ..server.routes.embeddings import *  # noqa: F403
