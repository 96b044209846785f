"""Interrupts (Ctrl-C) that arrive where the core calls Python's own code: none is lost, nothing is left half done."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from conftest import DIMENSION, ENGLISH_MODEL, ENGLISH_TEXT, FIXTURES, TURKISH_MODEL, run_python, tiny
from model_manager import Config, errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from model_manager import ModelManager

ENGLISH, TURKISH = "english_sentence", "turkish_sentence"
unix = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")

START = f"""
import importlib, os, pathlib, signal, sys
from model_manager import Config, model_manager as m

def interrupt():
    signal.raise_signal(signal.SIGINT)

def interrupted(call):
    try:
        call()
    except KeyboardInterrupt:
        return True
    return False

def embed():
    return m.embed("hello", "{ENGLISH}")
"""


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_an_interrupt_while_the_file_env_is_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"MEMORY_EFFICIENT_CACHE_SIZE=7\nENGLISH_FALLBACK_MODEL={ENGLISH_MODEL}\n")
    run_python(
        START
        + f"""
os.chdir({str(tmp_path)!r})
read = pathlib.Path.read_text
def reading(*given, **options):
    pathlib.Path.read_text = read
    interrupt()
    return read(*given, **options)
pathlib.Path.read_text = reading
assert interrupted(embed)
assert (m.config.cache_size, m.config.english_model) == (7, {ENGLISH_MODEL!r})
assert embed().shape == ({DIMENSION},)
""",
        MODEL_MANAGER_DOTENV="true",
    )


def test_a_time_limit_while_the_file_env_is_read(tmp_path: Path) -> None:
    """Its error is an OSError, but none of the system's."""
    (tmp_path / ".env").write_text("MEMORY_EFFICIENT_CACHE_SIZE=7\n")
    run_python(
        START
        + f"""
os.chdir({str(tmp_path)!r})
read = pathlib.Path.read_text
def reading(*given, **options):
    pathlib.Path.read_text = read
    raise TimeoutError("the limit of a worker")
pathlib.Path.read_text = reading
try:
    m.slots()
except TimeoutError as error:
    raised = str(error)
assert raised == "the limit of a worker"
assert m.config.cache_size == 7
""",
        MODEL_MANAGER_DOTENV="true",
    )


def test_an_interrupt_while_texts_to_preload_are_read(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    run_python(
        START
        + """
from model_manager import _preload
read, calls = _preload.read_texts, []
def reading(*given):
    calls.append(given)
    if len(calls) == 1:
        interrupt()
    return read(*given)
_preload.read_texts = reading
assert interrupted(m.slots)
m.slots()
assert len(calls) == 2
m.close()
""",
        MODEL_MANAGER_PRELOAD=str(tmp_path / "texts.txt"),
    )


SETTINGS = {
    "MEMORY_EFFICIENT_CACHE_SIZE": "7",
    "TURKISH_SENTENCE_MODEL": TURKISH_MODEL,
    "ENGLISH_FALLBACK_MODEL": ENGLISH_MODEL,
    "AI_MAX_TOKENS": "99",
    "MODEL_MANAGER_OFFLINE": "true",
}


class Interrupting(dict):  # type: ignore[type-arg]
    """An environment in which the first reading of a variable raises."""

    def __init__(self, name: str, raised: type[BaseException]) -> None:
        super().__init__({**os.environ, **SETTINGS})
        self.name = name
        self.raised = raised
        self.left = 1

    def get(self, name: str, default: str | None = None) -> str | None:
        if name == self.name and self.left:
            self.left -= 1
            raise self.raised
        return super().get(name, default)


class SoftLimitError(Exception):
    """What a worker's time limit raises in a signal handler."""


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SoftLimitError])
@pytest.mark.parametrize("name", SETTINGS)
def test_an_interrupt_while_a_variable_is_read(
    monkeypatch: pytest.MonkeyPatch, name: str, raised: type[BaseException]
) -> None:
    environment = Interrupting(name, raised)
    monkeypatch.setattr(os, "environ", environment)
    with pytest.raises(raised):
        Config()
    assert environment.left == 0
    config = Config()
    assert (config.cache_size, config.turkish_model, config.english_model, config.max_tokens, config.offline) == (
        7,
        TURKISH_MODEL,
        ENGLISH_MODEL,
        99,
        True,
    )


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SoftLimitError])
def test_an_interrupt_while_a_manager_reads_its_settings(
    monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    class Derived(type(tiny())):  # type: ignore[misc]
        """Without arguments it reads its settings at its first use."""

    monkeypatch.setattr(os, "environ", {**os.environ, **SETTINGS})
    manager = Derived()
    environment = Interrupting("MEMORY_EFFICIENT_CACHE_SIZE", raised)
    monkeypatch.setattr(os, "environ", environment)
    with pytest.raises(raised):
        manager.slots()
    assert environment.left == 0
    with manager:
        assert manager.config.cache_size == 7
        assert manager.embed(ENGLISH_TEXT, ENGLISH).shape == (DIMENSION,)


def test_a_variable_that_cannot_be_read_counts_as_not_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment = Interrupting("AI_MAX_TOKENS", OSError)
    environment.left = 1000
    monkeypatch.setattr(os, "environ", environment)
    assert Config().max_tokens == 150
    assert [record.getMessage().split(" of ")[0] for record in caplog.records] == ["AI_MAX_TOKENS"]


def test_an_interrupt_while_a_package_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, manager: ModelManager, tmp_path: Path
) -> None:
    class Finder:
        left = 1

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "a_package_of_models" and self.left:
                self.left -= 1
                signal.raise_signal(signal.SIGINT)

    (tmp_path / "a_package_of_models").mkdir()
    (tmp_path / "a_package_of_models" / "__init__.py").touch()
    os.symlink(ENGLISH_MODEL, tmp_path / "a_package_of_models" / "model", target_is_directory=True)
    monkeypatch.syspath_prepend(tmp_path)
    finder = Finder()
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    with pytest.raises(KeyboardInterrupt):
        manager.register("mine", "pkg:a_package_of_models/model")
    assert finder.left == 0
    manager.register("mine", "pkg:a_package_of_models/model", replace=True)
    assert manager.embed(ENGLISH_TEXT, "mine").shape == (DIMENSION,)


