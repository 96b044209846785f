"""Former import path of `model_manager.integrations.qdrant.report`."""

from ..integrations.qdrant.report import *  # noqa: F403
