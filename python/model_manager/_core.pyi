"""The Rust core: models, lifecycle, batching, cache. `ModelManager` adds asyncio and the chatbot's names."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, final, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self, Unpack, disjoint_base

from model_manager._outputs import EmbedOutputs
from model_manager._types import (
    AdaptiveStatistics,
    ArrowColumn,
    CachePolicy,
    CacheStatistics,
    Completion,
    Description,
    Explanation,
    FieldInfo,
    Forecast,
    GenerationParams,
    GeneratorDescription,
    Inputs,
    Settings,
    Statistics,
    TrackerStatistics,
)

__all__ = [
    "ArrowVectors",
    "Config",
    "GenerationTicket",
    "LazyLoadTracker",
    "Manager",
    "TextStream",
    "Ticket",
    "_Tokenizer",
    "__version__",
    "_after_fork_child",
    "_after_fork_parent",
    "_at_exit",
    "_before_fork",
    "_config_from",
    "_error_classes",
    "_families",
    "_hub_cache",
    "_is_turkish_improved",
    "_json_values",
    "_maxsim",
    "_refusal",
    "_set_tracer",
    "_settled_source",
    "_simulate_adaptive",
    "available_isas",
    "is_turkish",
    "isa",
    "resident_bytes",
    "trim_memory",
]

__version__: str

_KeepAlive: TypeAlias = float | str | None
_Result: TypeAlias = NDArray[np.float32]
_Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, Any]]

@final
class Config:
    """Settings of a manager, validated once and immutable.

    Each value is the keyword given here, else the environment variable, else the default; `Config.fields()` lists all
    three. A value out of range raises a `ConfigError` that names the setting. Equal settings compare equal.
    """

    def __new__(cls, **settings: Unpack[Settings]) -> Self: ...
    @property
    def lazy_loading(self) -> bool:
        """Models load on first use (True) or all configured ones with the manager (False). `LAZY_LOADING_ENABLED`,
        default True.
        """
    @property
    def auto_cleanup(self) -> bool:
        """Whether idle models are unloaded. `AUTO_CLEANUP_ENABLED`, default True."""
    @property
    def cleanup_interval(self) -> float:
        """Seconds between clean-ups at most; idle deadlines are exact. `CLEANUP_INTERVAL_SECONDS`, default
        300.
        """
    @property
    def max_idle_time(self) -> float:
        """Seconds after its latest use until a model is unloaded. `MAX_IDLE_TIME_SECONDS`, default 600."""
    @property
    def cache_size(self) -> int:
        """Vectors that the embedding cache holds; 0 turns it off. `MEMORY_EFFICIENT_CACHE_SIZE`, default 50."""
    @property
    def cache_bytes(self) -> int:
        """Bytes that the embedding cache holds. `MODEL_MANAGER_CACHE_BYTES`, default 64 MiB."""
    @property
    def cache_policy(self) -> str:
        """Which vector is evicted from a full cache: ``lru``, ``lfu``, ``arc`` (a balance of both), or ``ttl``
        (LRU, and each entry expires). `MODEL_MANAGER_CACHE_POLICY`, default lru.
        """
    @property
    def cache_ttl(self) -> float:
        """Seconds that an entry lives under the policy ``ttl``. `MODEL_MANAGER_CACHE_TTL`, default 600."""
    @property
    def cache_disk(self) -> bool | str:
        """Folder in which vectors outlive the process; True: one in the user's cache folder; False: none.
        `MODEL_MANAGER_CACHE_DISK`, default False.
        """
    @property
    def cache_disk_bytes(self) -> int | str:
        """Bytes of that folder: a number or text such as ``"1GB"``.
        `MODEL_MANAGER_CACHE_DISK_BYTES`, default "1GB".
        """
    @property
    def cache_disk_dtype(self) -> str:
        """How values are written there: ``float32`` (exactly), ``float16`` or ``int8``.
        `MODEL_MANAGER_CACHE_DISK_DTYPE`, default ``float32``.
        """
    @property
    def cache_disk_ttl(self) -> float | str | None:
        """Seconds, or text such as ``"30d"``, after which a vector there is no longer used; None: no limit.
        `MODEL_MANAGER_CACHE_DISK_TTL`, default None.
        """
    @property
    def warm_restart(self) -> int:
        """So many of the vectors stored there last are read into memory at the start; 0: none.
        `MODEL_MANAGER_WARM_RESTART`, default 0.
        """
    @property
    def cache_url(self) -> str | None:
        """Redis or Valkey servers that share vectors between processes: ``redis://`` or ``rediss://`` addresses,
        separated by commas, or ``redis+cluster://`` for nodes of a cluster; None: no server.
        `MODEL_MANAGER_CACHE_URL`, default None.
        """
    @property
    def cache_url_ttl(self) -> float | str:
        """Seconds, or text such as ``"7d"``, that a vector is kept there.
        `MODEL_MANAGER_CACHE_URL_TTL`, default "7d".
        """
    @property
    def cache_timeout(self) -> float:
        """Seconds that one request to such a server may take; afterwards the vector is computed.
        `MODEL_MANAGER_CACHE_TIMEOUT`, default 0.05.
        """
    @property
    def cache_secret(self) -> str | None:
        """Text, or ``env:NAME``. Without it, programs cannot read the keys of vectors there or add forged ones; None:
        keys are plain digests.
        `MODEL_MANAGER_CACHE_SECRET`, default None.
        """
    @property
    def profile(self) -> str:
        """Default sources of the sentence slots: ``compatible`` (one model for Turkish, one for all other texts) or
        ``multilingual`` (one model for both). `MODEL_MANAGER_PROFILE`, default ``compatible``.
        """
    @property
    def prefer_turkish(self) -> bool:
        """Whether the Turkish sentence model is the preferred one. `AI_PREFER_TURKISH_MODELS`, default True."""
    @property
    def language_detection(self) -> bool:
        """Whether each text goes to the model of its language. False: all texts go to the preferred model.
        `AI_LANGUAGE_DETECTION`, default True.
        """
    @property
    def language_detector(self) -> str:
        """How the language of a text is found: ``compatible`` (as always) or ``improved`` (short texts and Turkish in
        ASCII letters too). `MODEL_MANAGER_LANGUAGE_DETECTOR`, default ``compatible``.
        """
    @property
    def turkish_model(self) -> str:
        """Source of the slot ``turkish_sentence``. `TURKISH_SENTENCE_MODEL`, read again at each load unless given as
        keyword.
        """
    @property
    def english_model(self) -> str:
        """Source of the slot ``english_sentence``. `ENGLISH_FALLBACK_MODEL`, read again at each load unless given as
        keyword.
        """
    @property
    def generator_model(self) -> str:
        """Source of the slot ``text_generator``. `HUGGINGFACE_MODEL`, read again at each load unless given as
        keyword.
        """
    @property
    def reranker_model(self) -> str:
        """Source of the slot ``reranker``. `MODEL_MANAGER_RERANKER_MODEL`, read again at each load unless given as
        keyword.
        """
    @property
    def use_huggingface(self) -> bool:
        """Whether a warm-up of everything includes the generator. `USE_HUGGINGFACE`, default True."""
    @property
    def max_tokens(self) -> int:
        """Default length of generated answers, tokens. `AI_MAX_TOKENS`, default 150."""
    @property
    def temperature(self) -> float:
        """Default sampling temperature. `AI_TEMPERATURE`, default 0.7."""
    @property
    def dtype(self) -> str:
        """How sentence models' weights are held: ``float32``, ``bfloat16``, ``float16``, ``int8`` or ``int4``
        (quantized at load), or ``auto``: bfloat16 where the CPU or the card multiplies it natively, float16 where a CPU
        multiplies that faster, else float32.
        `MODEL_MANAGER_DTYPE`, default auto.
        """
    @property
    def generator_dtype(self) -> str:
        """The same for the generator, but ``auto`` is bfloat16 on every CPU: a token of an answer reads all weights.
        GGUF files keep their own form. `MODEL_MANAGER_GENERATOR_DTYPE`, default auto.
        """
    @property
    def device(self) -> str:
        """``auto``, ``cpu``, ``cuda``, ``cuda:1`` (the second card) or ``mps``, also written ``metal``; a card needs a
        build with its feature. ``auto`` is the card with the most free memory, else the CPU. Generators use a card only
        where it is named: their quantized weights take 16 or 32 bits each there. `MODEL_MANAGER_DEVICE`, default
        auto.
        """
    @property
    def threads(self) -> int:
        """Threads that compute, shared by all managers of the process; 0: as many as the cores this process may use.
        `MODEL_MANAGER_THREADS`, default 0.
        """
    @property
    def max_queue(self) -> int:
        """Texts that may wait for one model before `OverloadedError`. `MODEL_MANAGER_MAX_QUEUE`, default 200000."""
    @property
    def max_text_bytes(self) -> int:
        """Bytes of a text that is tokenized completely (prompts, ``truncate=False``, `count_tokens`). A longer one is
        refused, and so is a text of a sixteenth of this size that has no place to cut.
        `MODEL_MANAGER_MAX_TEXT_BYTES`, default 4194304.
        """
    @property
    def max_parallel(self) -> int:
        """Answers that one generator writes at the same time, 1 to 1024; further requests wait.
        `MODEL_MANAGER_MAX_PARALLEL`, default 16.
        """
    @property
    def max_generation_queue(self) -> int:
        """Requests for text that may wait for one generator before `OverloadedError`.
        `MODEL_MANAGER_MAX_GENERATION_QUEUE`, default 256.
        """
    @property
    def prompt_lookup_tokens(self) -> int:
        """Most tokens of an answer, 0 to 64, that are guessed from the prompt and the answer so far, and checked in one
        step; 0: none. Answers are the same. `MODEL_MANAGER_PROMPT_LOOKUP_TOKENS`, default 8.
        """
    @property
    def max_context(self) -> int | None:
        """Tokens of a prompt and its answer together; None: the model's own limit. `MODEL_MANAGER_MAX_CONTEXT`."""
    @property
    def kv_memory(self) -> float | str:
        """Memory that the keys and values of one generator's requests may take, as given: bytes, a fraction of RAM or
        cgroup limit up to 1, or text such as ``"2GB"``. `MODEL_MANAGER_KV_MEMORY`, default 0.25.
        """
    @property
    def memory_budget(self) -> float | str | None:
        """Memory that all models of this manager may take, keys and values of generators included, as given: bytes, a
        fraction of RAM or cgroup limit up to 1, text such as ``"2GB"``, or None (no limit). Models on a card have the
        same limit there, or that fraction of the card's memory. `MODEL_MANAGER_MEMORY_BUDGET`.
        """
    @property
    def eviction(self) -> str:
        """Which idle model leaves when `memory_budget` is full: ``lru`` (the least recently used) or ``cost`` (the one
        whose uses and load time are worth least for its size). `MODEL_MANAGER_EVICTION`, default ``lru``.
        """
    @property
    def keep_alive(self) -> float | str | None:
        """How long models stay after their latest use, as given: seconds or ``"5m"``; 0: unload after use; negative:
        indefinitely; ``auto``: as their use has shown; None: `max_idle_time`. `MODEL_MANAGER_KEEP_ALIVE`.
        """
    @property
    def cold_start_price(self) -> float | None:
        """With `keep_alive` ``auto``, seconds in memory that one load is worth; None: twice `max_idle_time`.
        `MODEL_MANAGER_COLD_START_PRICE`, default None.
        """
    @property
    def max_keep_alive(self) -> float:
        """With `keep_alive` ``auto``, the longest stay after a use. `MODEL_MANAGER_MAX_KEEP_ALIVE`, default 14400."""
    @property
    def adaptive_state(self) -> bool | str:
        """With `keep_alive` ``auto``, the folder in which the times of use are remembered across restarts; True: one in
        the user's cache folder; False: none. `MODEL_MANAGER_ADAPTIVE_STATE`, default True.
        """
    @property
    def load_timeout(self) -> float | None:
        """Seconds to wait for a load when the call gives no timeout; None: no limit. `MODEL_MANAGER_LOAD_TIMEOUT`."""
    @property
    def cache_dir(self) -> str | None:
        """Folder of downloaded models; None: the Hugging Face cache (`HF_HUB_CACHE`, `HF_HOME`).
        `MODEL_MANAGER_CACHE_DIR`.
        """
    @property
    def offline(self) -> bool:
        """Never download. `MODEL_MANAGER_OFFLINE`, default False; `HF_HUB_OFFLINE` turns it on too."""
    @property
    def remote_connections(self) -> int:
        """Concurrent requests to a server's model (``ollama://``, ``openai+https://``), each on its own connection, 1
        to 64. `MODEL_MANAGER_REMOTE_CONNECTIONS`, default 4.
        """
    @property
    def remote_batch(self) -> int:
        """Maximum texts in one request to a server. `MODEL_MANAGER_REMOTE_BATCH`, default 64."""
    @property
    def remote_timeout(self) -> float:
        """Seconds that one request to a server may take, including its answer. `MODEL_MANAGER_REMOTE_TIMEOUT`, default
        60.
        """
    @property
    def revision(self) -> str | None:
        """Branch, tag or commit of hub models; None: main. `MODEL_MANAGER_REVISION`."""
    @staticmethod
    def fields() -> list[FieldInfo]:
        """Every setting: name, environment variable, default, type, meaning, in the order of the constructor."""
    def to_dict(self) -> dict[str, Any]:
        """Every setting as {name: value}; `Config(**config.to_dict())` equals `config`."""
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

