"""Former import path of `model_manager.integrations.llamaindex`."""

from .integrations.llamaindex import *  # noqa: F403
