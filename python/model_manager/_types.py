"""Types of arguments, and of the dictionaries that the package returns, which are JSON-serializable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypedDict


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
    cache_url: str | None
    cache_url_ttl: float | str
    cache_timeout: float
    cache_secret: str | None
    prefer_turkish: bool
    language_detection: bool
    turkish_model: str
    english_model: str
    generator_model: str
    reranker_model: str
    use_huggingface: bool
    max_tokens: int
    temperature: float
    dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"]
    generator_dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: int
    max_queue: int
    max_text_bytes: int
    max_parallel: int
    max_generation_queue: int
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


class TierStatistics(TypedDict):
    """One tier below the memory, since the manager was created."""

    hits: int
    misses: int
    skipped: int
    """Results not asked for: computing them is faster, or the tier does not work."""
    writes: int
    dropped: int
    """Results not stored because too many were waiting."""
    errors: int
    entries: int | None
    """Results held now; None: the tier does not know, or was not used yet."""
    bytes: int | None
    working: bool
    """Whether it takes part now: a server that failed rests, and a folder that could not be written to is only read."""


class ModelCacheStatistics(TypedDict):
    """How often the results of one model were cached."""

    hits: int
    """Results that some tier had."""
    misses: int
    """Results computed."""
    off: bool
    """Its results are not cached."""
    entries: int | None
    """Results in its own cache in memory; None: it shares that of all models."""
    max_entries: int | None


class CacheStatistics(TypedDict):
    """State of the embedding cache since the manager was created or the cache was cleared."""

    policy: str
    """``lru``, ``lfu``, ``arc`` or ``ttl``."""
    hits: int
    misses: int
    insertions: int
    evictions: int
    """Vectors removed because the cache was full."""
    expirations: int
    """Vectors removed because they expired."""
    rejections: int
    """Vectors that are larger than the cache."""
    entries: int
    """Vectors held now."""
    bytes: int
    """Bytes held now: vectors, texts and overhead."""
    max_entries: int
    max_bytes: int
    tiers: dict[str, TierStatistics]
    """The tiers below the memory, by name: ``disk``, ``redis``."""
    models: dict[str, ModelCacheStatistics]
    """Slots that were asked for results, or have a policy of their own."""


class TrackerStatistics(TypedDict):
    """The result of `LazyLoadTracker.get_statistics`. Every key maps a slot's name to a figure."""

    load_times: dict[str, float]
    """Seconds of the latest load."""
    load_counts: dict[str, int]
    last_access: dict[str, float]
    """Seconds since the latest use."""
    memory_usage: dict[str, float]
    """MB of the latest load."""
    load_time_p50: dict[str, float]
    """Median of all loads, seconds."""
    load_time_p95: dict[str, float]
    unload_counts: dict[str, int]
    bytes_returned: dict[str, int]
    """Bytes returned to the operating system, summed over all unloads."""


class Description(TypedDict):
    """The result of `Manager.describe`: the model of one slot."""

    name: str
    """The slot."""
    source: str
    """The model as configured: hub id, path, `pkg:…`, `ollama://…`."""
    path: str
    """Folder of the files in use; a server's address."""
    architecture: str
    """`model_type` of its config.json; ``ollama`` or ``openai`` for a server's model."""
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
    """``mean``, ``cls``, ``last``, ``max``, …; None: only its server knows."""
    normalizes: bool
    """Whether the model itself ends in a normalization."""
    similarity: str
    """``cosine``, ``dot``, ``euclidean`` or ``manhattan``."""
    prompts: dict[str, str]
    default_prompt_name: str | None
    dtype: str
    """``float32``, ``bfloat16``, ``int8`` or ``int4``; for a server's model the type of its vectors."""
    bytes: int
    """Memory of the weights."""


class GeneratorDescription(TypedDict):
    """The result of `Manager.describe_generator`: the model of one slot."""

    name: str
    """The slot."""
    source: str
    """The model as configured: hub id, path, `pkg:…`."""
    path: str
    """Folder or file in use."""
    architecture: str
    """``model_type`` of the model's configuration."""
    dtype: str
    """The format of the weights in matrix products: ``float32``, ``bfloat16``, ``int8``, ``int4``."""
    context: int
    """Tokens of prompt and answer together: the minimum of the model's limit, `max_context`, and what fits into
    `kv_memory`.
    """
    eos_token_id: int | None
    """The token that ends a text; None when the model has none."""
    eos_token: str | None
    """The text of that token."""
    chat_template: bool
    """Whether it has a chat template, and so answers messages."""
    bytes: int
    """Memory of the weights."""
    kv_bytes_per_token: int
    """Memory of the keys and values of each token of a running request."""
    kv_limit: int
    """Memory that all keys and values may take: `kv_memory`, or what the weights leave of `memory_budget`."""
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