@final
class LazyLoadTracker:
    """Load times, memory and accesses by slot. Every manager has one, and a program may create its own."""

    def __new__(cls) -> Self: ...
    def record_load(self, model_type: str, load_time: float, memory_mb: float) -> None:
        """Record a load that took `load_time` seconds and `memory_mb` MiB; it counts as an access too.

        Raises `ArgumentError` for figures that are not finite.
        """
    def record_access(self, model_type: str) -> None:
        """Record a use now."""
    def get_statistics(self) -> TrackerStatistics:
        """All figures by slot; seconds and MiB."""
    def clear(self) -> None:
        """Reset all figures."""

@final
class ArrowVectors:
    """Vectors as an Arrow array of type fixed_size_list<float32>[dim], for any library that reads Arrow:
    ``pyarrow.array(vectors)``, ``polars.Series("name", vectors)``, ``nanoarrow.Array(vectors)``. Also for numpy:
    ``numpy.asarray(vectors)`` has shape (n, dim), is read-only, and has NaN in null rows. All share its memory.
    """

    @property
    def dimension(self) -> int:
        """Length of a vector."""
    @property
    def null_count(self) -> int:
        """Rows that are null."""
    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...
    def __arrow_c_schema__(self) -> object: ...
    def __len__(self) -> int: ...

