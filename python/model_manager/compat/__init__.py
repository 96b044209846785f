"""The interface of the chatbot's own `model_manager.py`: its class, its rules, its decorators."""

from __future__ import annotations

from .chatbot import LazyLoadTracker, ModelManager, ModelType, TurkishLanguageDetector, model_manager
from .lazy import lazy_load_model, memory_efficient_cache

__all__ = [
    "LazyLoadTracker",
    "ModelManager",
    "ModelType",
    "TurkishLanguageDetector",
    "lazy_load_model",
    "memory_efficient_cache",
    "model_manager",
]
