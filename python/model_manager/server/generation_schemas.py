"""Former import path of `model_manager.server.routes.generation.schemas`."""

from .routes.generation.schemas import *  # noqa: F403
