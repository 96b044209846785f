"""Former import path of `model_manager.integrations.qdrant`."""

from ..integrations.qdrant import *  # noqa: F403
