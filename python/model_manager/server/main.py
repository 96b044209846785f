"""Running the server in one process, or in several that share the port. `SIGTERM` lets running requests finish; a
second `SIGTERM` ends at once.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import logging
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
import uvicorn
from uvicorn.supervisors import Multiprocess

from ..errors import ConfigError
from .app import create_app
from .config import ServerConfig
from .protocol import BoundedHeaders

if TYPE_CHECKING:
    from types import FrameType

    from fastapi import FastAPI

    from ..compat import ModelManager
    from .service import Service

_HANDOVER = "MODEL_MANAGER_SERVER_CONFIG"
"""The environment variable that carries the settings to worker processes, as JSON."""
_STARTUP_FAILED = 3
"""uvicorn's exit code for a failed start."""
_FAILED = 1
"""The exit code for a failed start, as of every command that fails."""
_GRACE = 2.0
"""Seconds after `drain_timeout` in which requests answer that they were ended. Then uvicorn ends what is left."""

logger = logging.getLogger(__name__)


def run(config: ServerConfig | None = None, manager: ModelManager | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Blocks; call it on the main thread.

    The first signal stops listening and lets running requests finish, for at most `drain_timeout` seconds. The second
    ends at once.

    It returns after SIGTERM if all requests have finished; otherwise the process ends by the signal. SIGINT ends in
    `KeyboardInterrupt`.

    Args:
        config: Settings. None: those of the environment.
        manager: The manager whose models are served. None: a new one. With several workers each creates its own.

    Raises:
        ConfigError: A setting is out of range, or a manager was given for several workers.
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
        "timeout_graceful_shutdown": config.drain_timeout + _GRACE,
        "server_header": False,
        "ws": "none",
        "http": functools.partial(BoundedHeaders, header_timeout=config.header_timeout),
    }
    if config.workers > 1:
        if manager is not None:
            raise ConfigError("workers: several processes cannot share a manager; leave it out")
        os.environ[_HANDOVER] = orjson.dumps(config.to_dict()).decode()
        workers = uvicorn.Config(f"{__name__}:worker_app", factory=True, workers=config.workers, **options)
        supervisor = Supervisor.of(workers)
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


def worker_app() -> FastAPI:
    """The application of one worker process of `run`."""
    return create_app(ServerConfig.from_dict(orjson.loads(os.environ[_HANDOVER])))


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which also marks the service as draining: `/ready` answers 503 from then on. It ends what runs
    after `drain_timeout` with an error answer; uvicorn would cancel it without one.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self.cut_off = False
        """Whether requests were ended before they had finished."""
        # A handler of the application gets the signal after the drain.
        self._sigterm_is_ours = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT and SIGTERM."""
        if self.should_exit:
            end_at_once(sig)
        self._service.draining = True
        if sig == signal.SIGTERM and self._sigterm_is_ours:
            # uvicorn would raise it again after the drain; process managers take an exit code of 0 for a clean stop.
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running requests finish, then end the others."""
        timer = asyncio.get_running_loop().call_later(self._service.config.drain_timeout, self._service.end_requests)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
            self.cut_off = self._service.ended_requests


class Supervisor(Multiprocess):
    """uvicorn's supervisor. A second signal ends it and its workers at once."""

    ended_by: int | None = None
    """The signal that ended it."""

    @classmethod
    def of(cls, config: uvicorn.Config) -> Supervisor:
        """A supervisor that listens at the address in `config`."""
        options: dict[str, Any] = {"sockets": [config.bind_socket()]}
        # Some versions of uvicorn need the function that a worker runs.
        if "target" in inspect.signature(Multiprocess.__init__).parameters:
            options["target"] = uvicorn.Server(config).run
        found = cls(config, **options)
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


def end_at_once(sig: int) -> NoReturn:
    """End the process as the signal does by default, together with running requests and the models' threads."""
    # No log record: another thread may hold the lock of a logging handler.
    signal.signal(sig, signal.SIG_DFL)
    signal.raise_signal(sig)
    raise SystemExit(128 + sig)
