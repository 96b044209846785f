"""What the endpoints share: the manager, the served models, what is under way, memory over time."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .._async import in_thread
from .._core import Config
from ..compat import ModelManager
from ..errors import InputError, ModelManagerError
from .config import ServedModel, ServerConfig
from .errors import unknown_model
from .hosts import Hosts
from .prometheus import Metrics, check_shared_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._types import Description, MemoryStatistics, SlotStatistics

logger = logging.getLogger("model_manager.server")

SAMPLE_SECONDS = 2.0
_HISTORY = 900
"""Samples: half an hour."""
_RATE_SAMPLES = 5
_APART = 2
"""Large requests whose bodies are worked on at the same time: more would take the cores from the models."""
_CACHE: dict[str, Any] = {"cache_policy": "ttl", "cache_ttl": 600.0, "cache_size": 10_000}
"""Of a manager that is the server's own, unless the environment says otherwise."""

_INSTRUCTED = "qwen3-embedding"
"""In the source of a model that takes instructions: so that it need not be loaded to know, or is on another server."""

Kind = Literal["embedding", "generator"]
Result = TypeVar("Result")


def _first_word(name: str) -> str:
    """`qwen3` of `qwen3-embedding`: what people call a model for short."""
    return re.split(r"[-_.:\s]", name.rsplit("/", 1)[-1], maxsplit=1)[0]


def own_manager() -> ModelManager:
    """A manager for a server alone, with a cache made for many clients."""
    variables = {field["name"]: field["environment"] for field in Config.fields()}
    return ModelManager(
        Config(**{name: value for name, value in _CACHE.items() if not os.environ.get(variables[name])})
    )


