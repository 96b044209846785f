"""Former import path of `model_manager.server.routes.health`."""

from ..server.routes.health import *  # noqa: F403
