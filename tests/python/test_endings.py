"""All ways in which a manager ends: dropped, closed, at exit, and while logging handlers call back into it.

Each case runs in a process of its own: what it guards against is a process that hangs.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest
from conftest import FIXTURES, run_python

SECONDS = 50
"""The timeout, in seconds, for work of one or two seconds."""

START = """
import sys, os, gc, threading, time, logging, random
from conftest import tiny, ENGLISH_TEXT, TURKISH_TEXT
from generators import writer, SLOT

def spin(seconds):
    "Waits without letting go of the interpreter: what comes next meets whatever a thread is doing."
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass

class Handler(logging.Handler):
    "Calls `then` with every record of the package, under its own lock."
    def __init__(self, then):
        super().__init__()
        self.then = then
    def emit(self, record):
        self.then(record)

def handle(then):
    logger = logging.getLogger("model_manager")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(Handler(then))
    logger.propagate = False
"""


def run(code, **options):
    return run_python(START + code, timeout=SECONDS, **options)


def test_a_manager_is_dropped_while_its_model_is_unloaded():
    """The thread that unloads idle models logs to Python when the destructor runs."""
    run("""
for n in range(10):
    m = tiny(auto_cleanup=True, keep_alive="3ms")
    m.embed("hello world")
    spin(0.0006 * n)
    del m
    gc.collect()
""")


def test_a_manager_is_dropped_while_generations_run_out_of_time():
    """The thread that watches the time calls Python when the destructor runs."""
    run("""
chance = random.Random(7)
for n in range(10):
    m = writer()
    for _ in range(4):
        limit = chance.choice([0.001, 0.005, 0.02])
        m.submit_generation("Merhaba", lambda *event: None, max_new_tokens=30, timeout=limit)
    spin(chance.random() * 0.06)
    del m
    gc.collect()
""")


def test_a_manager_is_dropped_under_the_lock_of_a_logging_handler():
    """Python's garbage collector may run anywhere, also in a handler that the manager's threads wait for."""
    run("""
def then(record):
    if threading.current_thread() is threading.main_thread():
        trash.clear()
        gc.collect()
        spin(0.01)
trash = []
handle(then)
for n in range(10):
    trash.append(tiny(auto_cleanup=True, keep_alive="3ms"))
    trash[0].embed("hello world")
    spin(0.0006 * n)
    logging.getLogger("model_manager").info("from the main thread")
    assert not trash
""")


def test_a_dropped_manager_gives_its_models_back():
    run("""
m = tiny(auto_cleanup=False)
m.load("english_sentence")
tracker = m.tracker
del m
gc.collect()
end = time.monotonic() + 30
while not tracker.get_statistics()["unload_counts"]["english_sentence"]:
    assert time.monotonic() < end
    time.sleep(0.001)
def roles():
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/comm") as file:
                yield file.read()
        except OSError:
            pass  # it ended meanwhile
while any(name.startswith("mm-") and not name.startswith("mm-compute") for name in roles()):
    assert time.monotonic() < end, "its threads end as well"
    time.sleep(0.001)
""")


@pytest.mark.parametrize("keep_alive", ["0s", "3ms"])
def test_streams_and_tickets_are_dropped_half_way(keep_alive):
    run(f"""
for n in range(6):
    m = writer(auto_cleanup=True, keep_alive="{keep_alive}")
    stream = m.stream("Merhaba", max_new_tokens=40, min_new_tokens=40)
    next(stream)
    ticket = m.submit(["a text", "another"], lambda *result: None, model="english_sentence")
    asked = m.submit_generation("Merhaba", lambda *event: None, max_new_tokens=20)
    spin(0.002 * n)
    del stream, m
    gc.collect()
    del ticket, asked
""")


def test_a_ticket_knows_its_end_after_everything_else_is_gone():
    run("""
m = tiny()
reported = threading.Event()
ticket = m.submit("a text", lambda *result: reported.set(), model="english_sentence")
assert reported.wait(30)
del m
gc.collect()
assert ticket.done
assert ticket.cancel() is False
""")


@pytest.mark.parametrize("call", ["close()", "unload_all()", "stats()", "cleanup_idle()"])
def test_a_logging_handler_calls_back(call):
    """From any logging thread, including the reaper's, under the handler's lock, with concurrent calls."""
    run(f"""
from model_manager.errors import ClosedError
inside = threading.local()
def then(record):
    if getattr(inside, "now", False):
        return
    inside.now = True
    try:
        m.{call}
    except ClosedError:
        pass
    finally:
        inside.now = False
