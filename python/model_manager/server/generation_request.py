"""Former import path of `model_manager.server.routes.generation.request`."""

from .routes.generation.request import *  # noqa: F403
