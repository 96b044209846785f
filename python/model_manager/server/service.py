"""The state that endpoints share: the served models, running requests, memory over time; its start and its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from .. import tracing
from .._bridge import in_thread
from .._core import Config
from ..compat import ModelManager
from ..errors import ClosedError, ModelManagerError
from .errors import ApiError, timed_out
from .hosts import Hosts
from .in_time import in_time
from .prometheus import Metrics, check_shared_folder
from .served_models import Kind, Result, ServedModels  # noqa: F401  Kind: its former place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .._types import MemoryStatistics
    from .config import ServedModel, ServerConfig
    from .spans import RequestSpans

logger = logging.getLogger("model_manager.server")

SAMPLE_SECONDS = 2.0
RELOAD_SECONDS = 5.0
"""Until the default model is loaded again after a failure; the pause doubles with each further one."""
_LONGEST_PAUSE = 60.0
GRACE = 2.0
"""Seconds after `drain_timeout` in which requests answer that they were ended."""
CLOSE_SECONDS = 30.0
"""How long the end of a server waits for its manager to close."""
_HISTORY = 900
"""Samples of half an hour."""
_RATE_SAMPLES = 5
_APART = 2
"""Large request bodies that are processed at the same time; more would take the cores from the models."""
_CACHE: dict[str, Any] = {"cache_policy": "ttl", "cache_ttl": 600.0, "cache_size": 10_000}
"""Defaults of the server's own manager; the environment overrides them."""


def own_settings(**settings: Any) -> Config:
    """The settings of a manager for the server alone, with a cache for many clients. Raises `ConfigError`."""
    variables = {field["name"]: field["environment"] for field in Config.fields()}
    cache = {name: value for name, value in _CACHE.items() if not os.environ.get(variables[name])}
    return Config(**cache, **settings)


async def _ended(work: Mapping[Any, str], seconds: float) -> None:
    """Wait for work to end, for at most so many seconds. What goes on is logged by its name."""
    if not work:
        return
    _, left = await asyncio.wait(work, timeout=seconds)
    for one in left:
        logger.error("%s did not end within %g s; the server ends without it", work[one], seconds)


def own_manager() -> ModelManager:
    """A manager for the server alone."""
    return ModelManager(own_settings())


class Service(ServedModels):
    """The shared state of one server. `create_app` and `router` create it; it runs while the application runs.

    Attributes:
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
        self.owns_manager = manager is None
        super().__init__(config, own_manager() if manager is None else manager)
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
        self._warned: set[str] = set()

    # --- Life ----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def metrics(self) -> Metrics:
        """The metrics. They begin with their first use: a process that serves nothing adds none to those of workers."""
        return Metrics()

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
        self.warming = self.config.warm_up
        # The load of a model that is missing fails at once, and says so: `/ready` is 503 until it is there.
        loads = [one for one in self.config.models if self.warming or self.is_missing(one)]
        if loads:
            self.spawn(self._load_all(loads))

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
        """Stop. A manager that the server created is closed. What does not end in time is logged and not waited for."""
        self.draining = True
        tasks = {task: task.get_name() for task in self._tasks}
        for task in tasks:
            task.cancel()
        await _ended(tasks, GRACE)
        if self.owns_manager:
            # It waits for the step of each model; of requests that were ended there may be a long one.
            seconds = GRACE if self.ended_requests else CLOSE_SECONDS
            await _ended({in_thread(self.manager.close): "closing the manager"}, seconds)
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
        including those whose callers no longer wait. Raises `ApiError` 504 after `request_timeout`.
        """
        free = self._apart

        async def result() -> Result:
            await free.acquire()
            work = in_thread(function, *args)
            work.add_done_callback(lambda _: free.release())
            return await asyncio.shield(work)

        def late() -> ApiError:
            return timed_out("Large requests took the server's request_timeout; send smaller ones, or fewer")

        return await in_time(result(), self.config.request_timeout, late)

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine in the background; it is cancelled with the application."""
        name = f"model_manager.{getattr(work, '__name__', 'task').strip('_')}"
        task = asyncio.get_running_loop().create_task(work, name=name)
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

    async def _load_all(self, models: list[ServedModel]) -> None:
        try:
            for model in models:
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

    def check_admin(self) -> None:
        """Raise `ApiError` 403 unless clients may load and unload models."""
        if not self.config.admin:
            raise ApiError(403, "Clients cannot load and unload models on this server", code="admin_disabled")

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