@final
class Ticket:
    """A request under way, as `Manager.submit` and `submit_response` return it."""

    @property
    def done(self) -> bool:
        """Whether `on_done` was called, is about to be called, or never will be because the request was cancelled.

        Raises `ForkedError` in a process that was forked while the request was under way: its answer goes to the
        parent.
        """
    @property
    def _waits_for_its_thread(self) -> bool:
        """Whether a callback submitted the request on the thread that will call `on_done`: what waits for it there
        waits without end.
        """
    def cancel(self) -> bool:
        """Cancel the request. True: `on_done` will not be called; False: it is too late."""

@final
class TextStream:
    """The pieces of one answer, as `Manager.stream` returns it: an iterator of str that never splits a character.

    The generation starts at once, not with the first piece. Closing or dropping the stream ends it within one token.
    One thread at a time waits for a piece; RuntimeError in a second one.
    """

    def __iter__(self) -> Self: ...
    def __next__(self) -> str: ...
    def cancel(self) -> None:
        """End the answer within one token; the iterator returns what was written until then and stops."""
    def close(self) -> None:
        """End the answer within one token; the iterator stops at once. Another thread that waits for a piece gets what
        was written. The end of a ``with`` statement does the same.
        """
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...
    @property
    def completion(self) -> Completion | None:
        """The whole answer and its figures once the iterator has ended; None before, and after an error."""

