"""The names, defaults and return types that the chatbot's callers expect of `from model_manager import model_manager`.

Here alone errors become the `[]`, None and fallback answers that those callers rely on; everything below raises.
"""

from __future__ import annotations

import atexit
import enum
import functools
import gc
import logging
import os
import weakref

from . import _core
from ._core import Config, LazyLoadTracker, Manager
from .chat_host import ask_host, has_host
from .chat_text import (
    FALLBACK_ANSWERS,
    MAX_GENERATED_TOKENS,
    MIN_TEXT,
    SAMPLING,
    build_prompt,
    clean_answer,
    normalise,
    pick_fallback,
    score_answer,
)
from .errors import (
    ClosedError,
    InputError,
    InternalError,
    ModelManagerError,
    NotFiniteError,
    OverloadedError,
    RequestCancelledError,
)
from .lazy import lazy_load_model, memory_efficient_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from ._types import Inputs
    from .encoder import SentenceModel
    from .generation import AsyncTextStream
    from .generator import TextGenerator

__all__ = [
    "LazyLoadTracker",
    "ModelManager",
    "ModelType",
    "TurkishLanguageDetector",
    "lazy_load_model",
    "memory_efficient_cache",
    "model_manager",
]

logger = logging.getLogger("model_manager")


class ModelType(enum.Enum):
    """The three slots that every manager has."""

    TURKISH_SENTENCE = "turkish_sentence"
    ENGLISH_SENTENCE = "english_sentence"
    TEXT_GENERATOR = "text_generator"


TURKISH = ModelType.TURKISH_SENTENCE.value
ENGLISH = ModelType.ENGLISH_SENTENCE.value
GENERATOR = ModelType.TEXT_GENERATOR.value
_BUILT_IN = (TURKISH, ENGLISH, GENERATOR)
_NOT_ITS_LOAD = (ClosedError, InputError, InternalError, NotFiniteError, OverloadedError, RequestCancelledError)
"""What a generation raises though its model is there; all else is told by a model that cannot be loaded."""


class TurkishLanguageDetector:
    """The chatbot's language detector: Turkish letters and common Turkish words."""

    @classmethod
    def is_turkish(cls, text: str) -> bool:
        """Whether 0.7 · share of Turkish letters + 0.3 · share of common Turkish words is above 0.1. Empty: False."""
        try:
            return _core.is_turkish(text)
        except InputError:
            # A lone surrogate is neither a letter nor a word, and so is the question mark that takes its place.
            return _core.is_turkish(text.encode(errors="replace").decode())


class _CachedMethod:
    """A method whose bound form also has the `cache_info` and `cache_clear` of `functools.lru_cache`."""

    def __init__(self, function: Callable[..., list[float]]) -> None:
        functools.update_wrapper(self, function)  # type: ignore[arg-type]
        self._function = function

    def __get__(self, manager: ModelManager | None, owner: type | None = None) -> Any:
        return self if manager is None else _BoundCachedMethod(self._function, manager)


class _BoundCachedMethod:
    __slots__ = ("__func__", "__self__")

    def __init__(self, function: Callable[..., list[float]], manager: ModelManager) -> None:
        self.__func__ = function
        self.__self__ = manager

    def __call__(self, text: str, force_turkish: bool | None = None) -> list[float]:
        return self.__func__(self.__self__, text, force_turkish)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.__func__.__doc__

    def __getattr__(self, name: str) -> Any:
        # __name__, __wrapped__ …
        return getattr(self.__func__, name)

    def cache_info(self) -> Any:
        """(hits, misses, maxsize, currsize) of the manager's embedding cache."""
        from functools import _CacheInfo

        info = self.__self__.cache_info()
        return _CacheInfo(info["hits"], info["misses"], info["max_entries"], info["entries"])

    def cache_clear(self) -> None:
        """Empty the manager's embedding cache."""
        self.__self__.cache_clear()


