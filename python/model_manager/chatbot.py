"""Former import path of `model_manager.compat`."""

from .compat import *  # noqa: F403
from .compat.chatbot import ENGLISH, GENERATOR, TURKISH  # noqa: F401
from .manager import restore as _restore  # noqa: F401  pickles of earlier versions name it
