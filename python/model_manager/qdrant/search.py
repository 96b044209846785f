"""Former import path of `model_manager.integrations.qdrant.search`."""

from ..integrations.qdrant.search import *  # noqa: F403
