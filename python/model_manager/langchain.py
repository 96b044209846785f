"""Former import path of `model_manager.integrations.langchain`."""

from .integrations.langchain import *  # noqa: F403
