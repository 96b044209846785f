"""Sentence embeddings and text generation inside a Python process: lazy, batched, cached, fast on a CPU.

>>> from model_manager import model_manager            # loads no model
>>> model_manager.generate_embedding("Bugün hava çok güzel")   # loads one, returns a list of floats
>>> model_manager.embed(["first text", "ikinci metin"])        # float32 numpy array, shape (2, 384)
>>> model_manager.generate("Bir varmış, bir yokmuş")           # the continuation of a language model

Importing this package takes a few milliseconds: numpy, asyncio and the models are loaded when they are first needed.
"""

from __future__ import annotations

try:
    from . import _core as _core
except ImportError as error:
    from ._import_error import explained

    raise explained(error) from None

from . import errors
from ._core import (
    Config,
    LazyLoadTracker,
    TextStream,
    Ticket,
    __version__,
    available_isas,
    is_turkish,
    isa,
    resident_bytes,
    trim_memory,
)
from .compat import (
    ModelManager,
    ModelType,
    TurkishLanguageDetector,
    lazy_load_model,
    memory_efficient_cache,
    model_manager,
)
from .errors import ModelManagerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .handles import CrossEncoder, SentenceModel, TextGenerator
    from .results import Classification, EmbedOutputs, RerankResult, SparseVector, maxsim

__all__ = [
    "Classification",
    "Config",
    "CrossEncoder",
    "EmbedOutputs",
    "LazyLoadTracker",
    "ModelManager",
    "ModelManagerError",
    "ModelType",
    "RerankResult",
    "SentenceModel",
    "SparseVector",
    "TextGenerator",
    "TextStream",
    "Ticket",
    "TurkishLanguageDetector",
    "__version__",
    "available_isas",
    "errors",
    "is_turkish",
    "isa",
    "lazy_load_model",
    "maxsim",
    "memory_efficient_cache",
    "model_manager",
    "resident_bytes",
    "trim_memory",
]

_FORMER_SUBMODULES = frozenset({"chat_host", "chat_text", "chatbot", "encoder", "generation", "generator", "lazy"})
"""Submodules that earlier versions loaded with the package."""

if not TYPE_CHECKING:  # type checkers must report unknown attributes

    def __getattr__(name):
        """Import the handles, and submodules that programs may use without an import, when they are first needed."""
        from importlib import import_module

        if name in ("CrossEncoder", "SentenceModel", "TextGenerator"):
            return getattr(import_module(f"{__name__}.handles"), name)
        if name in ("Classification", "EmbedOutputs", "RerankResult", "SparseVector", "maxsim"):
            return getattr(import_module(f"{__name__}.results"), name)
        if name in _FORMER_SUBMODULES:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})