for n in range(4):
    m = tiny(auto_cleanup=True, keep_alive="2ms")
    if n == 0:
        handle(then)
    def work():
        try:
            for k in range(20):
                m.embed(f"text {{k}}")
                spin(0.001)
        except ClosedError:
            pass
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    m.close()
    for thread in threads:
        thread.join()
""")


@pytest.mark.parametrize("logs", ["pooling", "tokenizer"])
def test_a_logging_handler_uses_another_name_of_the_model_that_is_loaded(tmp_path, logs):
    """The load logs on its own thread, or on that of the tokenizer."""
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / ("qwen3" if logs == "pooling" else "bert_cls"), folder)
    if logs == "tokenizer":
        file = folder / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        tokenizer["added_tokens"][0]["id"] += 1
        file.write_text(json.dumps(tokenizer))
    options = 'kind="embedding", pooling="lasttoken", chat_template=False' if logs == "pooling" else ""
    run(f"""
said = []
m = tiny()
for name in "ab":
    m.register(name, {str(folder)!r}, {options})
def then(record):
    if not said:
        said.append(record.getMessage())
        m.embed("hello world", "b")
handle(then)
# What the other thread logs would wait for the handler's own lock.
logging.getLogger("model_manager").setLevel(logging.WARNING)
thread = threading.Thread(target=m.embed, args=("hello world", "a"), daemon=True)
thread.start()
thread.join(30)
assert not thread.is_alive(), "a hang"
assert {"end token" if logs == "pooling" else "should have the id"!r} in said[0], said
""")


def test_two_threads_close_while_a_handler_closes():
    run("""
def then(record):
    m.close()
handle(then)
for n in range(3):
    m = tiny(auto_cleanup=True, keep_alive="1ms")
    m.embed("hello world")
    threads = [threading.Thread(target=m.close) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
""")


def test_the_destructor_of_a_loaders_object_calls_back():
    run("""
class Loader:
    def __call__(self):
        return object()
    def __del__(self):
        m.register("other", loader=object, replace=True)
        m.unload("other")
m = tiny()
for _ in range(3):
    m.register("mine", loader=Loader(), replace=True)
    m.load("mine")
m.unregister("mine")
gc.collect()
m.close()
""")


def test_a_signal_handler_closes_while_the_manager_is_built():
    run("""
import signal
from model_manager import model_manager
closed = []
signal.signal(signal.SIGALRM, lambda *_: closed.append(model_manager.close()))
get = os.environ.get
def slow(name, default=None):
    os.environ.get = get
    signal.setitimer(signal.ITIMER_REAL, 0.0001)
    spin(0.01)
    return get(name, default)
os.environ.get = slow
assert SLOT in model_manager.slots()
assert closed
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_managers_are_dropped():
    run(
        """
for n in range(5):
    m = tiny(auto_cleanup=True, keep_alive="2ms")
    m.embed("hello world")
    kept = tiny()
    kept.load("english_sentence")
    spin(0.0008 * n)
    del m
    gc.collect()
    pid = os.fork()
    if pid == 0:
        kept.embed("in the child")
        kept.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    kept.close()
"""
    )


@pytest.mark.parametrize("busy", ["sum(range(1000))", "time.sleep(0.0005)"])
def test_exit_while_a_loader_runs_python(busy):
    """The loader's thread runs Python code when the interpreter ends."""
    process = run(
        f"""
m = tiny()
def load():
    while True:
        {busy}
m.register("slow", loader=load)
def ask():
    m.load("slow")
threading.Thread(target=ask, daemon=True).start()
time.sleep(0.05)
class Last:
    def __del__(self):
        time.sleep(0.2)
import builtins
builtins.last = Last()
""",
        check=False,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("what", ["tiny(auto_cleanup=True, keep_alive='3ms')", "writer(keep_alive='3ms')"])
def test_exit_while_everything_is_busy(what):
    process = run(f"""
m = {what}
handle(lambda record: time.sleep(0.001))
def embed():
    while True:
        m.embed(["a text", "another"], "english_sentence")
        time.sleep(0.003)
def close():
    time.sleep(0.1)
    m.close()
for target in (embed, embed, close):
    threading.Thread(target=target, daemon=True).start()
if m.config.generator_model.endswith("gpt2"):
    for _ in range(3):
        m.submit_generation("Merhaba", lambda *event: None, max_new_tokens=50, min_new_tokens=50)
time.sleep(0.099)
""")
    assert "Fatal" not in process.stderr
    assert "panic" not in process.stderr
