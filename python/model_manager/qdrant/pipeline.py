"""Former import path of `model_manager.integrations.qdrant.pipeline`."""

from ..integrations.qdrant.pipeline import *  # noqa: F403