# --- numpy ------------------------------------------------------------------------------------------------------------

FINDER = """
class Finder:
    left = 1

    def find_spec(self, name, path=None, target=None):
        if name in NAMES and self.left:
            self.left -= 1
            os.kill(os.getpid(), signal.SIGINT)

finder = Finder()
sys.meta_path.insert(0, finder)
"""


@unix
def test_an_interrupt_in_the_import_of_numpy_leaves_it_whole() -> None:
    run_python(
        START
        + 'NAMES = ("numpy.linalg",)'
        + FINDER
        + """
assert "numpy" not in sys.modules
assert interrupted(embed)
assert finder.left == 0
assert embed().shape == (32,)
import numpy
assert numpy.linalg.norm(embed()) > 0.99
""",
        ENGLISH_FALLBACK_MODEL=ENGLISH_MODEL,
    )


@unix
@pytest.mark.parametrize("call", ["embed()", "m.embed(['a', 'b'], 'english_sentence')"])
def test_an_interrupt_in_the_import_of_its_interface(call: str) -> None:
    run_python(
        START
        + 'import numpy\nNAMES = ("numpy._core.multiarray", "numpy.core.multiarray")'
        + FINDER
        + f"""
for name in NAMES:
    sys.modules.pop(name, None)
assert interrupted(lambda: {call})
assert finder.left == 0
assert {call}.shape[-1] == 32
""",
        ENGLISH_FALLBACK_MODEL=ENGLISH_MODEL,
    )


@unix
def test_an_interrupt_while_a_fork_waits_for_numpy() -> None:
    run_python(
        START
        + 'import numpy\nNAMES = ("numpy._core.multiarray", "numpy.core.multiarray")'
        + FINDER
        + """
for name in NAMES:
    sys.modules.pop(name, None)

def fork():
    child = os.fork()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    m.slots()

assert interrupted(fork)
assert finder.left == 0
assert embed().shape == (32,)
""",
        ENGLISH_FALLBACK_MODEL=ENGLISH_MODEL,
    )


def test_a_call_in_the_middle_of_the_import_of_numpy_is_refused() -> None:
    """As of a signal handler: it would wait for the thread that waits for it."""
    run_python(
        START
        + """
class Finder:
    left = 1

    def find_spec(self, name, path=None, target=None):
        if name == "numpy.linalg" and self.left:
            self.left -= 1
            try:
                embed()
            except ImportError as error:
                self.refused = str(error)

finder = Finder()
sys.meta_path.insert(0, finder)
import numpy
assert "import numpy before" in finder.refused, finder.refused
assert embed().shape == (32,)
""",
        ENGLISH_FALLBACK_MODEL=ENGLISH_MODEL,
    )


def test_numpy_that_cannot_be_imported_says_why() -> None:
    run_python(
        START
        + """
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            raise ModuleNotFoundError("No module named 'numpy'")

finder = Finder()
sys.meta_path.insert(0, finder)
for _ in range(2):
    try:
        embed()
    except ImportError as error:
        refused = str(error)
    assert "numpy" in refused
sys.meta_path.remove(finder)
assert embed().shape == (32,)
""",
        ENGLISH_FALLBACK_MODEL=ENGLISH_MODEL,
    )


# --- Logging ----------------------------------------------------------------------------------------------------------


class InterruptedHandler(logging.Handler):
    """A handler of the log that Ctrl-C interrupts in its next record."""

    armed = False

    def emit(self, record: logging.LogRecord) -> None:
        if self.armed and threading.current_thread() is threading.main_thread():
            self.armed = False
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def handler() -> Iterator[InterruptedHandler]:
    handler, logger = InterruptedHandler(), logging.getLogger("model_manager")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


