"""Types of arguments, and of the dictionaries that the package returns, which are JSON-serializable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

from ._statistics import (
    AdaptiveStatistics as AdaptiveStatistics,
    CacheStatistics as CacheStatistics,
    Explanation as Explanation,
    Forecast as Forecast,
    GenerationStatistics as GenerationStatistics,
    MemoryStatistics as MemoryStatistics,
    ModelCacheStatistics as ModelCacheStatistics,
    QueueStatistics as QueueStatistics,
    RemoteStatistics as RemoteStatistics,
    SlotStatistics as SlotStatistics,
    Spent as Spent,
    Statistics as Statistics,
    TierStatistics as TierStatistics,
    TrackerStatistics as TrackerStatistics,
)


class ArrowArray(Protocol):
    """An object that exports one Arrow array, such as `pyarrow.Array`."""

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]:
        """The schema and the array, in capsules."""
        ...


class ArrowStream(Protocol):
    """An object that exports Arrow arrays one after another, such as `polars.Series` and `pyarrow.ChunkedArray`."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The stream, in a capsule."""
        ...


ArrowColumn: TypeAlias = ArrowArray | ArrowStream

Inputs: TypeAlias = str | Iterable[str] | Iterable[int] | Iterable[Iterable[int]] | ArrowColumn
"""What can be embedded: a text, several texts, the token ids of one input, or those of several inputs. An Arrow column
holds texts and no nulls.
"""


class Settings(TypedDict, total=False):
    """The keywords of `Config`, which `ModelManager` takes too. The attributes of `Config` describe them."""

    lazy_loading: bool
    auto_cleanup: bool
    cleanup_interval: float
    max_idle_time: float
    cache_size: int
    cache_bytes: int
    cache_policy: Literal["lru", "lfu", "arc", "ttl"]
    cache_ttl: float
    cache_disk: bool | str
    cache_disk_bytes: int | str
    cache_disk_dtype: Literal["float32", "float16", "int8"]
    cache_disk_ttl: float | str | None
    warm_restart: int
    cache_url: str | None
    cache_url_ttl: float | str
    cache_timeout: float
    cache_secret: str | None
    profile: Literal["compatible", "multilingual"]
    prefer_turkish: bool
    language_detection: bool
    language_detector: Literal["compatible", "improved"]
    turkish_model: str
    english_model: str
    generator_model: str
    reranker_model: str
    use_huggingface: bool
    max_tokens: int
    temperature: float
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]
    generator_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]
    device: str
    threads: int
    max_queue: int
    max_text_bytes: int
    max_parallel: int
    max_generation_queue: int
    prompt_lookup_tokens: int
    max_context: int | None
    kv_memory: float | str
    memory_budget: float | str | None
    eviction: Literal["lru", "cost"]
    keep_alive: float | str | None
    cold_start_price: float | None
    max_keep_alive: float
    adaptive_state: bool | str
    load_timeout: float | None
    cache_dir: str | None
    offline: bool
    remote_connections: int
    remote_batch: int
    remote_timeout: float
    revision: str | None


class FieldInfo(TypedDict):
    """One setting, as `Config.fields()` lists it."""

    name: str
    """Keyword of `Config` and attribute of its instances."""
    environment: str
    """Environment variable read when the keyword is not given."""
    default: Any
    """The value without keyword and environment; None where a missing value has a meaning."""
    type: str
    """Python annotation, such as ``int`` or ``str | None``."""
    doc: str
    """One line: meaning, unit, allowed values."""


class CachePolicy(TypedDict, total=False):
    """How the results of one model are cached: `cache` of `Manager.register`. The rest is as for all models."""

    size: int
    """Results in memory. With any of the first three, the model has a cache in memory of its own."""
    policy: Literal["lru", "lfu", "arc"]
    ttl: float | str
    """Seconds, or text such as ``"1h"``, after which a result in memory is no longer used."""
    tiers: Sequence[Literal["memory", "disk", "redis"]]
    """The tiers that hold its results."""


class Description(TypedDict):
    """The result of `Manager.describe`: the model of one slot."""

    name: str
    """The slot."""
    profile: str
    """The manager's profile: ``compatible`` or ``multilingual``."""
    source: str
    """The model as configured: hub id, path, `pkg:…`, `ollama://…`."""
    adapter: str | None
    """The adapter that changes its weights, as configured."""
    adapter_content: str | None
    """A hash of the adapter's files, equal for equal ones on every machine. For one of the model's own: of its name."""
    path: str
    """Folder of the files in use; a server's address."""
    architecture: str
    """`model_type` of its config.json; ``ollama`` or ``openai`` for a server's model."""
    engine: str
    """What computes it: ``model_manager`` or ``server``."""
    dimension: int
    """Length of its vectors; 0 for a model that gives none."""
    sparse_dimension: int
    """Entries of the vocabulary of its sparse vectors; 0 for a model that gives none."""
    tasks: list[str]
    """The methods that it answers: ``embed``, ``embed_multi``, ``embed_sparse``, ``rerank``, ``classify``."""
    labels: list[str]
    """Names of the labels that it scores; empty for a model that scores nothing."""
    max_length: int | None
    """Tokens per text, special tokens included; longer texts are cut. None: only its server knows."""
    pooling: str | None
    """``mean``, ``cls``, ``lasttoken``, ``max``, …; None: only its server knows."""
    chat_template: bool | None
    """Whether texts, or the pairs of a reranker, go through the model's chat template; None: only its server knows."""
    normalizes: bool
    """Whether the model itself ends in a normalization."""
    similarity: str
    """``cosine``, ``dot``, ``euclidean`` or ``manhattan``."""
    prompts: dict[str, str]
    default_prompt_name: str | None
    dtype: str
    """``float32``, ``bfloat16``, ``float16``, ``int8`` or ``int4``; for a server's model the type of its vectors."""
    file_type: str | None
    """The type of most weights of a GGUF file, such as ``Q4_K_M``; None for other models."""
    bytes: int
    """Memory of the weights."""
    device: str
    """Where it computes: ``cpu``, or a card."""
    device_bytes: int
    """Of the memory of its weights, bytes on that card."""


