"""Former import path of `model_manager._async` and of `model_manager.manager.conversation`."""

from ._async import AsyncTextStream, acomplete
from .manager import conversation

__all__ = ["AsyncTextStream", "acomplete", "conversation"]