class GenerationStatistics(TypedDict):
    """Figures of a generator since it was loaded."""

    requests: int
    completed: int
    cancelled: int
    failed: int
    prompt_tokens: int
    reused_tokens: int
    """Tokens of prompts whose computation was reused."""
    paused: int
    """Times that a request was stopped because memory for keys and values ran out, and went on later."""
    generated_tokens: int
    busy_seconds: float
    """Time spent computing."""
    active: int
    """Answers being written now."""
    waiting: int
    """Requests in the queue now."""
    kv_bytes: int
    """Memory of the keys and values of running requests."""
    prefix_bytes: int
    """Memory of the keys and values kept for prompts with a common prefix."""
    kv_limit: int
    """Memory that both may take together."""


class RemoteStatistics(TypedDict):
    """Requests of this process to a server's model; unloading does not reset the figures."""

    requests: int
    """HTTP requests sent, including retries."""
    retries: int
    """Requests sent again after a transient failure."""
    errors: int
    """Failures reported to callers."""
    circuit: str
    """``closed``: the server answers; ``open``: it failed repeatedly, calls fail at once; ``half_open``: the next
    request tests it.
    """
    retry_seconds: float | None
    """Seconds until the next request is sent; None unless the circuit is open."""


class SlotStatistics(TypedDict):
    """State of one slot."""

    state: str
    """``absent``, ``loading`` or ``ready``."""
    source: str | None
    """None for a slot with a registered loader."""
    kind: str
    """``embedding``, ``sparse``, ``reranker``, ``classifier``, ``generator`` or ``object``."""
    pinned: bool
    keep_alive: float | None
    """Seconds that it stays after its latest use; None: indefinitely."""
    bytes: int
    """Memory held now."""
    leases: int
    """Calls that use it now."""
    idle_seconds: float | None
    """Seconds since its latest use; None before the first use."""
    unload_in_seconds: float | None
    """Seconds until it is unloaded if it is not used again: as its latest uses asked, or `keep_alive`. None: never, or
    it is not in memory.
    """
    queued: int
    """Texts waiting for it."""
    truncated: int
    """Texts that were cut because it reads no more tokens, since the slot was registered."""
    last_error: str | None
    """Why its latest load failed; None if it did not."""
    generation: GenerationStatistics | None
    """Figures of its generator; None for other slots and while it is not in memory."""
    remote: RemoteStatistics | None
    """Figures of its server; None for a model in this process, and before the first request."""


class QueueStatistics(TypedDict):
    """Figures of the batching queues, summed over all models."""

    queued: int
    """Texts waiting now."""
    max_queue: int
    """Limit per model."""
    requests: int
    texts: int
    """Texts computed."""
    tokens: int
    batches: int
    failed_batches: int
    shared: int
    """Texts answered by the running computation of an equal text."""
    cancelled: int
    """Texts dropped because their caller cancelled."""
    rejected: int
    """Requests refused because the queue was full."""


class MemoryStatistics(TypedDict):
    """Memory of the process and of its models, in bytes."""

    resident: int
    models: int
    """Weights of all models."""
    kv: int
    """Keys and values of all generators, including those kept for prompts with a common prefix."""
    budget: int | None
    """None: no limit."""


class Spent(TypedDict):
    """What loads and memory were spent on a slot."""

    cold_starts: int
    """Uses that waited for a load."""
    resident_seconds: float
    """Seconds in memory."""


class AdaptiveStatistics(TypedDict):
    """What `keep_alive="auto"` has done for one slot in this process."""

    adaptive: Spent
    fixed: Spent
    """What leaving `max_idle_time` after each use would have spent on the same uses."""
    prewarms: int
    """Loads ahead of a use."""
    prewarms_used: int
    """Those that were used before the model left again."""
    keep_alive: float
    """Seconds that it stays after a use now."""
    known_gaps: float
    """Weight of the idle periods that are known; recent ones count 1."""


class Explanation(TypedDict, total=False):
    """The result of `BaseManager.explain`. Without ``adaptive`` it has the first three keys only."""

    slot: str
    adaptive: bool
    """Whether its use decides its stay."""
    sentence: str
    figures: AdaptiveStatistics
    cold_start_price: float
    """Seconds in memory that one load is worth."""
    window: tuple[float, float] | None
    """When it is in memory after a use: from and to, in seconds. None: too little is known."""
    memory_pressure: bool
    """Whether memory is short, so that stays are shorter."""
    successors: dict[str, float]
    """Slots that are used soon after it, and how often."""


class Forecast(TypedDict):
    """A load ahead of a use that is planned."""

    slot: str
    seconds: float
    """From now until the load."""
    until_seconds: float
    """From now until it leaves again, if it is not used."""
    reason: str
    """``hint``, ``successor``, ``interval`` or ``daily``."""
    probability: float


class Statistics(TypedDict):
    """What `Manager.stats` returns."""

    adaptive: dict[str, AdaptiveStatistics]
    """Slots with `keep_alive="auto"`."""

    slots: dict[str, SlotStatistics]
    tracker: TrackerStatistics
    cache: CacheStatistics
    queue: QueueStatistics
    memory: MemoryStatistics
    threads: int
    """Threads that compute."""
    isa: str
    """Instruction set in use, see `isa()`."""
    device: str
    last_cleanup_seconds: float
