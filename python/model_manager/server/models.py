"""Former import path of `model_manager.server.routes.models`."""

from ..server.routes.models import *  # noqa: F403
