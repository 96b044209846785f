"""Former import path of `model_manager.handles.sentence_model`."""

from .handles.sentence_model import *  # noqa: F403
