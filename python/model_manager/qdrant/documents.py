"""Former import path of `model_manager.integrations.qdrant.documents`."""

from ..integrations.qdrant.documents import *  # noqa: F403