class ModelManager(Manager):
    """Model slots, embedding cache and queues, with the chatbot's names on top.

    `ModelManager()` without arguments is the process-wide object, the same as `model_manager`. With a `Config` or
    keywords of it the manager is independent, and so is every instance of a derived class.
    """

    fallback_answers: Sequence[str] = FALLBACK_ANSWERS
    """What `generate_huggingface_response` says when there is no good answer; set it on an instance or a subclass."""
    quality_threshold: float = 0.7
    """Score (0 to 1, see `chat_text.score_answer`) below which an answer is replaced by a fallback."""

    _registered: dict[str, tuple[str | None, dict[str, Any]]]
    _reported: set[str]

    def __new__(cls, config: Config | None = None, **overrides: Any) -> Self:
        """The process-wide manager without arguments, else an independent one with these settings."""
        if cls is ModelManager and config is None and not overrides and _process_wide:
            return _process_wide[0]  # type: ignore[return-value]
        self = super().__new__(cls, config, **overrides)
        self._registered = {}
        self._reported = set()
        _open_managers.add(self)
        # The process-wide manager must not read its settings yet, and loads with its first use.
        if (config is not None or overrides) and not self.config.lazy_loading:
            self.warmup_models([TURKISH, ENGLISH])
        return self

    # --- Slots ---------------------------------------------------------------------------------------------------

    if not TYPE_CHECKING:  # type checkers see the signature of Manager.register

        @functools.wraps(Manager.register)
        def register(self, name, source=None, **options):  # noqa: D102
            options["replace"] = options.get("replace", False) or name in _BUILT_IN
            super().register(name, source, **options)
            self._registered[name] = (source, {**options, "replace": True})

        @functools.wraps(Manager.unregister)
        def unregister(self, name):  # noqa: D102
            super().unregister(name)
            self._registered.pop(name, None)

    @property
    def turkish_sentence_model(self) -> SentenceModel:
        """The Turkish sentence model, loaded; the English one when it cannot be loaded."""
        try:
            return self._loaded_model(TURKISH)
        except ClosedError:
            raise
        except ModelManagerError as error:
            logger.warning("The Turkish sentence model cannot be loaded, the English one takes its place: %s", error)
            return self.english_sentence_model

    @property
    def english_sentence_model(self) -> SentenceModel:
        """The English sentence model, loaded."""
        return self._loaded_model(ENGLISH)

    @property
    def sentence_model(self) -> SentenceModel:
        """The preferred sentence model, loaded."""
        return self.turkish_sentence_model if self.config.prefer_turkish else self.english_sentence_model

    def get_embedding_model_for_text(self, text: str) -> SentenceModel:
        """The sentence model of the text's language, loaded."""
        return self.turkish_sentence_model if self.route(normalise(text)) == TURKISH else self.english_sentence_model

    @property
    def text_generator(self) -> Any | None:
        """The text generator, loaded: called like a transformers pipeline. None when there is none (logged once)."""
        try:
            return self.get(GENERATOR)
        except ModelManagerError as error:
            self._report_no_generator(error)
            return None

    def _report_no_generator(self, error: ModelManagerError) -> None:
        reason = str(error)
        if reason not in self._reported:
            self._reported.add(reason)
            logger.warning("There is no text generator: %s", reason)

    def _own_generator(self) -> TextGenerator | None:
        """The handle on the generator, not loaded; None when that slot's object is the user's: by a loader, or by a
        derived class.
        """
        overridden = type(self).text_generator is not ModelManager.text_generator
        if overridden or self.stats()["slots"][GENERATOR]["kind"] != "generator":
            return None
        from .generator import TextGenerator

        return TextGenerator(self, GENERATOR)

    @property
    def _turkish_sentence_model(self) -> SentenceModel | None:
        return self._model_if_loaded(TURKISH)

    @property
    def _english_sentence_model(self) -> SentenceModel | None:
        return self._model_if_loaded(ENGLISH)

    @property
    def _text_generator_model(self) -> Any | None:
        return self.peek(GENERATOR)

    def _loaded_model(self, slot: str) -> SentenceModel:
        model: SentenceModel = self.get(slot)
        return model

    def _model_if_loaded(self, slot: str) -> SentenceModel | None:
        model: SentenceModel | None = self.peek(slot)
        return model

    # --- Embeddings ----------------------------------------------------------------------------------------------

    @_CachedMethod
    def generate_embedding(self, text: str, force_turkish: bool | None = None) -> list[float]:
        """The normalised text's vector (length 1) as a list; `[]` for less than 2 characters and on any failure
        (logged).

        `force_turkish` chooses the model; None: by the text's language, or the preferred one with detection off.
        Raises only `TypeError`, for what is not text.
        """
        if isinstance(text, bytes):
            logger.error("generate_embedding: got bytes, not text; decode them first")
            return []
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        try:
            return self._embed_chat_text(text, force_turkish)
        except Exception as error:  # noqa: BLE001  the callers' contract: no embedding is an empty list
            logger.error("generate_embedding failed: %s", error)
            return []

    def get_sentence_embedding(self, text: str) -> list[float] | None:
        """`generate_embedding`, but None on error."""
        try:
            return self._embed_chat_text(text, None)
        except Exception as error:  # noqa: BLE001  the callers' contract
            logger.error("get_sentence_embedding failed: %s", error)
            return None

    def _embed_chat_text(self, text: str, force_turkish: bool | None) -> list[float]:
        text = normalise(text)
        # The cut may end in blanks, which are no text.
        if len(text.strip()) < MIN_TEXT:
            return []
        slot = self.route(text) if force_turkish is None else TURKISH if force_turkish else ENGLISH
        try:
            vector = self.embed(text, slot)
        except (InputError, ClosedError):
            raise
        except ModelManagerError as error:
            if slot != TURKISH:
                raise
            logger.warning("The Turkish sentence model failed, the English one takes its place: %s", error)
            vector = self.embed(text, ENGLISH)
        numbers: list[float] = vector.tolist()
        return numbers

    async def aembed(self, texts: Inputs, model: str | None = None, **options: Any) -> NDArray[np.float32]:
        """`embed` for asyncio: same arguments (but `progress`), result and errors; cancelling the task cancels the
        work.
        """
        from .aio import aembed

        return await aembed(self, texts, model, **options)

    def detect_language(self, text: str) -> str:
        """``"turkish"`` or ``"other"``, of the text as given (routing looks at the lower-cased text)."""
        return "turkish" if TurkishLanguageDetector.is_turkish(text) else "other"

    # --- Text generation -----------------------------------------------------------------------------------------

    def generate(self, prompt: str | Sequence[Mapping[str, str]], model: str | None = None, **params: Any) -> str:
        """The answer to `prompt` as text: `complete` without the figures. A text is continued, messages are answered.

        Without a length `Config.max_tokens` at most, without a temperature `Config.temperature`; `do_sample=False` or
        `temperature=0` takes the likeliest token at every step. See `complete` for all parameters and errors.
        """
        return self.complete(prompt, model, **params)["text"]

    def chat(self, messages: Iterable[Mapping[str, str]], model: str | None = None, **params: Any) -> str:
        """The assistant's next turn, through the model's chat template; parameters and errors as for `complete`.

        `messages` have a ``role`` (system, user, assistant) and a ``content``. What was computed for earlier turns is
        used again when the next call only appends to them.
        """
        from .generation import conversation

        return self.complete(conversation(messages), model, **params)["text"]

    async def agenerate(
        self, prompt: str | Sequence[Mapping[str, str]], model: str | None = None, **params: Any
    ) -> str:
        """`generate` for asyncio: cancelling the task ends the answer within one token; calls under way at the same
        time are decoded together.
        """
        from .generation import acomplete

        return (await acomplete(self, prompt, model, **params))["text"]

    async def achat(self, messages: Iterable[Mapping[str, str]], model: str | None = None, **params: Any) -> str:
        """`chat` for asyncio, see `agenerate`."""
        from .generation import acomplete, conversation

        return (await acomplete(self, conversation(messages), model, **params))["text"]

    def astream(
        self, prompt: str | Sequence[Mapping[str, str]], model: str | None = None, **params: Any
    ) -> AsyncTextStream:
        """`stream` for asyncio: ``async for piece in manager.astream(...)``, inside a running event loop.

        Wrong arguments raise here; whatever loading the model raises comes with the first piece. `aclose`, or
        cancelling the task that waits for a piece, ends the answer within one token.
        """
        from .generation import AsyncTextStream

        return AsyncTextStream(self, prompt, model, params)

    def generate_text_response(self, prompt: str, max_length: int = 120, turkish_context: bool = True) -> str:
        """A cleaned answer to the prompt's first 300 characters, empty when the model wrote less than 8 characters.

        `max_length` counts tokens of prompt and answer together, 120 at most; a prompt that alone reaches it leaves no
        room and has an empty answer. Raises `RuntimeError` without a generator.
        """
        dressed = build_prompt(prompt, turkish_context)
        options = _response_options(max_length)
        generator = self._own_generator()
        if generator is None:
            return self._ask_foreign(dressed, options)
        try:
            generated = generator(dressed, **options)[0]["generated_text"]
        except _NOT_ITS_LOAD:
            raise
        except ModelManagerError as error:
            self._report_no_generator(error)
            raise RuntimeError("Text generator not available") from error
        return clean_answer(generated, dressed)

    def _ask_foreign(self, dressed: str, options: dict[str, Any]) -> str:
        """The cleaned answer of whatever the user's loader made."""
        generator = self.text_generator
        if generator is None:
            raise RuntimeError("Text generator not available")
        end = getattr(getattr(generator, "tokenizer", None), "eos_token_id", None)
        if end is not None:
            options["pad_token_id"] = end
        return clean_answer(generator(dressed, **options)[0]["generated_text"], dressed)

    async def generate_huggingface_response(self, message: str, user_id: str | None = None) -> str:
        """An answer for a person: the host's own, else a generated one that is good enough, else a polite fallback.

        Never raises. Only the host's code and a generator with a loader of the user's run on a thread of the loop's
        executor.
        """
        try:
            answer = await self._answer(message)
        except Exception as error:  # noqa: BLE001  the callers' contract
            logger.warning("No answer could be generated: %s", error)
            answer = None
        return answer or pick_fallback(message, self.fallback_answers)

    async def _answer(self, message: str) -> str | None:
        import asyncio

        answer = await asyncio.to_thread(ask_host, message) if has_host() else None
        if answer is not None:
            return answer
        dressed = build_prompt(message)
        options = _response_options(_HUGGINGFACE_LENGTH)
        generator = self._own_generator()
        if generator is None:
            answer = await asyncio.to_thread(self._ask_foreign, dressed, options)
        else:
            answer = clean_answer((await generator.acall(dressed, **options))[0]["generated_text"], dressed)
        return None if score_answer(answer) < self.quality_threshold else answer

    # --- Lifecycle -----------------------------------------------------------------------------------------------

    def warmup_models(self, models: Iterable[str | ModelType] | None = None) -> None:
        """Load these slots; None: the preferred sentence model, and the generator if `use_huggingface`. Failures are
        logged.
        """
        if models is None:
            names = [TURKISH if self.config.prefer_turkish else ENGLISH]
            if self.config.use_huggingface:
                names.append(GENERATOR)
        else:
            wanted = [models] if isinstance(models, str | ModelType) else models
            names = [model.value if isinstance(model, ModelType) else model for model in wanted]
        for name in names:
            try:
                if name == GENERATOR:
                    # Tells once, not at every warm-up, that there is none.
                    _ = self.text_generator
                else:
                    self.load(name)
            except ModelManagerError as error:
                logger.warning("Warm-up of %r failed: %s", name, error)

    def unload_all_models(self) -> None:
        """Unload every model, empty the cache and forget the tracker's figures."""
        self.unload_all()
        self.cache_clear()
        self.tracker.clear()

    def cleanup_resources(self) -> None:
        """`unload_all_models`, then give free memory back to the operating system."""
        self.unload_all_models()
        self._force_gc()

    def clear_caches(self) -> None:
        """Empty the embedding cache."""
        self.cache_clear()

    def _force_gc(self) -> None:
        gc.collect()
        _core.trim_memory()

    def close(self) -> None:
        """Unload everything and stop the threads; the process-wide manager stays usable and loads again when used."""
        if self._is_process_wide():
            self.unload_all_models()
        else:
            super().close()

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._is_process_wide():
            return (ModelManager, ())
        return (_restore, (type(self), self.config, self._registered))

    def _is_process_wide(self) -> bool:
        return self is _process_wide[0]

    # --- Health --------------------------------------------------------------------------------------------------

    def _get_memory_usage(self) -> float:
        return _core.resident_bytes() / 2**20

    def get_model_info(self) -> dict[str, Any]:
        """What is loaded, on which device, with how much memory; cache and tracker figures; JSON-serialisable."""
        stats = self.stats()
        cache = stats["cache"]
        enabled, interval, idle = self.auto_cleanup
        lookups = cache["hits"] + cache["misses"]
        loaded = {name: slot for name, slot in stats["slots"].items() if slot["state"] == "ready"}
        return {
            "english_sentence_model_loaded": ENGLISH in loaded,
            "turkish_sentence_model_loaded": TURKISH in loaded,
            "text_generator_loaded": GENERATOR in loaded,
            "device": self.device,
            "model_config": {f"{name}_model": slot["source"] or name for name, slot in loaded.items()},
            "memory_info": {
                "memory_mb": self._get_memory_usage(),
                "memory_percent": 100 * _core.resident_bytes() / _memory_total(),
            },
            "language_detection_enabled": self.config.language_detection,
            "prefer_turkish_models": self.config.prefer_turkish,
            "cache_info": {
                "embedding_cache_size": cache["entries"],
                "embedding_cache_hits": cache["hits"],
                "embedding_cache_misses": cache["misses"],
                "embedding_cache_maxsize": cache["max_entries"],
                "cache_hit_ratio": cache["hits"] / lookups if lookups else 0.0,
            },
            "lazy_loading_stats": stats["tracker"],
            "auto_cleanup_enabled": enabled,
            "cleanup_interval_seconds": _whole(interval),
            "max_idle_time_seconds": _whole(idle),
            "last_cleanup": stats["last_cleanup_seconds"],
        }

    def get_lazy_loading_statistics(self) -> dict[str, Any]:
        """The tracker's figures, the lifecycle settings and what is in memory now; JSON-serialisable."""
        stats = self.stats()
        cache = stats["cache"]
        enabled, interval, idle = self.auto_cleanup
        return {
            "tracker": stats["tracker"],
            "config": {
                "auto_cleanup": enabled,
                "cleanup_interval": _whole(interval),
                "max_idle_time": _whole(idle),
                "max_cache_size": cache["max_entries"],
            },
            "current_state": {
                "models_loaded": {name: slot["state"] == "ready" for name, slot in stats["slots"].items()},
                "memory_usage_mb": self._get_memory_usage(),
                "cache_usage": {
                    "hits": cache["hits"],
                    "misses": cache["misses"],
                    "maxsize": cache["max_entries"],
                    "currsize": cache["entries"],
                },
            },
        }

    def _repr_html_(self) -> str:
        from .jupyter import manager_html

        return manager_html(self)


