"""Former import path of `model_manager.integrations.qdrant.store`."""

from ..integrations.qdrant.store import *  # noqa: F403
