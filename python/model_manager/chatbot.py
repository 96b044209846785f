"""Former import path of `model_manager.compat`."""

from .compat import *  # noqa: F403
from .compat.chatbot import ENGLISH as ENGLISH, GENERATOR as GENERATOR, TURKISH as TURKISH
from .manager import restore as _restore  # noqa: F401  pickles of earlier versions name it
