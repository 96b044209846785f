"""Types of the figures that a manager reports, which are JSON-serializable."""

from __future__ import annotations

from typing import TypedDict


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
    read_ahead: int
    """Results that `warm_restart` has read into memory."""
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


class CacheTotals(TypedDict):
    """Counts of the embedding cache since the manager was created. Clearing the cache does not reset them."""

    hits: int
    misses: int
    insertions: int
    evictions: int
    expirations: int
    rejections: int


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
    pinned: int
    """Entries that `preload(..., pin=True)` keeps until the cache is cleared."""
    rejections: int
    """Vectors that are larger than the cache."""
    entries: int
    """Vectors held now."""
    bytes: int
    """Bytes held now: vectors, texts and overhead."""
    max_entries: int
    max_bytes: int
    totals: CacheTotals
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
    """MiB of the latest load."""
    load_time_p50: dict[str, float]
    """Median of all loads, seconds."""
    load_time_p95: dict[str, float]
    unload_counts: dict[str, int]
    bytes_returned: dict[str, int]
    """Bytes returned to the operating system, summed over all unloads."""


class GenerationStatistics(TypedDict):
    """What a slot's generators have done since the slot was registered, and what the loaded one does now."""

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
    drafted_tokens: int
    """Tokens that were guessed from the text so far, and computed with the one before them."""
    accepted_tokens: int
    """Of those, tokens that were right and written."""
    busy_seconds: float
    """Time spent computing."""
    active: int
    """Answers being written now. This and the following are 0 while no generator is loaded."""
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
    adapter: str | None
    """The adapter that it was registered with."""
    kind: str
    """``embedding``, ``sparse``, ``reranker``, ``classifier``, ``generator`` or ``object``."""
    kind_known: bool
    """False while `kind` is a guess: the slot was registered without one, and the files of its model will say it at the
    first load.
    """
    pinned: bool
    keep_alive: float | None
    """Seconds that it stays after its latest use; None: indefinitely."""
    bytes: int
    """Memory held now."""
    device_bytes: int
    """Of it, bytes on a card."""
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
    """Figures of its generators; None for other slots, and before the first is loaded."""
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


class CardStatistics(TypedDict):
    """The memory of the card in use, in bytes."""

    name: str
    """``cuda:0``, ``mps:0``."""
    models: int
    """Weights of the models on it."""
    budget: int | None
    """None: no limit."""
    free: int | None
    """Free bytes; None where the driver does not report it."""
    total: int | None


class MemoryStatistics(TypedDict):
    """Memory of the process and of its models, in bytes."""

    resident: int
    models: int
    """Weights of all models."""
    kv: int
    """Keys and values of all generators, including those kept for prompts with a common prefix."""
    budget: int | None
    """None: no limit."""
    device: CardStatistics | None
    """None: models compute on the CPU."""


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
    """The result of `BaseManager.explain`. Without ``adaptive`` it has the first four keys only."""

    slot: str
    profile: str
    """The manager's profile: ``compatible`` or ``multilingual``."""
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
