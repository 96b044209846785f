"""Former import path of `model_manager.compat.rules`."""

from .compat.rules import *  # noqa: F403
