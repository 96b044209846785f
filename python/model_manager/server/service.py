"""The state that endpoints share: the manager, the served models, running requests, memory over time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import re
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .. import tracing
from .._async import in_thread
from .._core import Config
from .._embedder import without_key
from ..compat import ModelManager
from ..errors import ClosedError, InputError, ModelManagerError, WaitTimeoutError
from .config import DEFAULT_DIMENSIONS, DEFAULT_SOURCE, ServedModel, ServerConfig, default_models
from .errors import ApiError, unknown_model
from .hosts import Hosts
from .prometheus import Metrics, check_shared_folder
from .uses import other_use

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._types import Description, GeneratorDescription, MemoryStatistics, SlotStatistics
    from .spans import RequestSpans

logger = logging.getLogger("model_manager.server")

SAMPLE_SECONDS = 2.0
RELOAD_SECONDS = 5.0
"""Until the default model is loaded again after a failure; the pause doubles with each further one."""
_LONGEST_PAUSE = 60.0
GRACE = 2.0
"""Seconds after `drain_timeout` in which requests answer that they were ended."""
_HISTORY = 900
"""Samples of half an hour."""
_RATE_SAMPLES = 5
_APART = 2
"""Large request bodies that are processed at the same time; more would take the cores from the models."""
_CACHE: dict[str, Any] = {"cache_policy": "ttl", "cache_ttl": 600.0, "cache_size": 10_000}
"""Defaults of the server's own manager; the environment overrides them."""

_INSTRUCTED = "qwen3-embedding"
"""A part of the source of models that take instructions. It decides without a load, and for models of other servers."""

Kind = Literal["embedding", "generator"]
Result = TypeVar("Result")


def _first_word(name: str) -> str:
    """The short name of a model: `qwen3` for `qwen3-embedding`."""
    return re.split(r"[-_.:\s]", name.rsplit("/", 1)[-1], maxsplit=1)[0]


def _is_instructed(source: str | None, description: Description | None) -> bool | None:
    """Whether a model takes instructions; None if its source does not say so and it is not described yet."""
    if _INSTRUCTED in (source or "").lower():
        return True
    if description is None:
        return None
    return any(prompt.startswith("Instruct:") for prompt in description["prompts"].values())


def own_settings(**settings: Any) -> Config:
    """The settings of a manager for the server alone, with a cache for many clients. Raises `ConfigError`."""
    variables = {field["name"]: field["environment"] for field in Config.fields()}
    cache = {name: value for name, value in _CACHE.items() if not os.environ.get(variables[name])}
    return Config(**cache, **settings)


def own_manager() -> ModelManager:
    """A manager for the server alone."""
    return ModelManager(own_settings())


