"""Former import path of `model_manager.compat.host`."""

from .compat.host import *  # noqa: F403
