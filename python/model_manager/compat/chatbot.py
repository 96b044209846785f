"""`ModelManager`: the names, defaults and return types that the chatbot's callers rely on.

Only this package turns errors into `[]`, None and fallback answers; all other modules raise them.
"""

from __future__ import annotations

import enum
import functools
import gc
import logging

from .. import _core
from .._arguments import a_text, an_int, an_iterable
from .._core import Config, LazyLoadTracker
from .._environment import warn
from ..errors import (
    ClosedError,
    DeviceMemoryError,
    InputError,
    InternalError,
    ModelIOError,
    ModelManagerError,
    NotFiniteError,
    OutOfMemoryError,
    OverloadedError,
    RequestCancelledError,
)
from ..manager import BaseManager
from . import info
from .kinds import check_kinds
from .rules import (
    FALLBACK_ANSWERS,
    MAX_GENERATED_TOKENS,
    MIN_TEXT,
    SAMPLING,
    build_prompt,
    clean_answer,
    normalize,
    pick_fallback,
    score_answer,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from typing_extensions import Self, Unpack

    from .._types import Settings
    from ..handles import SentenceModel, TextGenerator

__all__ = ["LazyLoadTracker", "ModelManager", "ModelType", "TurkishLanguageDetector", "model_manager"]

logger = logging.getLogger("model_manager")


class ModelType(enum.Enum):
    """The three slots that every manager has."""

    TURKISH_SENTENCE = "turkish_sentence"
    ENGLISH_SENTENCE = "english_sentence"
    TEXT_GENERATOR = "text_generator"


TURKISH = ModelType.TURKISH_SENTENCE.value
ENGLISH = ModelType.ENGLISH_SENTENCE.value
GENERATOR = ModelType.TEXT_GENERATOR.value
_NOT_LOAD_ERRORS = (ClosedError, InputError, InternalError, NotFiniteError, OverloadedError, RequestCancelledError)
"""Errors of calls whose model is loaded. Most others mean that the model cannot be loaded."""
_SHORTAGES = (DeviceMemoryError, ModelIOError, OutOfMemoryError)
"""The system lacks memory, file handles or the like now."""


def _is_absent(error: ModelManagerError) -> bool:
    """Whether another model may answer in its place: the model cannot be loaded, now or later. What succeeds when it is
    tried again would mix the vectors of two models.
    """
    return not (error.transient or isinstance(error, (*_NOT_LOAD_ERRORS, *_SHORTAGES)))


class TurkishLanguageDetector:
    """The chatbot's language detector: Turkish letters and common Turkish words."""

    @classmethod
    def is_turkish(cls, text: str) -> bool:
        """Whether 0.7 · share of Turkish letters + 0.3 · share of common Turkish words exceeds 0.1. Empty: False."""
        return _detected(_core.is_turkish, text)


def _detected(detector: Callable[[str], bool], text: str) -> bool:
    try:
        return detector(text)
    except InputError:
        # A lone surrogate is neither a letter nor a word. Neither is the question mark that replaces it.
        return detector(text.encode(errors="replace").decode())


class _CachedMethod:
    """A method whose bound form has the `cache_info` and `cache_clear` of `functools.lru_cache`."""

    def __init__(self, function: Callable[..., list[float]]) -> None:
        functools.update_wrapper(self, function)
        self._function = function

    def __call__(self, manager: ModelManager, text: str, force_turkish: bool | None = None) -> list[float]:
        return self._function(manager, text, force_turkish)

    def __get__(self, manager: ModelManager | None, owner: type | None = None) -> Any:
        return self if manager is None else _BoundCachedMethod(self._function, manager)


class _BoundCachedMethod:
    __slots__ = ("__func__", "__self__", "__weakref__")

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
        return getattr(object.__getattribute__(self, "__func__"), name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _BoundCachedMethod):
            return NotImplemented
        return self.__func__ is other.__func__ and self.__self__ is other.__self__

    def __hash__(self) -> int:
        return hash((self.__func__, id(self.__self__)))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.__self__, self.__func__.__name__)

    def cache_info(self) -> Any:
        """(hits, misses, maxsize, currsize) of the manager's embedding cache."""
        from functools import _CacheInfo

        info = self.__self__.cache_info()
        return _CacheInfo(info["hits"], info["misses"], info["max_entries"], info["entries"])

    def cache_clear(self) -> None:
        """Empty the manager's embedding cache."""
        self.__self__.cache_clear()


