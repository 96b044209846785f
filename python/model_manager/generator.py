"""Former import path of `model_manager.handles.text_generator`."""

from .handles.text_generator import *  # noqa: F403
