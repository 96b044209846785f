"""Former import path of `model_manager.server.routes.admin`."""

from ..server.routes.admin import *  # noqa: F403
