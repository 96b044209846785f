"""Former import path of `model_manager.integrations.qdrant.indexer`."""

from ..integrations.qdrant.indexer import *  # noqa: F403
