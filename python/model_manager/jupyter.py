"""Former import path of `model_manager.integrations.jupyter`."""

from .integrations.jupyter import *  # noqa: F403
