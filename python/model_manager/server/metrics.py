"""Former import path of `model_manager.server.prometheus` and of `model_manager.server.routes.metrics`."""

from .prometheus import *  # noqa: F403
from .routes.metrics import add_routes as add_routes