@final
class GenerationTicket:
    """A generation under way, as `Manager.submit_generation` returns it."""

    def cancel(self) -> None:
        """End the generation within one token, or before it starts; its last event still comes."""
    @property
    def _waits_for_its_thread(self) -> bool:
        """Whether this thread is the one that writes the answer: what waits for it here waits without end."""

@disjoint_base
class Manager:
    """Model slots, the embedding cache and the queues. All methods may be called from any thread.

    Waiting releases the GIL and can be interrupted (Ctrl-C). A manager can be subclassed, used in a ``with`` statement,
    and pickled by configuration; models load again where it is unpickled.

    The slots ``turkish_sentence``, ``english_sentence`` and ``text_generator`` exist from the start, and the first use
    of ``reranker`` makes that slot. When the source of ``turkish_sentence`` cannot be loaded, the multilingual default
    model is loaded instead.
    """

    def __new__(cls, config: Config | None = None, **overrides: Unpack[Settings]) -> Self:
        """A manager with these settings. `overrides` are keywords of `Config` that replace those of `config`.

        Without any argument the environment is read at the manager's first use, not by this call.
        """
    def _make_process_wide(self) -> None:
        """Make it read the working directory's ``.env`` before its settings, and search models in ``models_cache``."""
    @property
    def config(self) -> Config:
        """The settings in force. Reading them makes them final."""
    @property
    def device(self) -> str:
        """Where models compute: ``cpu``, or a card: ``cuda:0``, ``mps:0``."""
    @property
    def tracker(self) -> LazyLoadTracker:
        """This manager's tracker; `record_*` on it add to what it shows."""
    @property
    def last_cleanup_seconds(self) -> float:
        """Seconds since the last clean-up of idle models, or since construction if there was none."""
    @property
    def auto_cleanup(self) -> tuple[bool, float, float]:
        """(enabled, cleanup_interval, max_idle_time) as last set by `set_auto_cleanup`, initially from the settings."""
    def register(
        self,
        name: str,
        source: str | os.PathLike[str] | None = None,
        *,
        loader: Callable[[], Any] | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"] = "auto",
        keep_alive: _KeepAlive = None,
        pinned: bool = False,
        fallback: Sequence[str] = ...,
        pooling: str | None = None,
        max_length: int | None = None,
        chat_template: bool | None = None,
        revision: str | None = None,
        adapter: str | os.PathLike[str] | None = None,
        prompts: Mapping[str, str] | None = None,
        kind: Literal["embedding", "reranker", "classifier", "sparse", "generator", "encoder"] | None = None,
        cache: bool | CachePolicy | None = None,
        cold_start_price: float | None = None,
        replace: bool = False,
    ) -> None:
        """Create the slot `name` for an embedding model or a text generator from `source`, or for the object that
        `loader` returns. Nothing is loaded yet.

        Args:
            source: Hub id, bare sentence-transformers name, local folder, ``pkg:package/folder``, a ``.gguf`` file,
                or for embeddings a server's model: ``ollama://host:port/model``, ``ollama+https://``,
                ``openai+http://host:port/model``, ``openai+https://``. A key is never part of the source:
                ``env:NAME@`` before the host names the environment variable that holds it. Without it, ``openai+…``
                sources use `MODEL_MANAGER_REMOTE_KEY`.
            loader: A plain function without arguments, called on its own thread when the slot is first used. A loader
                that refers to this manager, such as a method of an object that has it, keeps both in memory until
                `close`: Python's garbage collector does not see what a slot refers to. So does an object in a slot.
            dtype: The type of the weights; int8 and int4 quantize plain weights at load. auto: as configured.
            keep_alive: Seconds or ``"5m"`` after the latest use; 0: unload after use; negative: indefinitely; None: as
                configured.
            pinned: Neither idle time nor the budget unloads the model; `unload` still does. Not with a `keep_alive`.
            fallback: Sources to try in order when the first one cannot be loaded.
            pooling, max_length, revision, prompts: Override the model's files. For a server's model only prompts can be
                overridden.
            chat_template: Whether each text goes through the model's chat template, as a message of the user. None: if
                ``modality_config`` has a ``message``, or if the model has a template and no ``modules.json``, as in
                sentence-transformers.
            adapter: What is added to the weights when they are loaded: the folder or hub id of a LoRA adapter of PEFT
                (``org/name/folder`` for a folder of a repository), or the name of an adapter that the model's own files
                have (``retrieval.query`` of jina-embeddings-v3). Tokenizer, pooling and prompts stay those of `source`.
                A `source` that is an adapter itself is loaded with the base that it names. Not with a `fallback`.
            kind: The kind of model in `source`. None: its files decide, at the first load if they are not on this
                machine yet (a pooling or a ``modules.json`` makes an embedding model, a class for sequence
                classification a reranker or classifier, any other language model is a generator). ``encoder``: the
                same, except that a language model embeds. Without a kind ``text_generator`` is a generator,
                ``reranker`` a reranker, and the two sentence slots embed.
            cache: How its results are cached: False is not at all, a dict says what differs from all models.
            cold_start_price: With `keep_alive="auto"`, seconds in memory that one load is worth.
            replace: Allow an existing slot with that name; its model is unloaded. The built-in slots (two for
                sentences, ``text_generator`` and ``reranker``) are replaced without it too.

        Raises:
            InputError: Both or neither of `source` and `loader`, an existing name, an unknown dtype or pooling.
            TypeError: A loader that is a coroutine or generator function, whose result could be used once only.
        """
    def unregister(self, name: str) -> None:
        """Unload and remove the slot, its pinned vectors and its figures in `tracker`. Built-in slots cannot be
        removed; ``reranker`` becomes the one of the settings again. Raises `UnknownModelError`, `InputError`.
        """
    @overload
    def embed(
        self,
        texts: Inputs,
        model: str | None = None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool = True,
        truncate_dim: int | None = None,
        truncate: bool = True,
        copy: bool = False,
        timeout: float | None = None,
        keep_alive: _KeepAlive = None,
        user: str | None = None,
        progress: Callable[[int, int], object] | None = None,
        outputs: None = None,
    ) -> _Result: ...
    @overload
    def embed(
        self,
        texts: Inputs,
        model: str | None = None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool = True,
        truncate_dim: int | None = None,
        truncate: bool = True,
        copy: bool = False,
        timeout: float | None = None,
        keep_alive: _KeepAlive = None,
        user: str | None = None,
        progress: Callable[[int, int], object] | None = None,
        outputs: Literal["dense", "sparse", "multi"] | Iterable[Literal["dense", "sparse", "multi"]],
    ) -> EmbedOutputs:
        """Embed one text (float32, shape (dim,)) or several (float32, C-contiguous, shape (n, dim); none: (0, dim)).

        Args:
            texts: A str or any iterable of str, embedded as given; or token ids of the model's own vocabulary, one
                iterable of int for one vector or several for several. The model reads ids as they are, without special
                tokens, and cuts those beyond its maximum. Ids need the `model` and allow no prompt.
            model: Slot; None: the slot of each text's language, see `route`.
            prompt: Text that is put in front of every text.
            prompt_name: The name of one of the model's prompts. Without this and `prompt`: the model's default prompt,
                if it has one.
            normalize: Scale to length 1 (a vector of zeros stays zeros). False: the model's own output; some models
                end in a normalization, which comes before `truncate_dim`.
            truncate_dim: Keep the first dimensions, before normalizing.
            truncate: Cut texts that have more tokens than the model reads; `stats()["slots"]` counts them, and the
                first one is logged. False: they are refused; `chunk` splits them.
            copy: The array of a single text is read-only and shared with the cache unless True. Arrays of several
                texts always belong to the caller.
            timeout: Seconds for everything, loading included; None: `load_timeout` for the load, no limit for the rest.
            keep_alive: Overrides the slot's value for this use.
            user: Who asks: a slot with ``keep_alive="auto"`` learns which models a user takes one after the other.
            progress: Called on this thread as ``progress(done, total)`` when texts are finished, with (total, total) at
                the end.
            outputs: One or some of ``dense``, ``sparse`` and ``multi``, computed in one pass where the model (bge-m3)
                gives all of them. The result is then an `EmbedOutputs`.

        Raises:
            TypeError: None of these forms, or several of them in one call (a bool is not an id, bytes and a memoryview
                are no texts); another argument of a wrong type, or an unknown one. The message names it.
            InputError: A lone surrogate, an id outside the vocabulary, ids with a prompt or without a model, an unknown
                `prompt_name`, one together with a `prompt`, a `truncate_dim` out of range, or texts of models with
                different dimensions in one call.
            UnknownModelError, WaitTimeoutError, OverloadedError, NotFiniteError, ClosedError: See `errors.py`.
            ModelManagerError: The errors of loading the model.
        """
    def embed_arrow(
        self,
        texts: ArrowColumn,
        model: str | None = None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool = True,
        truncate_dim: int | None = None,
        truncate: bool = True,
        timeout: float | None = None,
        keep_alive: _KeepAlive = None,
        user: str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> ArrowVectors:
        """`embed` of an Arrow column into an Arrow array of the same length. No Python object is made for a text.

        `texts` is anything that exports ``__arrow_c_stream__`` or ``__arrow_c_array__``: a Series of polars or pandas,
        an array of pyarrow or nanoarrow. Its type is string, large_string, string_view, or a dictionary of one of them.
        A null has a null vector. Other arguments and errors are those of `embed`.

        Raises:
            TypeError: An object that exports no Arrow data.
            ArgumentError: A column of another type, or a frame; damaged data.
        """
    def submit(
        self,
        texts: Inputs,
        on_done: Callable[[_Result | None, BaseException | None], object],
        model: str | None = None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool = True,
        truncate_dim: int | None = None,
        truncate: bool = True,
        copy: bool = False,
        timeout: float | None = None,
        keep_alive: _KeepAlive = None,
        user: str | None = None,
    ) -> Ticket:
        """`embed` without waiting: returns at once, even when the model must be loaded first.

        `on_done(result, error)` is called once, with None for one of the two: from another thread, or from this thread
        before `submit` returns when everything was cached. Keep it short: other asynchronous calls wait for it. It may
        call `embed`, and submit further requests; to await one there raises `InputError`. Wrong arguments raise here.
        Tokenizing and loading happen on other threads, so an event loop may call this. Other arguments and errors are
        those of `embed`.
        """
    def _infer(
        self,
        kind: Literal["scores", "sparse", "multi", "queries", "states", "all"],
        first: Inputs,
        second: Iterable[str] | None = None,
        model: str | None = None,
        progress: Callable[[int, int], object] | None = None,
        **options: Any,
    ) -> tuple[Any, int]:
        """Scores (float32, shape (n, labels)), sparse vectors, vectors or states of tokens, or (vector, sparse vector,
        vectors of tokens) of each input; and the tokens that were read.

        `second` are the second texts of pairs: one `first` text goes with each of them, or as many. `options` are
        ``activation`` (identity, sigmoid, softmax, probabilities), ``prompt``, ``prompt_name``, ``normalize``,
        ``truncate``, ``timeout`` and ``keep_alive``.
        """
    def _submit_inference(
        self,
        kind: Literal["scores", "sparse", "multi", "queries", "states", "all"],
        on_done: Callable[[Any, int, BaseException | None], object],
        first: Inputs,
        second: Iterable[str] | None = None,
        model: str | None = None,
        **options: Any,
    ) -> Ticket:
        """`_infer` without waiting: `on_done(results, tokens, error)` is called as that of `submit`."""
    def _labels(self, name: str) -> list[str]:
        """The labels that the model of a slot scores, as its latest load found them. Loads nothing."""
    def submit_response(
        self,
        inputs: Inputs,
        on_done: Callable[[bytes | None, int, BaseException | None], object],
        model: str | None = None,
        *,
        served_model: str,
        encoding_format: Literal["float", "base64"] = "float",
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        truncate: bool = True,
        timeout: float | None = None,
        keep_alive: _KeepAlive = None,
        user: str | None = None,
    ) -> Ticket:
        """`submit` with the answer as the complete JSON body of OpenAI's ``POST /v1/embeddings``.

        The body holds one vector of length 1 per input. Its numbers read back as the same float32. The thread that
        calls `on_done(body, prompt_tokens, error)` writes it without the GIL: (bytes, tokens, None) or (None, 0,
        error). This is the calling thread, before `submit_response` returns, when everything was cached and has at most
        65,536 numbers. The count has all tokens that the model read, prompts and special tokens included, tokens that
        were cut not; it is exact for cached inputs too.

        Args:
            inputs: As for `embed`.
            on_done: Called once, as for `submit`.
            model: Slot, as for `embed`.
            served_model: The ``model`` of the body.
            encoding_format: Vectors as lists of numbers, or as base64 of little-endian float32.
            prompt: As for `embed`.
            prompt_name: As for `embed`.
            truncate_dim: As for `embed`.
            truncate: Cut inputs that are longer than the model's maximum. False: such an input is an InputError, which
                names its index, its tokens and the limit.
            timeout: As for `embed`.
            keep_alive: As for `embed`.
            user: As for `embed`.

        Raises:
            InputError: An unknown `encoding_format`, and the cases of `submit`.
        """
    def complete(
        self,
        prompt: _Prompt,
        model: str | None = None,
        **params: Unpack[GenerationParams],
    ) -> Completion:
        """The whole answer to `prompt` with its figures.

        Args:
            prompt: A str is continued, and so are token ids of the model's own vocabulary. Messages, a list of mappings
                with the keys ``role`` and ``content``, are answered through the model's chat template.
            model: Slot; None: ``text_generator``.
            params: The fields of `GenerationParams`.

        Raises:
            TypeError: A prompt or a parameter of the wrong type, or an unknown parameter.
            InputError: A value out of range, an empty prompt, a prompt that reaches the context or `max_length`, or
                messages for a model without a template.
            ArgumentError: `chat_template_kwargs` with a text or token ids, or with a variable that the model's template
                does not read or that the call sets itself, such as ``messages``.
            NoGeneratorError: The slot holds something else.
            UnknownModelError, WaitTimeoutError, OverloadedError, NotFiniteError, ClosedError: See `errors.py`.
            ModelManagerError: The errors of loading the model.
        """
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        model: str | None = None,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        timeout: float | None = None,
        **variables: Any,
    ) -> str:
        """The prompt that the model's chat template makes from `messages`: the same text as in transformers.

        Args:
            messages: Mappings, usually with ``role`` and ``content``; the template decides which other keys it reads.
            model: Slot; None: ``text_generator``.
            add_generation_prompt: End where the assistant's answer begins. None: unless the last message is continued.
            continue_final_message: End in the last message, which the answer continues.
            chat_template: Use this template instead of the model's own; or the name of one where the model has several,
                such as ``tool_use``, which conversations with ``tools`` take anyway.
            timeout: Seconds that loading may take; None: `load_timeout`.
            variables: Further variables of the template, such as ``tools``, ``documents``, ``enable_thinking``. Those
                that it does not read change nothing, as in transformers.

        Raises:
            TypeError: Messages that are not a list of mappings, or a value that templates do not know.
            InputError: The template refuses the messages or does not show the one to continue, or the model has none.
            UnsupportedModelError: The template does not parse, uses an unsupported feature, or exceeds a limit.
            NoGeneratorError: The slot holds something else.
        """
    def stream(
        self,
        prompt: _Prompt,
        model: str | None = None,
        **params: Unpack[GenerationParams],
    ) -> TextStream:
        """`complete` piece by piece: loads the model, starts, and returns an iterator of the answer's pieces.

        Later errors are raised by the iterator.
        """
    def submit_generation(
        self,
        prompt: _Prompt,
        on_event: Callable[[str | None, Completion | None, BaseException | None], object],
        model: str | None = None,
        **params: Unpack[GenerationParams],
    ) -> GenerationTicket:
        """`stream` without waiting: returns at once, even when the model must be loaded first.

        `on_event(piece, completion, error)` is called with each piece, and then once with the completion or the error;
        the other two are None. It is called from another thread, or from this thread before the method returns when a
        loaded model refuses the prompt. Keep it short: the next token waits for it, and so does a `timeout` of this
        call. It may begin another answer of the same model with this method; to wait for one there raises `InputError`.
        Wrong parameters raise here. After `timeout` seconds the error is `WaitTimeoutError`.
        """
    @overload
    def describe_generator(self, name: str = "text_generator", load: Literal[True] = True) -> GeneratorDescription: ...
    @overload
    def describe_generator(self, name: str = "text_generator", load: bool = True) -> GeneratorDescription | None:
        """What the model of a generator slot is. The model is loaded first; with `load` False the result is None when
        it is not loaded, and the call is no use of it.

        Raises `NoGeneratorError` for any other slot; with `load` False only if its model is loaded.
        """
    def _embed_identified(
        self, texts: Inputs, model: str | None = None, **options: Any
    ) -> tuple[NDArray[np.float32], str | None]:
        """`embed` with its options, and what the slot's model computes: 64 hexadecimal digits, equal for equal content
        of its files, format and adapter on every machine. The files are read once. None for a server's model, for one
        whose files were changed after it was loaded, and where the call names no slot.
        """
    def _registration(self, name: str) -> int:
        """A number of the slot's latest registration, equal to that of no other one: a slot with another number may
        hold another model. Raises `UnknownModelError`.
        """
    def route(self, text: str) -> str:
        """The slot that `embed` chooses for `text`, by the language of its first 800 characters, lower-cased."""
    def load(self, name: str, timeout: float | None = None) -> None:
        """Load the slot and wait for it. Concurrent callers share one load.

        Raises:
            UnknownModelError: No such slot.
            WaitTimeoutError: Not ready in time; the load goes on.
            ModelManagerError: The load failed; the next call tries again.
        """
    def unload(self, name: str) -> bool:
        """Unload the slot; True if it was loaded. Running calls finish first, then the memory is returned."""
    def unload_all(self) -> int:
        """Unload every slot; return how many were loaded."""
    def is_loaded(self, name: str) -> bool:
        """Whether the slot is in memory now. Never loads."""
    def get(self, name: str, timeout: float | None = None) -> Any:
        """Load the slot and return its object: a `SentenceModel`, a `CrossEncoder`, a `TextGenerator`, or what the
        loader returned.
        """
    def peek(self, name: str) -> Any | None:
        """Like `get`, but None when the slot is not in memory. It does not count as a use."""
    def slots(self) -> list[str]:
        """Names of all slots, in the order of their creation."""
    @overload
    def describe(self, name: str, load: Literal[True] = True) -> Description: ...
    @overload
    def describe(self, name: str, load: bool) -> Description | None:
        """What the model of an embedding slot or reranker is. The model is loaded first; with `load` False the result
        is None when it is not loaded.

        Raises `InputError` for a slot with a loader.
        """
    def _inspect(self, source: str, kind: str | None, adapter: str | None = None) -> dict[str, Any]:
        """What the model of `source` is, from its small files. Raises the reason why it does not run."""
    @overload
    def count_tokens(self, texts: str, model: str | None = None) -> int: ...  # type: ignore[overload-overlap]
    @overload
    def count_tokens(self, texts: Iterable[str], model: str | None = None) -> list[int]:
        """Tokens of each text with special tokens, not cut to the model's maximum. A generator counts with its own
        tokenizer. Loads the model.
        """
    def _chunk(
        self,
        text: str,
        model: str | None = None,
        *,
        max_tokens: int | None = None,
        overlap: int = 0,
        prompt: str | None = None,
        prompt_name: str | None = None,
        timeout: float | None = None,
    ) -> list[tuple[str, int, int, int]]:
        """(text, start, end, tokens) of each chunk; `BaseManager.chunk` describes them."""
    def _embed_chunks(
        self,
        text: str,
        model: str | None = None,
        *,
        max_tokens: int | None = None,
        overlap: int = 0,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool = True,
        timeout: float | None = None,
    ) -> tuple[list[tuple[str, int, int, int]], NDArray[np.float32]]:
        """The same, and a vector for each chunk; `BaseManager.embed_chunks` describes them."""
    def warmup(self, names: Iterable[str], timeout: float | None = None) -> None:
        """Load several slots at the same time and wait for all. The first failure is raised when all have ended."""
    def cache_info(self) -> CacheStatistics:
        """State of the embedding cache."""
    def cache_clear(self, *, tiers: bool = False) -> None:
        """Empty the cache and set its counts to zero. With `tiers`, disk and Redis are emptied too, and what is on its
        way there is dropped. Calls that still compute store their results later. An interrupt ends the waiting for a
        server, and the clearing goes on.

        Raises `ModelIOError` when a folder or a server could not be emptied; everything else is empty then.
        """
    def cache_flush(self, timeout: float = 10.0) -> None:
        """Wait until every result that is on its way to disk or Redis is stored, `timeout` seconds at most; infinity:
        without limit. Raises `ArgumentError` for a number that is not greater than 0.
        """
    def cache_verify(self) -> dict[str, int]:
        """Read everything in the folder of `cache_disk`: numbers of ``whole`` and ``damaged`` results. A damaged one is
        never used. Raises `ConfigError` when nothing is stored on disk, as the next two do.
        """
    def cache_export(self, path: str | os.PathLike[str]) -> int:
        """Write everything in the folder of `cache_disk` to one file; return how many results."""
    def cache_import(self, path: str | os.PathLike[str]) -> int:
        """Add the results of a file that `cache_export` wrote to the folder of `cache_disk`; return how many were new.

        Raises `InvalidFileError` for another or a damaged file.
        """
    def _cache_probe(self) -> list[tuple[str, bool]]:
        """Ask the servers of the cache now: the address of each, and whether it answers."""
    def _cache_texts(self, texts: Sequence[str], model: str | None, pin: bool) -> None:
        """Have the results of texts in the cache; with `pin`, they do not leave it because it is full."""
    def hint(self, name: str, user: str | None = None) -> bool:
        """Say that the slot will be needed soon: a page was opened, a call comes in.

        With `keep_alive="auto"` its model is loaded, if nothing is computed now and memory is free, and leaves after a
        minute if it is not used. So are the models that usually follow it within a minute: by the habits of `user`, as
        `embed(user=...)` has shown them, or by those of everybody. False, and nothing happens, for a slot with another
        `keep_alive`. Raises `UnknownModelError`.
        """
    def explain(self, name: str) -> Explanation:
        """What decides how long the slot stays in memory: numbers, and one sentence. Raises `UnknownModelError`."""
    def forecast(self) -> list[Forecast]:
        """The loads ahead of a use that are planned by `keep_alive="auto"`, the next first."""
    def stats(self) -> Statistics:
        """All figures, JSON-serializable. Loads nothing."""
    def set_auto_cleanup(self, enabled: bool, cleanup_interval: float = 300.0, max_idle_time: float = 600.0) -> None:
        """Switch the unloading of idle models on or off, with immediate effect. Both times must be > 0 seconds."""
    def cleanup_idle(self) -> int:
        """Unload now the slots that have been idle for `max_idle_time`; return how many."""
    def close(self) -> None:
        """Unload everything and stop the threads. A call in progress gets its result first, and its model stays in
        memory until then. This waits for the current step of each generator, at most a second for the thread that
        unloads, and at most two for each tier of the cache. Further use raises `ClosedError`. Closing again does
        nothing.
        """
    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

