"""The shapes of what this package takes and of the dictionaries that it returns, which are JSON-serialisable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias, TypedDict

Inputs: TypeAlias = str | Iterable[str] | Iterable[int] | Iterable[Iterable[int]]
"""What can be embedded: a text, texts, the token ids of one input, or those of several."""


class FieldInfo(TypedDict):
    """One setting, as `Config.fields()` lists it."""

    name: str
    """Keyword of `Config` and attribute of its instances."""
    environment: str
    """Environment variable read when the keyword is not given."""
    default: Any
    """Value without keyword and environment; None where absence means something."""
    type: str
    """Python type as one would annotate it, such as ``int`` or ``str | None``."""
    doc: str
    """One line: meaning, unit, allowed values."""


class CacheStatistics(TypedDict):
    """State of the embedding cache since the manager was made or the cache cleared."""

    policy: str
    """``lru``, ``lfu`` or ``ttl``."""
    hits: int
    misses: int
    insertions: int
    evictions: int
    """Vectors that left to make room."""
    expirations: int
    """Vectors that left because their time was over."""
    rejections: int
    """Vectors too large to be kept."""
    entries: int
    """Vectors held now."""
    bytes: int
    """Bytes held now: vectors, texts and bookkeeping."""
    max_entries: int
    max_bytes: int


class TrackerStatistics(TypedDict):
    """What `LazyLoadTracker.get_statistics` returns. Every key maps a slot's name to a figure."""

    load_times: dict[str, float]
    """Seconds that the latest load took."""
    load_counts: dict[str, int]
    last_access: dict[str, float]
    """Seconds since the latest use."""
    memory_usage: dict[str, float]
    """MB that the latest load took."""
    load_time_p50: dict[str, float]
    """Median of all loads, seconds."""
    load_time_p95: dict[str, float]
    unload_counts: dict[str, int]
    bytes_returned: dict[str, int]
    """Bytes that the operating system got back, summed over all unloads."""


class Description(TypedDict):
    """What `Manager.describe` tells about the model of one slot."""

    name: str
    """The slot."""
    source: str
    """The model as configured: hub id, path, `pkg:…`, `ollama://…`."""
    path: str
    """Folder of the files in use; a server's address."""
    architecture: str
    """`model_type` of its config.json; ``ollama`` or ``openai`` for a server's model."""
    dimension: int
    """Length of its vectors."""
    max_length: int | None
    """Tokens per text, special tokens included; longer texts are cut. None: only its server knows."""
    pooling: str | None
    """``mean``, ``cls``, ``last``, ``max``, …; None: only its server knows."""
    normalizes: bool
    """Whether the model itself ends in a normalisation."""
    similarity: str
    """``cosine``, ``dot``, ``euclidean`` or ``manhattan``."""
    prompts: dict[str, str]
    default_prompt_name: str | None
    dtype: str
    """``float32``, ``bfloat16``, ``int8`` or ``int4``; of a server's model, in which its vectors come."""
    bytes: int
    """Memory of the weights."""


class GeneratorDescription(TypedDict):
    """What `Manager.describe_generator` tells about the model of one slot."""

    name: str
    """The slot."""
    source: str
    """The model as configured: hub id, path, `pkg:…`."""
    path: str
    """Folder or file in use."""
    context: int
    """Tokens of prompt and answer together: the least of the model's own limit, `max_context`, and what `kv_memory`
    holds.
    """
    eos_token_id: int | None
    """The token that ends a text; None when the model has none."""
    eos_token: str | None
    """Its spelling."""
    chat_template: bool
    """Whether it answers messages."""
    bytes: int
    """Memory of the weights."""
    kv_bytes_per_token: int
    """Memory of the keys and values of each token of a prompt and its answer, while it is under way."""
    kv_limit: int
    """Memory that all keys and values may take: `kv_memory`, or what the weights leave of `memory_budget`."""
    max_parallel: int
    """Answers decoded together."""


class Completion(TypedDict):
    """A finished answer and its figures, as `Manager.complete` returns it."""

    text: str
    """The answer without the prompt, without special tokens and without the stop string that ended it."""
    tokens: list[int]
    """Its tokens."""
    finish_reason: str
    """``stop`` (end of text or a stop string), ``length`` or ``cancelled``."""
    prompt_tokens: int
    reused_tokens: int
    """Tokens of the prompt whose computation was known from an earlier request."""
    completion_tokens: int
    """Length of `tokens`."""
    seed: int | None
    """Repeats this answer when given again; None for greedy answers."""
    queued_seconds: float
    """Wait for a place among the requests under way."""
    prefill_seconds: float
    """Reading the prompt."""
    decode_seconds: float
    """Writing the answer."""
    tokens_per_second: float
    """While writing."""


class GenerationStatistics(TypedDict):
    """What a generator has done since it was loaded."""

    requests: int
    completed: int
    cancelled: int
    failed: int
    prompt_tokens: int
    reused_tokens: int
    """Tokens of prompts that did not have to be computed again."""
    generated_tokens: int
    busy_seconds: float
    """Time spent computing."""
    active: int
    """Answers under way now."""
    waiting: int
    """Requests that wait for a place now."""
    kv_bytes: int
    """Memory of the keys and values of answers under way."""
    prefix_bytes: int
    """Memory of those kept for prompts that begin alike."""
    kv_limit: int
    """Memory that both may take together."""


class RemoteStatistics(TypedDict):
    """What has been asked of a server's model by this process so far; unloading does not reset it."""

    requests: int
    """HTTP requests sent, those sent again included."""
    retries: int
    """Requests sent again after a failure that may pass."""
    errors: int
    """Failures that were told to callers."""
    circuit: str
    """``closed``: all is well; ``open``: the server kept failing, calls fail at once; ``half_open``: the next request
    finds out how it is.
    """
    retry_seconds: float | None
    """Seconds until the server is tried again; None unless the circuit is open."""


class SlotStatistics(TypedDict):
    """State of one slot."""

    state: str
    """``absent``, ``loading`` or ``ready``."""
    source: str | None
    """None for a slot with a loader of the user's."""
    kind: str
    """``embedding``, ``generator`` or ``object``."""
    pinned: bool
    keep_alive: float | None
    """Seconds that it stays after its latest use; None: for ever."""
    bytes: int
    """Memory held now."""
    leases: int
    """Calls computing with it now."""
    idle_seconds: float | None
    """Seconds since its latest use; None when it never was."""
    queued: int
    """Texts waiting for it."""
    last_error: str | None
    """Why its latest load failed; None when it did not."""
    generation: GenerationStatistics | None
    """What its generator has done; None when it is none or is not in memory."""
    remote: RemoteStatistics | None
    """How its server has been doing; None when the model is in this process, or none has been asked for yet."""


class QueueStatistics(TypedDict):
    """What the batching queues have done so far, summed over all models."""

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
    """Texts answered by the computation of an equal text that was under way."""
    cancelled: int
    """Texts dropped because their caller left."""
    rejected: int
    """Requests refused because the queue was full."""


class MemoryStatistics(TypedDict):
    """Memory of the process and of its models, bytes."""

    resident: int
    models: int
    """Weights of all models."""
    kv: int
    """Keys and values of all generators, those kept for prompts that begin alike included."""
    budget: int | None
    """None: no budget."""


class Statistics(TypedDict):
    """What `Manager.stats` returns."""

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
