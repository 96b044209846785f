"""Former import path of `model_manager.server.routes.status`."""

from .routes.status import *  # noqa: F403