def is_turkish(text: str) -> bool:
    """The chatbot's detector: whether the weighted share of Turkish letters and common Turkish words exceeds 0.1."""

def _is_turkish_improved(text: str) -> bool:
    """The detector of `language_detector="improved"`."""

def resident_bytes() -> int:
    """Resident memory of this process, bytes; 0 where the system does not report it."""

def trim_memory() -> int:
    """Return unused memory of the allocator to the operating system; the decrease of resident memory, bytes."""

def isa() -> str:
    """The instruction set of the kernels: the best of `available_isas`, or the one that `MODEL_MANAGER_ISA` names."""

def available_isas() -> list[str]:
    """The instruction sets with kernels for this CPU, lowest first."""

def _json_values(text: bytes) -> int:
    """Values and keys in a JSON text, no fewer than a parser would create. Releases the GIL."""

@final
class _Tokenizer:
    """The tokenizer of a ``tokenizer.json`` or of a GGUF file, alone."""

    def __new__(cls, path: str | os.PathLike[str]) -> Self: ...
    def ids(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, special tokens included."""
    def counts(self, texts: list[str]) -> list[int]:
        """How many ids each text has."""

def _maxsim(query: NDArray[np.float32], documents: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """MaxSim of a query with each document: contiguous arrays of rows of one width. Releases the GIL."""

def _config_from(config_class: type[Config], settings: dict[str, Any]) -> Config:
    """Unpickle a `Config` from its keywords."""

def _error_classes() -> dict[str, type[Exception]]:
    """Each error kind of the core and the exception of `model_manager.errors` that it becomes."""

def _set_tracer(tracer: object | None) -> None:
    """Set what is called when a traced call of any manager begins and when it has ended; None: calls are not traced."""

def _at_exit() -> None:
    """Called before the interpreter ends, so that computing daemon threads do not return into it."""

def _before_fork() -> None:
    """Called before `os.fork`: take the locks, so that the child does not inherit them locked."""

def _after_fork_parent() -> None:
    """Called after `os.fork` in the parent: release the locks."""

def _after_fork_child() -> None:
    """Called after `os.fork` in the child: release the locks and reset the threads, which do not survive fork."""

def _settled_source(name: str) -> str:
    """The name of a model with the whole path of its folder, if it is one that is named from the working directory."""

def _hub_cache(config: Config) -> Path:
    """The folder of the hub's models with these settings."""

def _families() -> list[dict[str, Any]]:
    """The families: ``model_type``, ``classes``, ``kinds``, ``gguf``, ``example``."""

def _refusal(config: str, kind: str) -> str | None:
    """Why a model with this config.json does not run when it is used so; None if it does, as far as the file shows."""

def _simulate_adaptive(
    uses: Sequence[float],
    *,
    load_seconds: float,
    max_idle_time: float = 600.0,
    cold_start_price: float = 1200.0,
    max_keep_alive: float = 14400.0,
) -> tuple[AdaptiveStatistics, list[bool]]:
    """The adaptive policy over one series of uses (seconds from a Monday, 00:00), for benchmarks: what it and the fixed
    timer would have spent, and which uses would have waited for a load.
    """