class Service:
    """One server: endpoints read and count here. Made by `create_app` and `router`, running while the application is.

    Attributes:
        manager: Whose models are served.
        config: The settings.
        metrics: Figures.
        started: When it started to serve, seconds since the epoch.
        warming: Whether the served models are being loaded because `warm_up` is set.
        draining: Whether it takes no further requests.
        in_flight: Requests under way, probes not counted.
        waiting: Texts of requests that wait for vectors.
        body_bytes: What the bodies of requests under way take, bytes.
        hosts: The check of `Host` headers; None: it is the application's own.
        history: (seconds since the epoch, resident MB, MB of models), every 2 seconds for half an hour.
    """

    def __init__(self, config: ServerConfig, manager: ModelManager | None, *, check_hosts: bool = True) -> None:
        """Without `manager` it makes one of its own and closes it with the application."""
        check_shared_folder()
        self.config = config
        self.owns_manager = manager is None
        self.manager = own_manager() if manager is None else manager
        self.metrics = Metrics()
        self.started = time.time()
        self._began = time.monotonic()
        self.draining = False
        self.warming = False
        self.in_flight = 0
        self.waiting = 0
        self.body_bytes = 0
        self.hosts = Hosts(config) if check_hosts else None
        self._apart = asyncio.Semaphore(_APART)
        self.history: deque[tuple[float, float, float]] = deque(maxlen=_HISTORY)
        self._finished: deque[tuple[float, int]] = deque(maxlen=_RATE_SAMPLES)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loads: dict[str, asyncio.Future[None]] = {}
        self._descriptions: dict[str, Description] = {}
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

    def _register(self) -> None:
        for model in self.config.models:
            if model.key in self.manager.slots():
                continue
            if model.source is None:
                raise InputError(
                    f"the served model {model.name!r} has no source and the manager has no slot {model.key!r}; "
                    "register the slot or give ServedModel a source"
                )
            self.manager.register(model.key, model.source, kind="embedding")

    async def start(self) -> None:
        """Begin to serve: inside the event loop that will."""
        if self.owns_manager and self.manager.closed:
            self.manager = own_manager()
            self._register()
        self.started = time.time()
        self._began = time.monotonic()
        self.draining = False
        # A semaphore belongs to the first loop in which somebody waits for it.
        self._apart = asyncio.Semaphore(_APART)
        self.spawn(self._sample_always())
        if self.config.warm_up:
            self.warming = True
            self.spawn(self._warm_up())

    async def stop(self) -> None:
        """Serve no more. A manager of the server's own is closed."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.owns_manager:
            await in_thread(self.manager.close)
        self.metrics.leave()

    async def apart(self, function: Callable[..., Result], *args: Any) -> Result:
        """What `function` returns or raises, called off the event loop: for large requests, which take turns."""
        async with self._apart:
            return await in_thread(function, *args)

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine beside the requests; it is cancelled with the application."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _sample_always(self) -> None:
        while True:
            try:
                self.sample()
            except ModelManagerError as error:
                logger.warning("No figures: %s", error)
                return
            await asyncio.sleep(SAMPLE_SECONDS)

    @property
    def uptime(self) -> float:
        """Seconds since `started`, whatever has been done to the clock."""
        return time.monotonic() - self._began

    def sample(self) -> None:
        """Take the manager's figures into the metrics and the history."""
        stats = self.manager.stats()
        self.metrics.sample(stats, self.in_flight, self.waiting)
        # By a clock that never jumps: the other one may be set back by hours.
        now = time.monotonic()
        if not self._finished or now - self._finished[-1][0] >= SAMPLE_SECONDS / 2:
            self._finished.append((now, stats["queue"]["texts"]))
            self._remember(time.time(), stats["memory"])

    def _remember(self, now: float, memory: MemoryStatistics) -> None:
        """Add to the history, whose times only rise: what a clock that was set back has yet to reach is forgotten."""
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

    # --- Models --------------------------------------------------------------------------------------------------

    @property
    def default(self) -> ServedModel:
        """What a request without a model gets."""
        return self.config.models[0]

    def served(self, name: str | None) -> ServedModel:
        """The embedding model of this public name, alias, source, slot or first word. Raises `ApiError` 404."""
        if not name:
            return self.default
        found = self._by_name.get(name)
        if found is None:
            found = self._by_name.get(name.removesuffix(":latest")) or self._unlisted(name)
        return found

    def _unlisted(self, name: str) -> ServedModel:
        """A slot that is not in the settings, by its name or source; else the one served model that begins so."""
        slots = self.slots("embedding")
        for slot, state in slots.items():
            if name in (slot, state["source"]):
                return ServedModel(slot)
        by_word = self._by_word.get(name.removesuffix(":latest"))
        if by_word is not None:
            return by_word
        raise unknown_model(name, [model.name for model in self.models()])

    def slots(self, kind: Kind) -> dict[str, SlotStatistics]:
        """The manager's slots of one kind and their state."""
        return {name: state for name, state in self.manager.stats()["slots"].items() if state["kind"] == kind}

    def models(self) -> list[ServedModel]:
        """Every embedding model: those of the settings, then the manager's other slots."""
        keys = {model.key for model in self.config.models}
        return [*self.config.models, *(ServedModel(slot) for slot in self.slots("embedding") if slot not in keys)]

    def description(self, slot: str) -> Description | None:
        """What the slot's model is, as far as it is known: None before its first load."""
        try:
            found = self.manager.describe(slot, load=False)
        except ModelManagerError:
            found = None
        if found is not None:
            self._descriptions[slot] = found
        return self._descriptions.get(slot)

    async def takes_instructions(self, model: ServedModel) -> bool:
        """Whether texts for `model` stand behind an instruction; with ``auto`` its first use may load it to know."""
        known = self.instructions_known(model)
        if known is None:
            await self.load(model.key)
            self.description(model.key)
            known = self.instructions_known(model)
        # Without a description it is no embedding model; the core says so with the first text.
        return bool(known)

    def instructions_known(self, model: ServedModel) -> bool | None:
        """`takes_instructions` without loading; None while it is not known."""
        if model.instructions != "auto":
            return model.instructions == "on"
        if _INSTRUCTED in (model.source or "").lower():
            return True
        description = self._descriptions.get(model.key)
        if description is None:
            return None
        return any(prompt.startswith("Instruct:") for prompt in description["prompts"].values())

    async def load(self, slot: str) -> None:
        """Load a slot and wait for it, `request_timeout` seconds at most. All who wait share one load."""
        load = self._loads.get(slot)
        if load is None:
            load = in_thread(self.manager.load, slot, self.config.request_timeout)
            self._loads[slot] = load
            load.add_done_callback(lambda _: self._loads.pop(slot, None))
        # One who leaves must not take the load from the others.
        await asyncio.shield(load)

    def warn_once(self, topic: str, message: str) -> None:
        """Log what an operator should know, once however often it happens."""
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning("%s", message)

    # --- Load ----------------------------------------------------------------------------------------------------

    def retry_after(self) -> int:
        """Seconds until the texts that wait now will be done, at the rate of the latest seconds; 1 to 60."""
        if len(self._finished) < 2:
            return 1
        (since, before), (until, after) = self._finished[0], self._finished[-1]
        rate = (after - before) / (until - since) if until > since else 0.0
        return min(60, max(1, math.ceil(self.waiting / rate))) if rate > 0 else 5
