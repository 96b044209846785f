"""Former import path of `model_manager.compat.lazy`."""

from .compat.lazy import *  # noqa: F403