class GeneratorDescription(TypedDict):
    """The result of `Manager.describe_generator`: the model of one slot."""

    name: str
    """The slot."""
    source: str
    """The model as configured: hub id, path, `pkg:…`."""
    adapter: str | None
    """The adapter that changes its weights, as configured."""
    path: str
    """Folder or file in use."""
    architecture: str
    """``model_type`` of the model's configuration."""
    engine: str
    """What computes it: ``model_manager``."""
    dtype: str
    """The format of the weights in matrix products: ``float32``, ``bfloat16``, ``float16``, ``int8``, ``int4``.
    Quantized weights of a GGUF file stay in their own format.
    """
    file_type: str | None
    """The type of most weights of a GGUF file, such as ``Q4_K_M``; None for other files."""
    context: int
    """Tokens of prompt and answer together: the minimum of the model's limit, `max_context`, and what fits into
    `kv_memory`.
    """
    eos_token_id: int | None
    """The token that ends a text; None when the model has none."""
    eos_token: str | None
    """The text of that token."""
    eos_token_ids: list[int]
    """All tokens that end a text; a model may have several."""
    chat_template: bool
    """Whether it has a chat template, and so answers messages."""
    chat_template_variables: list[str]
    """The variables that the template reads and `chat_template_kwargs` may set, such as ``enable_thinking``."""
    thinks: bool
    """Whether the template is one of a model that writes its thoughts in front of an answer: it reads
    ``enable_thinking``, or has the markers ``<think>`` and ``</think>`` in its text.
    """
    bytes: int
    """Memory of the weights."""
    device_bytes: int
    """Of it, bytes on a card."""
    kv_bytes_per_token: int
    """Memory of the keys and values of each token of a running request."""
    kv_limit: int
    """Memory that all keys and values may take, those of earlier conversations included: `kv_memory`, or what the
    weights leave of `memory_budget`.
    """
    max_parallel: int
    """Answers decoded together."""


class GenerationParams(TypedDict, total=False):
    """The parameters of a generation. They mean what they mean in transformers; all may be None."""

    do_sample: bool | None
    """Draw tokens; False: the likeliest token at every step. None: draw, unless the temperature is 0."""
    temperature: float | None
    """Logits are divided by it; 0: the likeliest token. None: `Config.temperature`."""
    top_k: int | None
    """Draw among the k likeliest tokens; 0 or -1: all. Default 50."""
    top_p: float | None
    """Draw among the likeliest tokens that together have this probability; 0: the likeliest token. Default 1."""
    min_p: float | None
    """Exclude tokens less likely than this share of the likeliest one. Default 0."""
    repetition_penalty: float | None
    """Above 1, tokens of prompt and answer become less likely. Default 1."""
    no_repeat_ngram_size: int | None
    """Never write a sequence of this many tokens twice; 0: off."""
    max_length: int | None
    """Tokens of prompt and answer together."""
    max_new_tokens: int | None
    """Tokens of the answer; overrides `max_length`. Without both: `Config.max_tokens`. The model's context is a limit
    too.
    """
    min_new_tokens: int | None
    """Tokens before which the end of the text is not chosen."""
    seed: int | None
    """Equal seeds (0 to 2**64 - 1) give equal answers. None: a new seed, which the result contains."""
    stop: str | Sequence[str] | None
    """Texts at whose first appearance the answer ends, without them; at most 64 of 1,024 characters. Empty ones are
    ignored.
    """
    timeout: float | None
    """Seconds for everything: loading, waiting in the queue, reading the prompt and writing. None: `load_timeout` for
    the load, no limit for the rest.
    """
    keep_alive: float | str | None
    """Overrides the slot's value for this use."""
    user: str | None
    """On whose behalf. With `keep_alive="auto"`, models that this user usually needs next are loaded first; only a hash
    is kept.
    """
    prefix_scope: str | None
    """Any text. Computed prompt prefixes are reused only among requests of the same scope, so that `reused_tokens` and
    response times reveal nothing to others. None is a scope of its own.
    """
    chat_template_kwargs: Mapping[str, object] | None
    """Variables of the chat template, such as ``{"enable_thinking": False}``. They go with messages only; one that the
    model's template does not read is an error. `describe_generator` lists those that it reads.
    """
    continue_final_message: bool | None
    """True: the answer continues the last of the messages, and is the text that follows it."""


class Completion(TypedDict):
    """The result of `Manager.complete`: a finished answer and its figures."""

    text: str
    """The answer without the prompt, without special tokens and without the stop string that ended it."""
    tokens: list[int]
    """Its tokens."""
    finish_reason: str
    """``stop`` (end of text or a stop string), ``length`` or ``cancelled``."""
    prompt_tokens: int
    reused_tokens: int
    """Tokens of the prompt whose computation was reused from an earlier request."""
    drafted_tokens: int
    """Tokens that were guessed from the text so far, and computed with the one before them (`prompt_lookup_tokens`)."""
    accepted_tokens: int
    """Of those, tokens that were right and written: so many steps were saved."""
    completion_tokens: int
    """Length of `tokens`."""
    seed: int | None
    """The same seed repeats this answer; None for greedy answers."""
    queued_seconds: float
    """Time in the queue."""
    prefill_seconds: float
    """Reading the prompt."""
    decode_seconds: float
    """Writing the answer."""
    tokens_per_second: float
    """Of the time for writing."""