def _restore(
    cls: type[ModelManager], config: Config, registered: dict[str, tuple[str | None, dict[str, Any]]]
) -> ModelManager:
    """Unpickle an independent manager: same settings, same registrations, nothing loaded."""
    manager = cls(config)
    for name, (source, options) in registered.items():
        manager.register(name, source, **options)
    return manager


_HUGGINGFACE_LENGTH = 80
"""Tokens of prompt and answer of `generate_huggingface_response`."""


def _response_options(max_length: int) -> dict[str, Any]:
    return {**SAMPLING, "max_length": min(max_length, MAX_GENERATED_TOKENS), "truncation": True}


def _memory_total() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _whole(seconds: float) -> float:
    """300.0 as 300: the numbers that the settings had as integers stay integers."""
    return int(seconds) if seconds == int(seconds) else seconds


_open_managers: weakref.WeakSet[ModelManager] = weakref.WeakSet()
_process_wide: list[ModelManager] = []
model_manager = ModelManager()
model_manager._make_process_wide()
_process_wide.append(model_manager)


def _close_all() -> None:
    _core._at_exit()
    for manager in list(_open_managers):
        Manager.close(manager)


# Before the interpreter goes: worker threads must not call into one that is half gone.
atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_core._before_fork,
        after_in_parent=_core._after_fork_parent,
        after_in_child=_core._after_fork_child,
    )