class ModelManager(BaseManager):
    """Model slots, embedding cache and queues, plus the chatbot's names.

    `ModelManager()` without arguments returns the process-wide object, `model_manager`. With a `Config` or its keywords
    it makes an independent manager. Every instance of a derived class is independent too.
    """

    fallback_answers: Sequence[str] = FALLBACK_ANSWERS
    """The answers of `generate_huggingface_response` when none was good enough; set it on an instance or a subclass."""
    quality_threshold: float = 0.7
    """An answer with a lower score (0 to 1, see `rules.score_answer`) is replaced by a fallback."""

    _reported: set[str]

    def __init_subclass__(cls, **options: Any) -> None:
        """Check the properties that `lazy_load_model` made. Unlike in `__set_name__`, those of mixins are there too."""
        super().__init_subclass__(**options)
        check_kinds(cls, (TURKISH, ENGLISH))

    def __new__(cls, config: Config | None = None, **overrides: Unpack[Settings]) -> Self:
        """Without arguments the process-wide manager, else an independent one with these settings."""
        if cls is ModelManager and config is None and not overrides and _process_wide:
            return _process_wide[0]  # type: ignore[return-value]
        self = super().__new__(cls, config, **overrides)
        self._reported = set()
        # The process-wide manager reads its settings and loads models at its first use.
        if config is not None or overrides or cls is not ModelManager:
            warn(Config.fields)
        if (config is not None or overrides) and not self.config.lazy_loading:
            self.warmup_models([TURKISH, ENGLISH])
        return self

    # --- Slots ---------------------------------------------------------------------------------------------------

    @property
    def turkish_sentence_model(self) -> SentenceModel:
        """The Turkish sentence model, loaded. When it cannot be loaded, the English one; an error that may pass (a
        time-out, a hub that does not answer) is raised.
        """
        try:
            return self._loaded_model(TURKISH)
        except ModelManagerError as error:
            if not _is_absent(error):
                raise
            logger.warning("The Turkish sentence model cannot be loaded, using the English one: %s", error)
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
        a_text("text", text)
        return self.turkish_sentence_model if self.route(normalize(text)) == TURKISH else self.english_sentence_model

    @property
    def text_generator(self) -> Any | None:
        """The text generator, loaded; callable like a transformers pipeline. None without one (logged once)."""
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
        """The handle on the generator, not loaded. None when the user provides the object, by a loader or in a derived
        class.
        """
        overridden = type(self).text_generator is not ModelManager.text_generator
        if overridden or self.stats()["slots"][GENERATOR]["kind"] != "generator":
            return None
        from ..handles import TextGenerator

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
        """The vector (length 1) of the normalized text as a list. `[]` for fewer than 2 characters and on any failure
        (logged).

        `force_turkish` chooses the model. None: the model of the text's language, or the preferred one with detection
        off. Raises only `TypeError`, when `text` is not text.
        """
        if isinstance(text, bytes):
            logger.error("generate_embedding: got bytes, not text; decode them first")
            return []
        a_text("text", text)
        try:
            return self._embed_chat_text(text, force_turkish)
        except Exception as error:  # noqa: BLE001  callers expect an empty list on any failure
            logger.error("generate_embedding failed: %s", error)
            return []

    def get_sentence_embedding(self, text: str) -> list[float] | None:
        """`generate_embedding`, but None on error."""
        try:
            return self._embed_chat_text(text, None)
        except Exception as error:  # noqa: BLE001  callers expect None on any failure
            logger.error("get_sentence_embedding failed: %s", error)
            return None

    def _embed_chat_text(self, text: str, force_turkish: bool | None) -> list[float]:
        text = normalize(text)
        # The cut text may end in blanks.
        if len(text.strip()) < MIN_TEXT:
            return []
        slot = self.route(text) if force_turkish is None else TURKISH if force_turkish else ENGLISH
        try:
            vector = self.embed(text, slot)
        except ModelManagerError as error:
            if slot != TURKISH or not _is_absent(error):
                raise
            logger.warning("The Turkish sentence model cannot be loaded, using the English one: %s", error)
            vector = self.embed(text, ENGLISH)
        numbers: list[float] = vector.tolist()
        return numbers

    def detect_language(self, text: str) -> str:
        """``"turkish"`` or ``"other"``, for the text as given, by the detector that `language_detector` names. Routing
        uses the lower-cased text instead.
        """
        improved = not self.closed and self.config.language_detector == "improved"
        return "turkish" if _detected(_core._is_turkish_improved if improved else _core.is_turkish, text) else "other"

    # --- Text generation -----------------------------------------------------------------------------------------

    def generate_text_response(self, prompt: str, max_length: int = 120, turkish_context: bool = True) -> str:
        """A cleaned answer to the prompt's first 300 characters; empty when the model wrote fewer than 8 characters.

        `max_length` counts the tokens of prompt and answer together, 120 at most. A prompt that reaches it alone gets
        an empty answer. Raises `RuntimeError` without a generator.
        """
        formatted = build_prompt(a_text("prompt", prompt), turkish_context)
        options = _response_options(max_length)
        generator = self._own_generator()
        if generator is None:
            return self._ask_custom_generator(formatted, options)
        try:
            generated = generator(formatted, **options)[0]["generated_text"]
        except _NOT_LOAD_ERRORS:
            raise
        except ModelManagerError as error:
            self._report_no_generator(error)
            raise RuntimeError("Text generator not available") from error
        return clean_answer(generated, formatted)

    def _ask_custom_generator(self, formatted: str, options: dict[str, Any]) -> str:
        """The cleaned answer of the generator that the user provides."""
        generator = self.text_generator
        if generator is None:
            raise RuntimeError("Text generator not available")
        end = getattr(getattr(generator, "tokenizer", None), "eos_token_id", None)
        if end is not None:
            options["pad_token_id"] = end
        return clean_answer(_text_of(generator(formatted, **options)), formatted)

    async def generate_huggingface_response(self, message: str, user_id: str | None = None) -> str:
        """An answer to show: the host's own, else a generated one that is good enough, else a polite fallback.

        Never raises. The host's code and a generator that the user provides run on a thread of the loop's executor;
        everything else needs no thread.
        """
        try:
            answer = await self._answer(message)
        except Exception as error:  # noqa: BLE001  callers expect an answer whatever fails
            logger.warning("No answer could be generated: %s", error)
            answer = None
        return answer or pick_fallback(message, self.fallback_answers)

    async def _answer(self, message: str) -> str | None:
        import asyncio

        from .host import ask_host, has_host

        answer = await asyncio.to_thread(ask_host, message) if has_host() else None
        if answer is not None:
            return answer
        formatted = build_prompt(message)
        options = _response_options(_HUGGINGFACE_LENGTH)
        generator = self._own_generator()
        if generator is None:
            answer = await asyncio.to_thread(self._ask_custom_generator, formatted, options)
        else:
            answer = clean_answer((await generator.acall(formatted, **options))[0]["generated_text"], formatted)
        return None if score_answer(answer) < self.quality_threshold else answer

    # --- Lifecycle -----------------------------------------------------------------------------------------------

    def warmup_models(self, models: Iterable[str | ModelType] | None = None) -> None:
        """Load these slots. None: the preferred sentence model, plus the generator when `use_huggingface` is set.
        Failures are logged.
        """
        if models is None:
            names = [TURKISH if self.config.prefer_turkish else ENGLISH]
            if self.config.use_huggingface:
                names.append(GENERATOR)
        else:
            wanted = an_iterable("models", [models] if isinstance(models, str | ModelType) else models, "slots")
            names = [model.value if isinstance(model, ModelType) else model for model in wanted]
        for name in names:
            try:
                if name == GENERATOR:
                    # A missing generator is logged once, not at every warm-up.
                    _ = self.text_generator
                else:
                    self.load(name)
            except ModelManagerError as error:
                logger.warning("Warm-up of %r failed: %s", name, error)

    def unload_all_models(self) -> None:
        """Unload every model, empty the cache and reset the tracker."""
        self.unload_all()
        self.cache_clear()
        self.tracker.clear()

    def cleanup_resources(self) -> None:
        """`unload_all_models`, then return free memory to the operating system."""
        self.unload_all_models()
        self._force_gc()

    def clear_caches(self) -> None:
        """Empty the embedding cache."""
        self.cache_clear()

    def _force_gc(self) -> None:
        gc.collect()
        _core.trim_memory()

    def close(self) -> None:
        """Unload everything and stop the threads; calls in progress get their results first. The process-wide manager
        stays usable: its next use loads again.
        """
        if self._is_process_wide():
            self.unload_all_models()
        else:
            super().close()

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._is_process_wide():
            return (ModelManager, ())
        return super().__reduce__()

    def _changes(self) -> dict[str, Any]:
        changes = super()._changes()
        for name in ("fallback_answers", "quality_threshold"):
            if name in vars(self):
                changes[name] = vars(self)[name]
        return changes

    def _is_process_wide(self) -> bool:
        # The list is empty only while the import makes that manager.
        return not _process_wide or self is _process_wide[0]

    # --- Health --------------------------------------------------------------------------------------------------

    def _get_memory_usage(self) -> float:
        return _core.resident_bytes() / 2**20

    def get_model_info(self) -> dict[str, Any]:
        """The loaded models, the device, the memory, and figures of the cache and the tracker; JSON-serializable."""
        return info.model_info(self, self._get_memory_usage())

    def get_lazy_loading_statistics(self) -> dict[str, Any]:
        """The tracker's figures, the lifecycle settings and what is in memory now; JSON-serializable."""
        return info.lazy_loading_statistics(self, self._get_memory_usage())


_HUGGINGFACE_LENGTH = 80
"""Tokens of prompt and answer of `generate_huggingface_response`."""


def _text_of(answer: Any) -> str:
    """The text in the answer of a generator that the user provides."""
    try:
        text = answer[0]["generated_text"]
    except (LookupError, TypeError):
        text = None
    if isinstance(text, str):
        return text
    from reprlib import repr as shortened

    raise TypeError(f'the text generator must return [{{"generated_text": str}}], not {shortened(answer)}')


def _response_options(max_length: int) -> dict[str, Any]:
    return {**SAMPLING, "max_length": min(an_int("max_length", max_length), MAX_GENERATED_TOKENS), "truncation": True}


_process_wide: list[ModelManager] = []
model_manager = ModelManager()
model_manager._make_process_wide()
_process_wide.append(model_manager)