CALLS: dict[str, Callable[[ModelManager], object]] = {
    "unload": lambda manager: manager.unload("x"),
    "unload_all": lambda manager: manager.unload_all(),
    "unregister": lambda manager: manager.unregister("x"),
    "register": lambda manager: manager.register("x", TURKISH_MODEL, replace=True),
    "close": lambda manager: manager.close(),
    "exit": lambda manager: manager.__exit__(None, None, None),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_while_a_record_is_logged(manager: ModelManager, handler: InterruptedHandler, name: str) -> None:
    manager.register("x", ENGLISH_MODEL)
    manager.load("x")
    handler.armed = True
    with pytest.raises(KeyboardInterrupt):
        CALLS[name](manager)
    assert not handler.armed
    # What was done is done.
    assert manager.closed == (name in ("close", "exit"))
    if not manager.closed:
        assert "x" not in manager.slots() or not manager.is_loaded("x")
        assert manager.embed(ENGLISH_TEXT, ENGLISH).shape == (DIMENSION,)


# --- Waiting for a server of the cache --------------------------------------------------------------------------------


class Silent:
    """A server that takes connections and never answers."""

    def __init__(self, on_connection: Callable[[], None] = lambda: None) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.socket.getsockname()[1]}"
        self.on_connection = on_connection
        self.connections: list[socket.socket] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections.append(connection)
            self.on_connection()

    def close(self) -> None:
        self.socket.close()
        for connection in self.connections:
            connection.close()


@unix
@pytest.mark.parametrize("call", ["cache_clear", "_cache_probe"])
def test_an_interrupt_while_a_server_of_the_cache_hangs(call: str) -> None:
    server = Silent(lambda: os.kill(os.getpid(), signal.SIGINT))
    manager = tiny(cache_url=server.url, cache_timeout=30)
    manager.slots()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        manager.cache_clear(tiers=True) if call == "cache_clear" else manager._cache_probe()
    server.close()
    assert time.monotonic() - begun < 25
    manager.close()


@unix
def test_an_interrupt_of_a_flush() -> None:
    class Limit(BaseException):
        pass

    def limit(*_: object) -> None:
        raise Limit

    server = Silent()
    manager = tiny(cache_url=server.url, cache_timeout=30)
    manager.embed(ENGLISH_TEXT, ENGLISH)
    before = signal.signal(signal.SIGALRM, limit)
    begun = time.monotonic()

    def flush() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        manager.cache_flush(float("inf"))

    try:
        with pytest.raises(Limit):
            flush()
    finally:
        signal.signal(signal.SIGALRM, before)
    server.close()
    assert time.monotonic() - begun < 25
    manager.close()


def test_the_time_of_a_flush(manager: ModelManager) -> None:
    for seconds in (1e-9, 1, 1e10, 9.3e18, 1.7e19, 1e20, float("inf")):
        manager.cache_flush(seconds)
    for seconds in (0, -1, float("-inf"), float("nan")):
        with pytest.raises(errors.ArgumentError, match="timeout"):
            manager.cache_flush(seconds)


# --- Tracers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["begin", "end"])
def test_an_interrupt_in_a_tracer_is_raised(place: str) -> None:
    run_python(
        START
        + f"""
from model_manager import _core

class Tracer:
    raises = None
    def begin(self, *_):
        self.come("begin")
        return object(), []
    def end(self, *_):
        self.come("end")
    def come(self, place):
        if place == {place!r} and self.raises is not None:
            raised, self.raises = self.raises, None
            if raised is KeyboardInterrupt:
                interrupt()
                sum(range(10))  # where the signal handler runs
            raise raised("of a tracer")

tracer, unraisable = Tracer(), []
sys.unraisablehook = lambda found: unraisable.append(found.exc_type)
_core._set_tracer(tracer)
m.register("{ENGLISH}", {str(FIXTURES / "bert_plain")!r})
m.register("writer", {str(FIXTURES / "gpt2")!r}, kind="generator")
calls = {{
    "cached": embed,
    "batch": lambda: m.embed(["hello", "a new text"], "{ENGLISH}"),
    "chunks": lambda: m.embed_chunks("hello you", "{ENGLISH}"),
    "outputs": lambda: m.embed("hello", "{ENGLISH}", outputs=("dense", "multi")),
    "answer": lambda: m.complete("hello", "writer", max_new_tokens=2),
    "stream": lambda: list(m.stream("hello", "writer", max_new_tokens=2)),
}}
for name, call in calls.items():
    call()
    tracer.raises = KeyboardInterrupt
    assert interrupted(call), name
    assert tracer.raises is None, name
    tracer.raises = ValueError
    call()
    assert (tracer.raises, unraisable) == (None, [ValueError]), name
    unraisable.clear()
m.unload("{ENGLISH}")
tracer.raises = KeyboardInterrupt
assert interrupted(lambda: m.load("{ENGLISH}"))
m.load("{ENGLISH}")
"""
    )
