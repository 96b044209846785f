"""Running the server in one process, or in several that share the port. After `SIGTERM` it goes on listening until all
running requests have finished, and refuses new ones with 503; a second `SIGTERM` ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import inspect
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
import uvicorn
from uvicorn.supervisors import Multiprocess

from ..errors import ConfigError, ModelManagerError
from .app import check, create_app
from .config import ServerConfig
from .prometheus import remove_gauges
from .protocol import BoundedHeaders
from .service import GRACE, Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from multiprocessing.connection import Connection
    from types import FrameType

    from fastapi import FastAPI

    from ..compat import ModelManager

_STARTUP_FAILED = 3
"""uvicorn's exit code for a failed start."""
_FAILED = 1
"""The exit code for a failed start, as of every command that fails."""

_WORKER_STARTS = 30
"""Seconds for a worker to start. Within uvicorn's 5 s one of a busy machine does not; it would be killed."""

logger = logging.getLogger(__name__)


def run(config: ServerConfig | None = None, manager: ModelManager | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Blocks; call it on the main thread.

    After the first signal running requests may finish, for at most `drain_timeout` seconds, and new ones are refused.
    The second ends at once.

    It returns after SIGTERM if all requests have finished; otherwise the process ends by the signal. SIGINT ends in
    `KeyboardInterrupt`.

    Args:
        config: Settings. None: those of the environment.
        manager: The manager whose models are served. None: a new one. With several workers each creates its own.

    Raises:
        ConfigError: A setting is out of range or names a path that no endpoint has, or a manager was given for several
            workers.
        InputError: A served model has neither a source nor a slot.
        SystemExit: The server could not start, for example because the address is in use. The log says why.
    """
    config = config or ServerConfig()
    if (problem := _address_problem(config.host, config.port)) is not None:
        logger.error("%s", problem)
        raise SystemExit(_FAILED)
    options: dict[str, Any] = {
        "host": config.host,
        "port": config.port,
        "access_log": config.access_log,
        # What runs has been waited for, see `Service.drain`.
        "timeout_graceful_shutdown": GRACE,
        "timeout_keep_alive": config.keep_alive_timeout,
        "server_header": False,
        "ws": "none",
        "http": functools.partial(BoundedHeaders, header_timeout=config.header_timeout),
    }
    if config.workers > 1:
        if manager is not None:
            raise ConfigError("workers: several processes cannot share a manager; leave it out")
        check(config)
        replaced, replacing = multiprocessing.Pipe(duplex=False)
        settings = orjson.dumps(config.to_dict())
        factory = functools.partial(worker_app, settings, replaced)
        # Some versions of uvicorn have no such setting.
        if "timeout_worker_healthcheck" in inspect.signature(uvicorn.Config.__init__).parameters:
            options["timeout_worker_healthcheck"] = _WORKER_STARTS
        workers = uvicorn.Config(factory, factory=True, workers=config.workers, **options)
        supervisor = Supervisor.of(workers, replaced, replacing)
        supervisor.run()
        if any(one.process.exitcode == _STARTUP_FAILED for one in supervisor.processes):
            raise SystemExit(_FAILED)
        if supervisor.ended_by == signal.SIGINT:
            raise KeyboardInterrupt
        return
    app = create_app(config, manager)
    server = DrainingServer(uvicorn.Config(app, **options), app.state.service)
    try:
        server.run()
    except SystemExit as error:
        raise SystemExit(_FAILED if error.code == _STARTUP_FAILED else error.code) from None
    if not server.started:
        raise SystemExit(_FAILED)
    if server.cut_off:
        # Their work may not end: the process does not wait for it.
        end_at_once(signal.SIGTERM)


def _address_problem(host: str, port: int) -> str | None:
    """Why nothing can listen there, and the remedy. uvicorn would say so after the start, without a remedy."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return f"host {host!r} is not known; --host or API_HOST: 127.0.0.1 for this machine alone, 0.0.0.0 for all"
    other_port = "choose another one with --port or API_PORT (0: a free one)"
    codes = {_bind_error(*one) for one in found}
    if errno.EADDRINUSE in codes:
        return f"port {port} of {host} is in use by another program; end that program, or {other_port}"
    if errno.EACCES in codes:
        return f"port {port} is not allowed to this user; {other_port}"
    if codes == {errno.EADDRNOTAVAIL}:
        return f"host {host!r} is no address of this machine; --host or API_HOST: 127.0.0.1, or 0.0.0.0 for all"
    return None


def _bind_error(family: int, kind: int, protocol: int, _name: str, address: Any) -> int | None:
    """The number of the error with which an address cannot be had now."""
    try:
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno
    return None


def worker_app(settings: bytes, replaced: Connection) -> FastAPI:
    """The application of one worker process of `run`.

    Args:
        settings: Those of the server, as JSON.
        replaced: Holds something while the supervisor replaces workers.
    """
    try:
        app = create_app(ServerConfig.from_dict(orjson.loads(settings)))
    except ModelManagerError as error:
        logger.error("%s", error)
        # The supervisor ends, instead of starting workers that fail in the same way.
        sys.exit(_STARTUP_FAILED)
    running = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(target: Any) -> AsyncIterator[None]:
        async with running(target):
            # uvicorn has set its handlers before it starts the application.
            _drain_first(app.state.service, replaced)
            with _ending_with_supervisor(replaced):
                yield
        if app.state.service.ended_requests:
            # Their work may not end: the process does not wait for it.
            end_at_once(signal.SIGTERM)

    app.router.lifespan_context = lifespan
    return app


@contextlib.contextmanager
def _ending_with_supervisor(replaced: Connection) -> Iterator[None]:
    """Within the block, this worker ends as after SIGTERM when its supervisor has been killed. Nothing would end it
    otherwise, and it would hold the port and its models. With the supervisor the pipe `replaced` is closed, which reads
    as a worker that is replaced: it stops listening at once, so that another server can start.
    """
    supervisor = multiprocessing.parent_process()
    if supervisor is None or os.name != "posix":
        yield  # on Windows a loop cannot wait for a process
        return
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(supervisor.sentinel)
        logger.error("The process that started this worker has ended; the worker ends too")
        replaced.poll(1)  # it may be closed a moment later
        signal.raise_signal(signal.SIGTERM)

    loop.add_reader(supervisor.sentinel, ended)
    try:
        yield
    finally:
        loop.remove_reader(supervisor.sentinel)


def _drain_first(service: Service, replaced: Connection) -> None:
    """Let signals reach uvicorn's handlers when the running requests of this worker have finished.

    A worker that is replaced stops listening at once, because others answer new requests; it refuses none.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        then = signal.getsignal(number)
        if not callable(then):
            continue

        def handle(sig: int, frame: FrameType | None, then: Callable[[int, Any], object] = then) -> None:
            if service.draining or service.leaving:
                return  # the supervisor ends its workers after a second signal
            if sig == signal.SIGTERM and replaced.poll():
                service.leaving = True
                loop.call_soon_threadsafe(_stop_listening, then)
            else:
                service.draining = True
            loop.call_soon_threadsafe(_drain, service, lambda: then(sig, None))

        signal.signal(number, handle)


def _stop_listening(handler: Callable[[int, Any], object]) -> None:
    """Close the listening sockets of uvicorn's server, whose method `handler` is. Its connections stay."""
    for listening in getattr(getattr(handler, "__self__", None), "servers", ()):
        listening.close()


def _drain(service: Service, then: Callable[[], object]) -> None:
    """Call `then` when the running requests have finished."""

    async def drained() -> None:
        await service.drain()
        then()

    others = "the other workers answer new ones" if service.leaving else "new ones are refused"
    logging.getLogger("uvicorn.error").info("Shutting down: %d requests are running, %s", service.in_flight, others)
    # `Service.stop` cancels the tasks of the service; this one ends before.
    service.drained = asyncio.ensure_future(drained())


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which drains the service before it stops to listen: `/ready` and new requests get 503 from the
    first signal on. uvicorn itself stops at once, and a request that arrives then is reset.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signalled = False
        self.cut_off = False
        """Whether requests were ended after `drain_timeout`."""
        # A handler of the application gets the signal after the drain.
        self._sigterm_is_ours = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        self._hangs_up = False
        """Whether it handles SIGHUP, which uvicorn leaves alone."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        # Not where it is ignored, as by `nohup`, or has a handler.
        on_main_thread = threading.current_thread() is threading.main_thread()
        if on_main_thread and os.name == "posix" and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, self.handle_exit)
            self._hangs_up = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT, SIGTERM and SIGHUP."""
        if self._signalled:
            end_at_once(sig)
        self._signalled = self._service.draining = True
        if self._loop is None:
            self._exit(sig)  # nothing is served yet
        else:
            self._loop.call_soon_threadsafe(_drain, self._service, lambda: self._exit(sig))

    def _exit(self, sig: int) -> None:
        if (sig == signal.SIGTERM and self._sigterm_is_ours) or (self._hangs_up and sig == signal.SIGHUP):
            # uvicorn would raise it again after the drain; process managers take an exit code of 0 for a clean stop.
            self.should_exit = True
        else:
            super().handle_exit(sig, None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop to listen, and close all connections."""
        await super().shutdown(sockets)
        self.cut_off = self._service.ended_requests
        if self._hangs_up:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            self._hangs_up = False


class Supervisor(Multiprocess):
    """uvicorn's supervisor. A second signal ends it and its workers at once."""

    ended_by: int | None = None
    """The signal that ended it."""
    replaces = False
    """Whether it replaces workers, and waits for their requests."""
    replaced: Connection
    replacing: Connection

    @classmethod
    def of(cls, config: uvicorn.Config, replaced: Connection, replacing: Connection) -> Supervisor:
        """A supervisor that listens at the address in `config`. What is written to `replacing` says to workers, which
        look at `replaced`, that a signal is not meant for all of them. Raises `SystemExit` when another program listens
        there.
        """
        sock = config.bind_socket()
        try:
            # Two programs can bind an address while none listens there. An error in a worker would not end the server.
            sock.listen(config.backlog)
        except OSError as error:
            sock.close()
            logger.error("%s", _address_problem(config.host, config.port) or error)
            raise SystemExit(_FAILED) from None
        options: dict[str, Any] = {"sockets": [sock]}
        # Some versions of uvicorn need the function that a worker runs.
        if "target" in inspect.signature(Multiprocess.__init__).parameters:
            options["target"] = uvicorn.Server(config).run
        found = cls(config, **options)
        found.replaced, found.replacing = replaced, replacing
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, found.handle_exit)
        return found

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT and SIGTERM."""
        if self.ended_by is not None:
            for process in self.processes:
                process.kill()
            end_at_once(sig)
        self.ended_by = sig
        self.signal_queue.append(sig)
        if self.replaces:
            # It replaces no further ones. Otherwise the event's lock may be held by what this signal interrupts.
            self.should_exit.set()

    def terminate_all(self) -> None:
        """End the workers. Only they listen from now on: this process would leave a connection without an answer."""
        super().terminate_all()
        for sock in self.sockets:
            sock.close()

    def keep_subprocess_alive(self) -> None:
        """Start a worker in place of each that has ended, unless it could not start."""
        # Not every version of uvicorn looks at the exit code.
        if any(one.process.exitcode == _STARTUP_FAILED for one in self.processes):
            self.should_exit.set()
            return
        for one in self.processes:
            # The worker has its own. With this one open, the answer of a worker that has ended is waited for.
            one.child_conn.close()
        with self._forgetting():
            super().keep_subprocess_alive()

    def handle_hup(self) -> None:
        """Replace all workers."""
        with self._replacing():
            super().handle_hup()

    def handle_ttou(self) -> None:
        """End one worker."""
        with self._replacing():
            super().handle_ttou()

    @contextlib.contextmanager
    def _replacing(self) -> Iterator[None]:
        self.replacing.send_bytes(b"1")
        self.replaces = True
        try:
            with self._forgetting():
                yield
        finally:
            self.replaces = False
            self.replaced.recv_bytes()

    @contextlib.contextmanager
    def _forgetting(self) -> Iterator[None]:
        """Remove the gauges of workers that end meanwhile: one that was killed has left them."""
        before = {one.process.pid for one in self.processes}
        yield
        for pid in before - {one.process.pid for one in self.processes}:
            if pid is not None:
                remove_gauges(pid)


def end_at_once(sig: int) -> NoReturn:
    """End the process as the signal does by default, together with running requests and the models' threads."""
    # No log record: another thread may hold the lock of a logging handler.
    signal.signal(sig, signal.SIG_DFL)
    signal.raise_signal(sig)
    raise SystemExit(128 + sig)