class Service:
    """The shared state of one server. `create_app` and `router` create it; it runs while the application runs.

    Attributes:
        manager: The manager whose models are served.
        config: The settings.
        started: When the server started, seconds since the epoch.
        runs: Whether it was started.
        warming: Whether `warm_up` is loading the served models.
        draining: Whether new requests are refused.
        leaving: Whether this worker is replaced: it no longer listens, and ends when running requests have finished.
        in_flight: Running requests, without probes.
        ended_requests: Whether `end_requests` ended some.
        unanswered: The tasks of running requests whose answer has not begun, without probes.
        streams: Functions that end the streamed answers with an error.
        waiting: Texts of requests that wait for vectors.
        body_bytes: Memory of the bodies of running requests.
        quiet: Set when the last running request finishes.
        drained: Ends with `drain`; kept here, because the loop keeps no task.
        spans: Makes the spans of requests; None: they are not traced.
        hosts: The check of `Host` headers. None: the application checks them.
        history: (seconds since the epoch, resident MB, MB of models), every 2 seconds for half an hour.
    """

    def __init__(self, config: ServerConfig, manager: ModelManager | None, *, check_hosts: bool = True) -> None:
        """Without `manager` it creates one, and closes it with the application."""
        check_shared_folder()
        self.config = config
        self.owns_manager = manager is None
        self.manager = own_manager() if manager is None else manager
        self.started = time.time()
        self._began = time.monotonic()
        self.draining = self.leaving = False
        self.warming = False
        self.runs = False
        self.in_flight = 0
        self.ended_requests = False
        self.unanswered: set[asyncio.Task[Any]] = set()
        self.streams: set[Callable[[], None]] = set()
        self.waiting = 0
        self.body_bytes = 0
        self.hosts = Hosts(config) if check_hosts else None
        self.spans: RequestSpans | None = None
        self.quiet = asyncio.Event()
        self.drained: asyncio.Future[None] | None = None
        self._apart = asyncio.Semaphore(_APART)
        self.history: deque[tuple[float, float, float]] = deque(maxlen=_HISTORY)
        self._finished: deque[tuple[float, int]] = deque(maxlen=_RATE_SAMPLES)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loads: dict[str, asyncio.Future[Any]] = {}
        self._descriptions: dict[str, tuple[int, Description]] = {}
        self._generators: dict[str, tuple[int, GeneratorDescription]] = {}
        self._by_name = {name: model for model in config.models for name in (model.name, *model.aliases)}
        for model in config.models:
            if model.source is not None:
                self._by_name.setdefault(model.source, model)
        words = [_first_word(model.name) for model in config.models]
        self._by_word = {
            word: model for word, model in zip(words, config.models, strict=True) if words.count(word) == 1
        }
        self._warned: set[str] = set()
        self._register()

    # --- Life ----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def metrics(self) -> Metrics:
        """The metrics. They begin with their first use: a process that serves nothing adds none to those of workers."""
        return Metrics()

    def _register(self) -> None:
        for model in self.config.models:
            if model.key in self.manager.slots():
                self._check_source(model)
                continue
            if model.source is None:
                raise InputError(
                    f"the served model {model.name!r} has no source and the manager has no slot {model.key!r}; "
                    "register the slot or give ServedModel a source"
                )
            self.manager.register(model.key, model.source, kind="embedding")

    def _check_source(self, model: ServedModel) -> None:
        """Refuse a model whose slot holds another one, which would answer in its name."""
        if model.source is None or self.holds(model.key, model.source):
            return
        if model.source == DEFAULT_SOURCE and model in default_models():
            return  # the default source: it is for a manager without such a slot
        there = self.source(model.key)
        held = "an object of its own" if there is None else repr(there)
        # The one of the environment has the name of its slot.
        remedy = (
            "choose another OLLAMA_MODEL_NAME"
            if model.name == model.key == os.environ.get("OLLAMA_MODEL_NAME", "").strip()
            else "give ServedModel another slot, or leave its source out to serve that one"
        )
        raise InputError(
            f"the served model {model.name!r} has the source {without_key(model.source)!r}, and the manager's slot"
            f" {model.key!r} holds {held}; {remedy}"
        )

    async def start(self) -> None:
        """Start, inside the event loop that serves the requests."""
        if self.owns_manager and self.manager.closed:
            self.manager = own_manager()
            self._register()
        self.started = time.time()
        self._began = time.monotonic()
        self.draining = self.leaving = self.ended_requests = False
        self.runs = True
        self._trace()
        # A semaphore is bound to the first loop that waits for it.
        self._apart = asyncio.Semaphore(_APART)
        self.spawn(self._sample_always())
        self.spawn(self._reload_always())
        if self.config.warm_up:
            self.warming = True
            self.spawn(self._warm_up())

    def _trace(self) -> None:
        """Trace requests, and the calls that they make, as the settings say."""
        wanted = self.config.tracing
        if wanted == "off" or (wanted == "auto" and not tracing.is_enabled() and not tracing.has_provider()):
            self.spans = None
            return
        tracing._enable_for(self)
        from .spans import RequestSpans

        self.spans = RequestSpans()

    async def stop(self) -> None:
        """Stop. A manager that the server created is closed."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.owns_manager:
            await in_thread(self.manager.close)
        tracing._disable_for(self)
        self.metrics.leave()

    async def drain(self) -> None:
        """Refuse new requests, and return when the running ones have finished. After `drain_timeout` they are ended;
        what goes on nevertheless, such as an answer that its client does not read, is not waited for.

        A worker that is replaced answers those that arrive on open connections, until it ends the running ones.
        """
        self.draining = not self.leaving
        if not await self._quiet_within(self.config.drain_timeout):
            self.draining = True
            self.end_requests()
            await self._quiet_within(GRACE)

    async def _quiet_within(self, seconds: float) -> bool:
        """Whether no request runs any more, after `seconds` at most."""
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        # A worker that is replaced may have begun another one meanwhile.
        while self.in_flight and (left := end - clock()) > 0:
            self.quiet.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.quiet.wait(), left)
        return not self.in_flight

    def end_requests(self) -> None:
        """End the running requests: one without an answer gets a 503, a stream ends with an error."""
        self.ended_requests = self.in_flight > 0
        for task in tuple(self.unanswered):
            task.cancel()
        for end in tuple(self.streams):
            end()

    async def apart(self, function: Callable[..., Result], *args: Any) -> Result:
        """The result of `function`, called off the event loop. For large requests; only a few run at the same time,
        including those whose callers no longer wait.
        """
        free = self._apart
        await free.acquire()
        work = in_thread(function, *args)
        work.add_done_callback(lambda _: free.release())
        return await asyncio.shield(work)

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine in the background; it is cancelled with the application."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _sample_always(self) -> None:
        while True:
            try:
                self.sample()
            except ModelManagerError as error:
                logger.warning("The metrics are no longer sampled: %s", error)
                return
            await asyncio.sleep(SAMPLE_SECONDS)

    @property
    def uptime(self) -> float:
        """Seconds since `started`, independent of changes to the system clock."""
        return time.monotonic() - self._began

    def sample(self) -> None:
        """Copy the manager's statistics to the metrics and the history."""
        stats = self.manager.stats()
        self.metrics.sample(stats, self.in_flight, self.waiting)
        # The monotonic clock; the system clock may be set back.
        now = time.monotonic()
        if not self._finished or now - self._finished[-1][0] >= SAMPLE_SECONDS / 2:
            self._finished.append((now, stats["queue"]["texts"]))
            self._remember(time.time(), stats["memory"])

    def _remember(self, now: float, memory: MemoryStatistics) -> None:
        """Add to the history, whose times only rise. After the clock was set back, later samples are dropped."""
        while self.history and self.history[-1][0] >= now:
            self.history.pop()
        self.history.append((now, memory["resident"] / 1e6, memory["models"] / 1e6))

    async def _warm_up(self) -> None:
        try:
            for model in self.config.models:
                try:
                    await self.load(model.key)
                except ModelManagerError as error:
                    logger.error("%s cannot be loaded: %s", model.name, error)
        finally:
            self.warming = False

    async def _reload_always(self) -> None:
        """Load the default model again after a failure. A server that is not ready gets no request from a balancer, so
        nothing else would.
        """
        pause = RELOAD_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                state = self.state(self.default.key)
                if self.draining or state is None or state["last_error"] is None or state["state"] != "absent":
                    pause = RELOAD_SECONDS
                    continue
                pause = min(_LONGEST_PAUSE, pause * 2)
                await self.load(self.default.key)
            except ClosedError:
                return
            except ModelManagerError as error:
                logger.warning("%s still cannot be loaded: %s", self.default.name, error)

    # --- Models --------------------------------------------------------------------------------------------------

    @property
    def default(self) -> ServedModel:
        """The model of requests that name none."""
        return self.config.models[0]

    def served(self, name: str | None) -> ServedModel:
        """The embedding model with this public name, alias, source, slot or first word. Raises `ApiError` 404."""
        if not name:
            return self.default
        found = self._listed(name) or self._listed(name.removesuffix(":latest"))
        return found or self._unlisted(name)

    def _listed(self, name: str) -> ServedModel | None:
        """The model of the settings with this name, alias or source."""
        found = self._by_name.get(name)
        by_source = found is not None and name not in (found.name, *found.aliases)
        # The slot may hold another model by now.
        return None if found is not None and by_source and not self.holds(found.key, name) else found

    def _unlisted(self, name: str) -> ServedModel:
        """The model of the slot with this name or source, else the only served model with this first word."""
        plain = name.removesuffix(":latest")
        writers = self.generators()
        for slot, state in self.slots("embedding").items():
            if slot not in writers and (plain == slot or name in (slot, state["source"])):
                # The settings of a slot's model hold under all its names: its vectors are the same under each.
                return next((model for model in self.config.models if model.key == slot), ServedModel(slot))
        by_word = self._by_word.get(plain)
        if by_word is not None:
            return by_word
        other = other_use(name, self.manager.stats()["slots"], "embedding", "embeddings")
        raise other or unknown_model(name, [model.name for model in self.models()])

    def source(self, slot: str) -> str | None:
        """The source of a slot as it was registered, without its key; None for one with a loader of its own, and for a
        name that is no slot. A model of its fallback chain may have answered.
        """
        registered = self.manager._registered.get(slot)
        if registered is not None:
            return None if registered[0] is None else without_key(os.fspath(registered[0]))
        state = self.state(slot)
        return None if state is None else state["source"]

    def state(self, slot: str) -> SlotStatistics | None:
        """What `stats` says of a slot; None for one that the embedding program has removed."""
        return self.manager.stats()["slots"].get(slot)

    def holds(self, slot: str, source: str) -> bool:
        """Whether the slot exists and has this source."""
        return slot in self.manager.slots() and self.source(slot) == without_key(source)

    def slots(self, kind: Kind) -> dict[str, SlotStatistics]:
        """The manager's slots of one kind, with their state."""
        return {name: state for name, state in self.manager.stats()["slots"].items() if state["kind"] == kind}

    def generators(self) -> dict[str, SlotStatistics]:
        """The slots of the settings that write text, with their state; also those whose kind their load will show."""
        slots = self.manager.stats()["slots"]
        named = {name: slots[name] for name in self.config.generators if name in slots}
        return {name: state for name, state in named.items() if state["kind"] == "generator" or not state["kind_known"]}

    def models(self) -> list[ServedModel]:
        """All embedding models: those of the settings, then the manager's other slots."""
        slots = self.manager.stats()["slots"]
        keys = {model.key for model in self.config.models}
        writers = self.generators()
        others = [slot for slot in self.slots("embedding") if slot not in keys and slot not in writers]
        return [*(model for model in self.config.models if model.key in slots), *map(ServedModel, others)]

    def description(self, slot: str) -> Description | None:
        """The description of the slot's model, also after it has left; None before its first load."""
        return self._described(slot, self.manager.describe, self._descriptions)

    def _described(
        self, slot: str, describe: Callable[[str, bool], Result | None], known: dict[str, tuple[int, Result]]
    ) -> Result | None:
        """What `describe` finds of the slot's model in memory, or found of it before, which is in `known`."""
        registration = None
        with contextlib.suppress(ModelManagerError):
            registration = self.manager._registration(slot)
            if (found := describe(slot, False)) is not None:
                known[slot] = registration, found
        of, latest = known.get(slot, (None, None))
        # A slot that was registered again holds another model.
        return latest if of == registration else None

    async def describe_generator(self, slot: str) -> GeneratorDescription:
        """What the slot's generator is; loads it, and counts as a use without a `keep_alive`."""
        registration = self.manager._registration(slot)
        found = await in_thread(self.manager.describe_generator, slot)
        self._generators[slot] = registration, found
        return found

    def generator_description(self, slot: str) -> GeneratorDescription | None:
        """The description of the slot's generator, also after it has left; None before its first load."""
        return self._described(slot, self.manager.describe_generator, self._generators)

    def dimensions(self, model: ServedModel) -> int | None:
        """The length of the model's vectors when a request gives none; None while it is unknown. Loads nothing."""
        if model.dimensions is not None:
            return model.dimensions
        if (description := self.description(model.key)) is not None:
            return description["dimension"]
        # Clients of the default model expect a number before its first load. The slot may hold another model.
        state = self.state(model.key)
        return DEFAULT_DIMENSIONS if state is not None and state["source"] == DEFAULT_SOURCE else None

    async def takes_instructions(self, model: ServedModel) -> bool:
        """Whether texts for `model` get an instruction. With ``auto`` the first use may load the model to find out."""
        known = self.instructions_known(model)
        if known is None:
            await self.load(model.key)
            known = self.instructions_known(model)
        if known is None:
            # The model has left already (keep_alive 0), or it is no embedding model.
            registration = self.manager._registration(model.key)
            try:
                found = await in_thread(self.manager.describe, model.key)
            except InputError:
                return False  # the core reports what it is for the first text
            self._descriptions[model.key] = registration, found
            known = _is_instructed(found["source"], found)
        return bool(known)

    def instructions_known(self, model: ServedModel) -> bool | None:
        """`takes_instructions` without a load; None while it is unknown."""
        if model.instructions != "auto":
            return model.instructions == "on"
        registered = model.key in self.manager._registered
        # First what costs least, because every request asks.
        if registered and _INSTRUCTED in (self.source(model.key) or "").lower():
            return True
        description = self.description(model.key)
        # `source` asks for all statistics of a slot that was not registered.
        source = description["source"] if description is not None else self.source(model.key)
        return _is_instructed(source, description)

    async def load(self, slot: str) -> None:
        """Load a slot and wait for it, at most `request_timeout` seconds. Concurrent callers share one load."""
        clock = asyncio.get_running_loop().time
        end = clock() + self.config.request_timeout
        while True:
            joined = self._loads.get(slot)
            load = self._begin_load(slot) if joined is None else joined
            # This cancels nothing: others may wait for the same load.
            if not (await asyncio.wait({load}, timeout=max(0.0, end - clock())))[0]:
                raise WaitTimeoutError(
                    f"{slot!r} was not loaded within {self.config.request_timeout:g} s; the load goes on"
                )
            try:
                load.result()
            except WaitTimeoutError:
                # The time of the request that began the load; this one came later.
                if joined is not None and clock() < end:
                    continue
                raise
            break
        if slot in self.config.generators:
            # For lists of models, which may ask when it has left already.
            self.generator_description(slot)

    def _begin_load(self, slot: str) -> asyncio.Future[Any]:
        load: asyncio.Future[Any] = in_thread(self.manager.load, slot, self.config.request_timeout)
        self._loads[slot] = load
        load.add_done_callback(lambda _: self._loads.pop(slot, None))
        return load

    def check_admin(self) -> None:
        """Raise `ApiError` 403 unless clients may load and unload models."""
        if not self.config.admin:
            raise ApiError(403, "Clients cannot load and unload models on this server", code="admin_disabled")

    def load_seconds(self, slot: str) -> float:
        """How long the latest load of a slot took; 0 before its first load."""
        return self.manager.stats()["tracker"]["load_times"].get(slot, 0.0)

    def load_count(self, slot: str) -> int:
        """How often a slot was loaded."""
        return self.manager.stats()["tracker"]["load_counts"].get(slot, 0)

    def warn_once(self, topic: str, message: str) -> None:
        """Log a warning for the operator, once per topic."""
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning("%s", message)

    # --- Load ----------------------------------------------------------------------------------------------------

    def retry_after(self) -> int:
        """Seconds until the waiting texts are computed, at the rate of the latest seconds; 1 to 60."""
        if len(self._finished) < 2:
            return 1
        (since, before), (until, after) = self._finished[0], self._finished[-1]
        rate = (after - before) / (until - since) if until > since else 0.0
        return min(60, max(1, math.ceil(self.waiting / rate))) if rate > 0 else 5
