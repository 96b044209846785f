"""The server under test: in a thread on a free port, or in its own process."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from conftest import ENGLISH_MODEL, FIXTURES, ROOT, TURKISH_MODEL, tiny
from model_manager.server import ServedModel, ServerConfig, create_app
from model_manager.server.protocol import BoundedHeaders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fastapi import FastAPI
    from model_manager import ModelManager
    from model_manager.server import Service

PROMPTS_MODEL = str(FIXTURES / "bert_prompts")
MODELS = (
    ServedModel("tiny", source=ENGLISH_MODEL, aliases=("text-embedding-3-small",)),
    ServedModel("instructed", source=TURKISH_MODEL, instructions="on"),
    ServedModel("prompted", source=PROMPTS_MODEL),
)
SECONDS = 60
"""The timeout of all waits."""


@dataclass
class Running:
    """A server that runs in a thread of this process."""

    url: str
    app: FastAPI
    server: uvicorn.Server
    client: httpx.Client

    @property
    def service(self) -> Service:
        return self.app.state.service

    @property
    def manager(self) -> ModelManager:
        return self.service.manager

    def embed(self, **body: Any) -> httpx.Response:
        return self.client.post("/v1/embeddings", json=body)


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[Running]:
    """Serve `app` until the block ends, by the protocol of `model-manager serve`."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    http = functools.partial(BoundedHeaders, header_timeout=SECONDS)
    options: dict[str, Any] = {
        "http": http,
        "ws": "none",
        "timeout_graceful_shutdown": SECONDS,
        # As long as that of `model-manager serve`. uvicorn's own 5 s are those after which httpx drops a connection: on
        # a busy machine the server closed one that a test had just begun to use.
        "timeout_keep_alive": ServerConfig().keep_alive_timeout,
    }
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="server")
    thread.start()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started
        with httpx.Client(base_url=url, timeout=SECONDS) as client:
            yield Running(url, app, server, client)
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        sock.close()
        assert not thread.is_alive()


def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait for another thread or process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """Start a server on the tiny models: `serve(manager=..., **settings)`."""
    with contextlib.ExitStack() as stack:

        def start(manager: ModelManager | None = None, **settings: Any) -> Running:
            if manager is None:
                manager = stack.enter_context(tiny(cache_size=1000))
            return stack.enter_context(running(create_app(ServerConfig(**{"models": MODELS, **settings}), manager)))

        yield start


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One server for a whole file, for tests that do not look at its state."""
    with tiny(cache_size=1000) as manager, running(create_app(ServerConfig(models=MODELS), manager)) as found:
        yield found


def run_node(script: str, url: str, text: str) -> Any:
    """The output of the JavaScript client `tests/node/SCRIPT` for the server at `url` and `text`."""
    node = ROOT / "tests" / "node"
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (node / "node_modules" / "openai").is_dir():
        message = f"{node} lacks its packages: run `make node`"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    process = subprocess.run(
        ["node", script],
        cwd=node,
        env={**os.environ, "BASE_URL": f"{url}/v1"},
        input=text,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


_STACKS_SECONDS = 10.0
"""For processes that are ended to write their stacks."""


class Process:
    """A server in its own process."""

    def __init__(self, command: list[str], log: Path, **environment: str) -> None:
        self.log = log
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-W", "error", "-X", "faulthandler", *command],
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
            )

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def url(self, workers: int = 1) -> str:
        """Its address, once all workers listen."""
        where = re.compile(r"running on (http://127\.0\.0\.1:\d+)").search
        up = "Application startup complete"
        until(
            lambda: (where(self.text()) and self.text().count(up) >= workers) or self.popen.poll() is not None,
        )
        found = where(self.text())
        assert found, self.text()
        return found[1]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.popen.send_signal(number)
        return self.wait()

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit code. If it does not end in time, the test fails with the log and the stacks of all threads, those
        of workers too.
        """
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self._abort()
        pytest.fail(f"the server did not end within {seconds:g} s; its log, and where its threads are:\n{self.text()}")

    def _abort(self) -> None:
        """Have faulthandler write the stacks to the log, and end."""
        if os.name != "posix":
            self.popen.kill()
            return
        listed = ["pgrep", "-P", str(self.popen.pid)]
        workers = subprocess.run(listed, capture_output=True, text=True, check=False) if shutil.which("pgrep") else None
        # The supervisor first, because it would start others in place of its workers.
        pids = (self.popen.pid, *(map(int, workers.stdout.split()) if workers else ()))
        for number, pid in enumerate(pids, 1):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)
            # One after the other, so that their lines do not mix. The workers are children of another process by now:
            # only their stacks say that they end.
            end = time.monotonic() + _STACKS_SECONDS
            while self.text().count("Fatal Python error: Aborted") < number and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(0.5)  # for it to write the rest
        self.popen.wait(SECONDS)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start `python ARGUMENTS...`; killed after the test if it still runs."""
    started: list[Process] = []

    def start(*command: str, **environment: str) -> Process:
        started.append(Process(list(command), tmp_path / f"server-{len(started)}.log", **environment))
        return started[-1]

    yield start
    for one in started:
        if one.popen.poll() is None:
            one.popen.kill()
            one.popen.wait(SECONDS)
