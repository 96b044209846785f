"""The Rust core: models, lifecycle, batching, cache. `ModelManager` is `Manager` plus the chatbot's names."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeAlias, final, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self, disjoint_base

from model_manager._types import (
    CacheStatistics,
    Completion,
    Description,
    FieldInfo,
    GeneratorDescription,
    Inputs,
    Statistics,
    TrackerStatistics,
)

__all__ = [
    "Config",
    "GenerationTicket",
    "LazyLoadTracker",
    "Manager",
    "TextStream",
    "Ticket",
    "__version__",
    "_after_fork_child",
    "_after_fork_parent",
    "_at_exit",
    "_before_fork",
    "_config_from",
    "_error_classes",
    "_json_values",
    "available_isas",
    "is_turkish",
    "isa",
    "resident_bytes",
    "trim_memory",
]

__version__: str

_KeepAlive: TypeAlias = float | str | None
_Result: TypeAlias = NDArray[np.float32]
_Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, str]]

@final
class Config:
    """Settings of a manager, validated once and immutable.

    Each value is the keyword given here, else the environment variable, else the default (`Config.fields()` lists all
    three). A value out of range raises `ConfigError` that names the setting. Equal settings compare equal.
    """

    def __new__(
        cls,
        *,
        lazy_loading: bool = ...,
        auto_cleanup: bool = ...,
        cleanup_interval: float = ...,
        max_idle_time: float = ...,
        cache_size: int = ...,
        cache_bytes: int = ...,
        cache_policy: Literal["lru", "lfu", "ttl"] = ...,
        cache_ttl: float = ...,
        prefer_turkish: bool = ...,
        language_detection: bool = ...,
        turkish_model: str = ...,
        english_model: str = ...,
        generator_model: str = ...,
        use_huggingface: bool = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = ...,
        generator_dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = ...,
        device: Literal["auto", "cpu", "cuda", "mps"] = ...,
        threads: int = ...,
        max_queue: int = ...,
        max_text_bytes: int = ...,
        max_parallel: int = ...,
        max_generation_queue: int = ...,
        max_context: int | None = ...,
        kv_memory: float | str = ...,
        memory_budget: float | str | None = ...,
        keep_alive: float | str | None = ...,
        load_timeout: float | None = ...,
        cache_dir: str | None = ...,
        offline: bool = ...,
        remote_connections: int = ...,
        remote_batch: int = ...,
        remote_timeout: float = ...,
        revision: str | None = ...,
    ) -> Self: ...
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
        """Seconds between clean-ups at most; idle deadlines are kept exactly. `CLEANUP_INTERVAL_SECONDS`, default
        300.
        """
    @property
    def max_idle_time(self) -> float:
        """Seconds after its latest use that a model is unloaded. `MAX_IDLE_TIME_SECONDS`, default 600."""
    @property
    def cache_size(self) -> int:
        """Vectors that the embedding cache holds; 0 turns it off. `MEMORY_EFFICIENT_CACHE_SIZE`, default 50."""
    @property
    def cache_bytes(self) -> int:
        """Bytes that the embedding cache holds. `MODEL_MANAGER_CACHE_BYTES`, default 64 MiB."""
    @property
    def cache_policy(self) -> str:
        """Which vector leaves a full cache: ``lru``, ``lfu``, or ``ttl`` (LRU, and each entry expires).
        `MODEL_MANAGER_CACHE_POLICY`, default lru.
        """
    @property
    def cache_ttl(self) -> float:
        """Seconds that an entry lives under the policy ``ttl``. `MODEL_MANAGER_CACHE_TTL`, default 600."""
    @property
    def prefer_turkish(self) -> bool:
        """Which sentence model is the preferred one. `AI_PREFER_TURKISH_MODELS`, default True."""
    @property
    def language_detection(self) -> bool:
        """Whether each text goes to the model of its language; off: all go to the preferred one.
        `AI_LANGUAGE_DETECTION`, default True.
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
        """How sentence models' weights are held: ``float32``, ``bfloat16``, ``int8`` or ``int4`` (quantised at load),
        or ``auto``: bfloat16 where the CPU multiplies it natively, else float32. GGUF files keep their own form.
        `MODEL_MANAGER_DTYPE`, default auto.
        """
    @property
    def generator_dtype(self) -> str:
        """The same for the generator. `MODEL_MANAGER_GENERATOR_DTYPE`, default auto."""
    @property
    def device(self) -> str:
        """``auto``, ``cpu``, ``cuda`` or ``mps``; the last two need a build with that feature.
        `MODEL_MANAGER_DEVICE`, default auto.
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
        """Bytes of a text whose every token is wanted (prompts, ``truncate=False``, `count_tokens`); a longer one is
        refused, and so is any text with a sixteenth of them and no place to cut.
        `MODEL_MANAGER_MAX_TEXT_BYTES`, default 4194304.
        """
    @property
    def max_parallel(self) -> int:
        """Answers that one generator writes at the same time, 1 to 1024; more requests wait.
        `MODEL_MANAGER_MAX_PARALLEL`, default 16.
        """
    @property
    def max_generation_queue(self) -> int:
        """Requests for text that may wait for one generator before `OverloadedError`.
        `MODEL_MANAGER_MAX_GENERATION_QUEUE`, default 256.
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
        fraction of RAM or cgroup limit below 1, text such as ``"2GB"``, or None (no limit).
        `MODEL_MANAGER_MEMORY_BUDGET`.
        """
    @property
    def keep_alive(self) -> float | str | None:
        """How long models stay after their latest use, as given: seconds or ``"5m"``; 0: unload after use; negative:
        for ever; None: `max_idle_time`. `MODEL_MANAGER_KEEP_ALIVE`.
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
        """Requests to a server's model (``ollama://``, ``openai+https://``) in flight at a time, each on a connection
        of its own, 1 to 64. `MODEL_MANAGER_REMOTE_CONNECTIONS`, default 4.
        """
    @property
    def remote_batch(self) -> int:
        """Texts of one request to a server at most. `MODEL_MANAGER_REMOTE_BATCH`, default 64."""
    @property
    def remote_timeout(self) -> float:
        """Seconds that one request to a server may take, its answer included. `MODEL_MANAGER_REMOTE_TIMEOUT`, default
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
    """Load times, memory and accesses by slot. Every manager has one; you may also make your own."""

    def __new__(cls) -> Self: ...
    def record_load(self, model_type: str, load_time: float, memory_mb: float) -> None:
        """Note a load that took `load_time` seconds and `memory_mb` MB; it counts as an access too."""
    def record_access(self, model_type: str) -> None:
        """Note a use now."""
    def get_statistics(self) -> TrackerStatistics:
        """All figures by slot; seconds and MB."""
    def clear(self) -> None:
        """Forget everything."""

@final
class Ticket:
    """A request under way, as `Manager.submit` and `submit_response` return it."""

    @property
    def done(self) -> bool:
        """Whether `on_done` has been called, is about to be, or never will be (cancelled)."""
    def cancel(self) -> bool:
        """Give the request up. True: `on_done` will not be called any more; False: it is too late."""

@final
class TextStream:
    """The pieces of one answer, as `Manager.stream` returns it: an iterator of str that never splits a character.

    The generation starts at once, not with the first piece asked for. Letting the stream go ends it within one token.
    """

    def __iter__(self) -> Self: ...
    def __next__(self) -> str: ...
    def cancel(self) -> None:
        """End the answer within one token; the iterator gives what was written until then and stops."""
    @property
    def completion(self) -> Completion | None:
        """The whole answer and its figures once the iterator has ended; None before, and after an error."""

@final
class GenerationTicket:
    """A generation under way, as `Manager.submit_generation` returns it."""

    def cancel(self) -> None:
        """End the generation within one token, or before it starts; its last event comes all the same."""

@disjoint_base
class Manager:
    """Model slots, the embedding cache and the queues. All methods may be called from any thread.

    Waiting happens with the GIL released and can be interrupted (Ctrl-C). A manager can be subclassed, used in a
    ``with`` statement, and pickled (by configuration; models load again where it is unpickled).

    Slots ``turkish_sentence``, ``english_sentence`` and ``text_generator`` exist from the start. When the source of
    ``turkish_sentence`` cannot be loaded, the multilingual default takes its place.
    """

    def __new__(cls, config: Config | None = None, **overrides: Any) -> Self:
        """A manager with these settings. `overrides` are keywords of `Config` that replace those of `config`.

        Without any argument the environment is read at the manager's first use, not here.
        """
    def _make_process_wide(self) -> None:
        """Let it read ``.env`` of the working directory before its settings, and find models in ``models_cache``."""
    @property
    def config(self) -> Config:
        """The settings in force; reading it fixes them."""
    @property
    def device(self) -> str:
        """Where models compute: ``cpu``, ``cuda`` or ``mps``."""
    @property
    def tracker(self) -> LazyLoadTracker:
        """This manager's tracker; `record_*` on it add to what it shows."""
    @property
    def last_cleanup_seconds(self) -> float:
        """Seconds since the last clean-up of idle models (since construction when there was none)."""
    @property
    def auto_cleanup(self) -> tuple[bool, float, float]:
        """What `set_auto_cleanup` last set: (enabled, cleanup_interval, max_idle_time); at first the settings'."""
    def register(
        self,
        name: str,
        source: str | None = None,
        *,
        loader: Callable[[], Any] | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto",
        keep_alive: _KeepAlive = None,
        pinned: bool = False,
        fallback: Sequence[str] = ...,
        pooling: str | None = None,
        max_length: int | None = None,
        revision: str | None = None,
        prompts: Mapping[str, str] | None = None,
        kind: Literal["embedding", "generator"] | None = None,
        replace: bool = False,
    ) -> None:
        """Make the slot `name`: an embedding model or a text generator from `source`, or whatever `loader` returns.
        Nothing is loaded yet.

        Args:
            source: Hub id, bare sentence-transformers name, local folder, ``pkg:package/folder``, a ``.gguf`` file,
                or for embeddings a server's model: ``ollama://host:port/model``, ``ollama+https://``,
                ``openai+http://host:port/model``, ``openai+https://``. Its key is never part of the source:
                ``env:NAME@`` before the host names the environment variable that holds it; without, ``openai+…``
                sources use `MODEL_MANAGER_REMOTE_KEY`.
            loader: Called without arguments, on a thread of its own, when the slot is first used.
            dtype: How it computes; int8 and int4 quantise plain weights at load. auto: as configured.
            keep_alive: Seconds or ``"5m"`` after the latest use; 0: unload after use; negative: for ever; None:
                as configured.
            pinned: Never unloaded by idleness or budget; `unload` still does.
            fallback: Sources to try in turn when the first cannot be loaded.
            pooling, max_length, revision, prompts: Replace what the model's files say. Of a server's model only prompts
                can be replaced.
            kind: What `source` is. None: what its files say when they are here (a pooling or a ``modules.json``: an
                embedding model; else a language model is a generator), otherwise what its first use makes it.
                ``text_generator`` is a generator always, the two sentence slots never.
            replace: Allow an existing slot of that name (built-in ones too); its model is unloaded.

        Raises:
            InputError: Both or neither of `source` and `loader`, a name in use, an unknown dtype or pooling.
        """
    def unregister(self, name: str) -> None:
        """Unload and forget the slot. The three built-in slots cannot go. Raises `UnknownModelError`, `InputError`."""
    def embed(
        self,
        texts: Inputs,
        model: str | None = None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool = True,
        truncate_dim: int | None = None,
        copy: bool = False,
        timeout: float | None = None,
        keep_alive: _KeepAlive = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> _Result:
        """Embed one text (float32, shape (dim,)) or several (float32, C-contiguous, shape (n, dim); none: (0, dim)).

        Args:
            texts: A str, or any iterable of str, embedded as given. Or token ids of the model's own vocabulary, one
                iterable of int for one vector, several for several: the model reads them as they are, nothing is put
                around them, and ids beyond its maximum are cut. Ids need the `model`, and take no prompt.
            model: Slot; None: the slot of each text's language, see `route`.
            prompt: Put in front of every text.
            prompt_name: The same by name, from the model's prompts. Without either the model's default prompt, if
                it has one.
            normalize: Scale to length 1 (a vector of zeros stays zeros). False: as the model gives it; some end
                in a normalisation of their own, which comes before `truncate_dim`.
            truncate_dim: Keep the first dimensions, before normalising.
            copy: A single text's array is read-only and shared with the cache unless True. Arrays of several are
                the caller's.
            timeout: Seconds for everything, loading included; None: `load_timeout` for the load, no limit for the rest.
            keep_alive: Replaces the slot's for this use.
            progress: Called on this thread as ``progress(done, total)`` as texts are finished, with (total,
                total) at the end.

        Raises:
            TypeError: None of these forms, or several in one call. A bool is no id.
            InputError: A lone surrogate, an id outside of the vocabulary, ids with a prompt or without a model, an
                unknown `prompt_name`, a `truncate_dim` out of range, or texts of models with different dimensions in
                one call.
            UnknownModelError, WaitTimeoutError, OverloadedError, NotFiniteError, ClosedError: See `errors.py`.
            ModelManagerError: Whatever loading the model raised.
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
        copy: bool = False,
        timeout: float | None = None,
        keep_alive: _KeepAlive = None,
    ) -> Ticket:
        """`embed` without waiting: returns at once, also when the model must be loaded first.

        `on_done(result, error)` is called once, from another thread, with one of the two None; from this thread, before
        `submit` returns, when everything was cached. Keep it short. Wrong arguments raise here; texts are tokenised and
        models loaded elsewhere, so an event loop may call this.
        """
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
    ) -> Ticket:
        """`submit`, with the answer as the complete JSON body of OpenAI's ``POST /v1/embeddings``.

        The body holds a vector of length 1 for each input, or the one of a single str or list of ids; numbers read back
        as the same float32. It is written without the GIL, on the thread that calls `on_done(body, prompt_tokens,
        error)`: (bytes, tokens, None) or (None, 0, error). That is this thread, before `submit_response` returns, when
        everything was cached and is at most 65,536 numbers. The tokens are those that the model read, prompts and
        special ones included, those cut off not; the cache knows them too.

        Args:
            inputs: As for `embed`.
            on_done: Called once, as for `submit`.
            model: Slot, as for `embed`.
            served_model: The ``model`` of the body.
            encoding_format: A vector as a list of numbers, or as its little-endian float32 in base64.
            prompt: As for `embed`.
            prompt_name: As for `embed`.
            truncate_dim: As for `embed`.
            truncate: Cut inputs that are longer than the model reads. False: the error is InputError, which names such
                an input by its index, its tokens and the limit.
            timeout: As for `embed`.
            keep_alive: As for `embed`.

        Raises:
            InputError: An unknown `encoding_format`, and whatever `submit` raises it for.
        """
    def complete(
        self,
        prompt: _Prompt,
        model: str | None = None,
        *,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        no_repeat_ngram_size: int | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        timeout: float | None = None,
        keep_alive: _KeepAlive = None,
        prefix_scope: str | None = None,
    ) -> Completion:
        """The whole answer to `prompt`, with its figures. Parameters mean what they mean to transformers.

        Args:
            prompt: A str is continued, and so are token ids of the model's own vocabulary. Messages, a list of mappings
                with the keys ``role`` and ``content``, are answered through the model's chat template.
            model: Slot; None: ``text_generator``.
            do_sample: Draw tokens; False: the likeliest at every step. None: draw, unless the temperature is 0.
            temperature: Logits are divided by it; 0: the likeliest token. None: `Config.temperature`.
            top_k: Draw among the k likeliest tokens; 0 or -1: all. Default 50.
            top_p: Draw among the likeliest tokens that together have this probability; 0: the likeliest token. Default
                1.
            min_p: Leave out tokens less likely than this share of the likeliest one. Default 0.
            repetition_penalty: Above 1: tokens of prompt and answer become less likely. Default 1.
            no_repeat_ngram_size: Never write a sequence of so many tokens twice; 0: off.
            max_length: Tokens of prompt and answer together.
            max_new_tokens: Tokens of the answer; beats `max_length`. Without both `Config.max_tokens`. The model's
                context is a limit of its own.
            min_new_tokens: Tokens before which the end of the text is not chosen.
            seed: Equal seeds (0 to 2**64 - 1) give equal answers; None: a new one, which the result tells.
            stop: Texts at whose first appearance the answer ends, without them; at most 64 of 1,024 characters. Empty
                ones are ignored.
            timeout: Seconds for everything: loading, waiting in the queue, reading the prompt and writing; None:
                `load_timeout` for the load, no limit for the rest.
            keep_alive: Replaces the slot's for this use.
            prefix_scope: Any text. What is computed of a prompt's beginning is reused only among requests of the same
                scope, so that others learn nothing of it from `reused_tokens` or from their speed; None is a scope of
                its own.

        Raises:
            TypeError: A prompt or a parameter of the wrong type, or an unknown parameter.
            InputError: A value out of range, an empty prompt, one as long as the context or as `max_length`, messages
                for a model without a template.
            NoGeneratorError: The slot holds something else.
            UnknownModelError, WaitTimeoutError, OverloadedError, NotFiniteError, ClosedError: See `errors.py`.
            ModelManagerError: Whatever loading the model raised.
        """
    def apply_chat_template(
        self,
        messages: list[Mapping[str, Any]],
        model: str | None = None,
        *,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        timeout: float | None = None,
        **variables: Any,
    ) -> str:
        """The prompt that the model's chat template makes of `messages`, the same text that transformers makes.

        Args:
            messages: Mappings, commonly with ``role`` and ``content``; the template decides what else they may hold.
            model: Slot; None: ``text_generator``.
            add_generation_prompt: End where the assistant's answer begins.
            chat_template: Use this template instead of the model's own.
            timeout: Seconds that loading may take; None: `load_timeout`.
            variables: What else the template may name: ``tools``, ``documents``, ``enable_thinking``.

        Raises:
            TypeError: Messages that are no list of mappings, or hold a value that templates do not know.
            InputError: The template refuses the messages, or the model has none.
            UnsupportedModelError: The template does not parse, uses what is not supported, or reaches a limit.
            NoGeneratorError: The slot holds something else.
        """
    def stream(
        self,
        prompt: _Prompt,
        model: str | None = None,
        *,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        no_repeat_ngram_size: int | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        timeout: float | None = None,
        keep_alive: _KeepAlive = None,
        prefix_scope: str | None = None,
    ) -> TextStream:
        """`complete` piece by piece: loads the model, starts, and returns an iterator of the answer's pieces.

        What fails later raises from the iterator.
        """
    def submit_generation(
        self,
        prompt: _Prompt,
        on_event: Callable[[str | None, Completion | None, BaseException | None], object],
        model: str | None = None,
        *,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        no_repeat_ngram_size: int | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        timeout: float | None = None,
        keep_alive: _KeepAlive = None,
        prefix_scope: str | None = None,
    ) -> GenerationTicket:
        """`stream` without waiting: returns at once, also when the model must be loaded first.

        `on_event(piece, completion, error)` is called with each piece and then once with the completion or the error;
        the other two are None. It is called from another thread, or from this one, before this method returns, when
        the prompt of a loaded model is refused. Keep it short: the next token waits for it. Wrong parameters raise
        here. When it takes longer than `timeout`, the error is `WaitTimeoutError`.
        """
    def describe_generator(self, name: str = "text_generator") -> GeneratorDescription:
        """What the model of a slot with a generator is; loads it. Raises `NoGeneratorError` for any other slot."""
    def route(self, text: str) -> str:
        """The slot that `embed` chooses for `text`, by the language of its first 800 characters, lower-cased."""
    def load(self, name: str, timeout: float | None = None) -> None:
        """Load the slot and wait for it; concurrent callers share one load.

        Raises:
            UnknownModelError: No such slot.
            WaitTimeoutError: Not ready in time; the load goes on.
            ModelManagerError: Whatever failed; the next call tries again.
        """
    def unload(self, name: str) -> bool:
        """Unload; True if it was loaded. Calls that compute with it finish first, the memory returns after them."""
    def unload_all(self) -> int:
        """Unload every slot; how many were loaded."""
    def is_loaded(self, name: str) -> bool:
        """Whether the slot is in memory now. Never loads."""
    def get(self, name: str, timeout: float | None = None) -> Any:
        """The slot's object, loaded first: what its loader returned, a `SentenceModel` for an embedding slot, or a
        `TextGenerator`.
        """
    def peek(self, name: str) -> Any | None:
        """Like `get`, but None when the slot is not in memory; not a use: idle deadlines stay."""
    def slots(self) -> list[str]:
        """Names of all slots, in the order they were made."""
    def describe(self, name: str, load: bool = True) -> Description | None:
        """What the model of an embedding slot is; loads it first, or with `load` False returns None when it is not
        loaded.

        Raises `InputError` for a slot with a loader.
        """
    @overload
    def count_tokens(self, texts: str, model: str | None = None) -> int: ...  # type: ignore[overload-overlap]
    @overload
    def count_tokens(self, texts: Iterable[str], model: str | None = None) -> list[int]:
        """Tokens of each text, special tokens included, not cut to the model's maximum. A generator counts with its own
        tokenizer. Loads the model.
        """
    def warmup(self, names: Iterable[str], timeout: float | None = None) -> None:
        """Load several slots at the same time and wait for all. The first failure is raised after all have ended."""
    def cache_info(self) -> CacheStatistics:
        """State of the embedding cache."""
    def cache_clear(self) -> None:
        """Empty the cache and set its counts to zero."""
    def stats(self) -> Statistics:
        """Everything countable, JSON-serialisable. Loads nothing."""
    def set_auto_cleanup(self, enabled: bool, cleanup_interval: float = 300.0, max_idle_time: float = 600.0) -> None:
        """Switch the unloading of idle models on or off, at once. Seconds, both > 0, else `ConfigError`."""
    def cleanup_idle(self) -> int:
        """Unload now what has been idle for `max_idle_time`; how many slots."""
    def close(self) -> None:
        """Unload everything and stop the threads. Further use raises `ClosedError`; closing again does nothing."""
    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

def is_turkish(text: str) -> bool:
    """The chatbot's detector on the text as given: share of Turkish letters and of common Turkish words above 0.1."""

def resident_bytes() -> int:
    """Resident memory of this process, bytes; 0 where the system does not tell."""

def trim_memory() -> int:
    """Ask the allocator to give unused memory back to the operating system; the bytes by which resident memory fell."""

def isa() -> str:
    """Instruction set that the kernels use: the best of `available_isas`, or what `MODEL_MANAGER_ISA` names."""

def available_isas() -> list[str]:
    """Instruction sets that this CPU has kernels for, lowest first."""

def _json_values(text: bytes) -> int:
    """Values and keys in a JSON text, no fewer than a parser would make. Other threads run meanwhile."""

def _config_from(config_class: type[Config], settings: dict[str, Any]) -> Config:
    """How a pickled `Config` comes back: by its keywords."""

def _error_classes() -> dict[str, type[Exception]]:
    """Each error kind of the core and the exception of `model_manager.errors` that it becomes."""

def _at_exit() -> None:
    """Called when the interpreter is about to end: daemon threads that compute do not come back into it."""

def _before_fork() -> None:
    """Called before `os.fork`: take the locks that a child must not inherit taken."""

def _after_fork_parent() -> None:
    """Called after `os.fork` in the parent: release them."""

def _after_fork_child() -> None:
    """Called after `os.fork` in the child: release them and forget the threads, which did not survive."""
