"""Tests in a new process: import, exit, interrupts, forks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run_python, tiny

pytestmark = pytest.mark.chaos

HEAVY = {"numpy", "asyncio", "multiprocessing", "tqdm", "torch", "unittest", "inspect", "ssl", "socket", "subprocess"}

MANAGER = """
import sys, os, threading, time
from conftest import tiny, ENGLISH_TEXT, TURKISH_TEXT, DIMENSION
"""


@pytest.fixture(autouse=True)
def _linux_only_where_needed():
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")


def test_importing_loads_nothing_heavy():
    process = run_python(
        "import sys; before = set(sys.modules); import model_manager; print(*(set(sys.modules) - before), sep='\\n')"
    )
    loaded = {name.split(".")[0] for name in process.stdout.split()}
    assert "model_manager" in loaded
    assert not loaded & HEAVY


def test_importing_takes_little_beyond_the_interpreter_itself():
    """`make bench-peers` measures the time; this test limits the imported modules to logging and its imports."""
    process = run_python(
        "import sys; before = set(sys.modules)\n"
        "import model_manager.chatbot\n"
        "print(*(set(sys.modules) - before), sep='\\n')"
    )
    others = {name for name in process.stdout.split() if not name.startswith("model_manager")}
    assert {name.split(".")[0] for name in others} <= sys.stdlib_module_names
    assert len(others) < 50, sorted(others)


def test_importing_starts_no_threads_and_loads_no_model():
    run_python(
        "import os; from model_manager import model_manager\n"
        "assert len(os.listdir('/proc/self/task')) == 1\n"
        "assert not any(map(model_manager.is_loaded, model_manager.slots()))"
    )


def test_ctrl_c_during_the_import_of_numpy_is_an_interrupt():
    run_python(
        MANAGER
        + """
import numpy

# Its C API, which the core imports for its first array.
API = next(name for name in ("numpy._core.multiarray", "numpy.core.multiarray") if name in sys.modules)


class Interrupting:
    left = 1

    def find_spec(self, name, path=None, target=None):
        if name == API and self.left:
            self.left -= 1
            raise KeyboardInterrupt


m = tiny()
del sys.modules[API]
sys.meta_path.insert(0, Interrupting())
try:
    m.embed(["a text", "another"], "english_sentence")
except KeyboardInterrupt:
    interrupted = True
assert interrupted
assert m.embed(["a text", "another"], "english_sentence").shape == (2, DIMENSION)
"""
    )


def test_a_hit_needs_no_second_import_of_numpy_and_lists_need_none():
    run_python(MANAGER + "m = tiny(); m.generate_embedding('a text'); m.route('a text'); m.get_model_info()")


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "sys.exit(0)",
        "m.close()",
        "m.unload_all()",
        "threading.Thread(target=m.embed, args=(['x'] * 5000,)).start()",
    ],
)
def test_the_interpreter_ends_cleanly(ending):
    process = run_python(MANAGER + f"m = tiny(auto_cleanup=True)\nm.embed([ENGLISH_TEXT, 'çok güzel'])\n{ending}")
    assert process.stderr == ""


def test_the_interpreter_ends_while_a_daemon_thread_embeds():
    code = (
        MANAGER
        + """
m = tiny(cache_size=0)
m.load("english_sentence")
def work():
    while True:
        m.embed([f"text {n}" for n in range(50)], "english_sentence")
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
"""
    )
    process = run_python(code)
    assert "Fatal" not in process.stderr
    assert "panic" not in process.stderr


def test_exit_while_a_model_loads():
    run_python(
        MANAGER
        + """
m = tiny()
release = threading.Event()
m.register("slow", loader=lambda: release.wait(3))
threading.Thread(target=lambda: m.load("slow"), daemon=True).start()
time.sleep(0.1)
"""
    )


def interrupted(code, after=0.5):
    """Send SIGINT `after` seconds after `ready` was printed; (exit code, stdout, stderr). It ends in 30 seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "python"), *sys.path])},
    )
    assert process.stdout.readline().strip() == "ready"
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize("after", [0.02, 0.5])
def test_ctrl_c_stops_a_long_embed(after):
    """Early, the handler runs inside the logging of the first text that is cut."""
    code, out, err = interrupted(
        MANAGER
        + """
m = tiny(cache_size=0)
m.load("english_sentence")
texts = [f"{n} " + "many words " * 30 for n in range(1_000_000)]
print("ready", flush=True)
try:
    m.embed(texts, "english_sentence")
except KeyboardInterrupt:
    print("interrupted", m.embed("still alive").shape)
""",
        after,
    )
    assert (code, out) == (0, "interrupted (32,)\n"), err


class Interrupting:
    """Raises in the check for mappings, which runs Python's code, as a Ctrl-C that comes there does."""

    @property
    def __class__(self):
        raise KeyboardInterrupt

    def __iter__(self):
        return iter(["a"])


@pytest.mark.parametrize("make", [Interrupting, lambda: [Interrupting()]], ids=["texts", "one text"])
def test_ctrl_c_while_an_argument_is_looked_at_is_raised(make):
    with tiny() as manager, pytest.raises(KeyboardInterrupt):
        manager.embed(make())


@pytest.mark.parametrize(
    "call",
    [
        lambda writer: writer.generate([Interrupting()]),
        lambda writer: writer.generate([{"role": "user", "content": [Interrupting()]}]),
        lambda writer: writer.generate([{"role": "user", "content": "a", "key": Interrupting()}]),
        lambda writer: writer.generate([{"role": "user", "content": "a"}], chat_template_kwargs=Interrupting()),
        lambda writer: writer.generate("a", stop=Interrupting()),
        lambda writer: writer.register("other", "a", kind="embedding", prompts=Interrupting()),
    ],
    ids=["message", "part", "value", "variables", "stop", "prompts"],
)
def test_ctrl_c_while_an_argument_of_text_is_looked_at_is_raised(call):
    with tiny() as writer, pytest.raises(KeyboardInterrupt):
        call(writer)


def test_ctrl_c_stops_waiting_for_a_load():
    code, out, err = interrupted(
        MANAGER
        + """
m = tiny()
m.register("slow", loader=lambda: time.sleep(600))
print("ready", flush=True)
try:
    m.load("slow")
except KeyboardInterrupt:
    print("interrupted")
    sys.stdout.flush()
    os._exit(0)
"""
    )
    assert (code, out) == (0, "interrupted\n"), err


@pytest.mark.parametrize(
    "call", ["count_tokens(text, model='english_sentence')", "generate(text, max_new_tokens=1)", "embed([text, text])"]
)
def test_ctrl_c_stops_tokenizing(call):
    code, out, err = interrupted(
        f"""
from generators import writer
m = writer(max_text_bytes=1 << 30, cache_size=0, language_detection=False)
m.count_tokens("warm", model="english_sentence")
text = "a, b! " * 10_000_000
m.load("text_generator")
print("ready", flush=True)
try:
    while True:
        m.{call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    )
    assert (code, out) == (0, "interrupted\n"), err


FORK = """
def check_child(work):
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: that is the point
        pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + 20
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, status
            return
        if time.monotonic() > end:
            os.kill(pid, 9)
            raise AssertionError("the child hangs")
        time.sleep(0.01)
"""


@pytest.mark.parametrize("loaded", [True, False])
def test_a_fork_works_on(loaded):
    run_python(
        MANAGER
        + FORK
        + f"""
import numpy as np
m = tiny(auto_cleanup=True)
if {loaded}:
    want = m.embed([ENGLISH_TEXT, TURKISH_TEXT])
m.register("mine", loader=dict)
numbers = [m._registration(name) for name in m.slots()]
def work():
    assert m.is_loaded("english_sentence") is {loaded}, "the child has the parent's models"
    assert [m._registration(name) for name in m.slots()] == numbers
    m.register("mine", loader=dict, replace=True)
    assert m._registration("mine") not in numbers
    got = m.embed(["a new text", ENGLISH_TEXT, TURKISH_TEXT])
    assert m.tracker.get_statistics()["last_access"].keys() == m.stats()["tracker"]["last_access"].keys() != set()
    assert got.shape == (3, DIMENSION)
    if {loaded}:
        np.testing.assert_allclose(got[1:], want, atol=1e-6)
    assert m.unload("english_sentence")
    m.set_auto_cleanup(True, 0.1, 0.1)
    m.embed("again")
    end = time.monotonic() + 30
    while m.is_loaded("english_sentence"):
        assert time.monotonic() < end
        time.sleep(0.01)
    m.close()
check_child(work)
check_child(work)
assert m.embed("the parent works on").shape == (DIMENSION,)
"""
    )


# Without the other tests' settings, which leave nothing of the environment.
BUILDING = """
import logging, os, threading, time
from model_manager import model_manager
started, seen = threading.Event(), []
class Handler(logging.Handler):
    def emit(self, record):
        started.set()
        time.sleep(NAP)
        seen.append((record.getMessage(), model_manager.is_loaded("english_sentence")))
handler = Handler()
logging.getLogger().addHandler(handler)
"""


def test_what_the_building_of_a_manager_logs_may_use_the_manager(tmp_path):
    (tmp_path / "file").write_text("")
    run_python(
        BUILDING.replace("NAP", "0")
        + """
model_manager.slots()
assert [loaded for message, loaded in seen if "nothing more is stored there" in message] == [False], seen
""",
        MODEL_MANAGER_CACHE_DISK=str(tmp_path / "file" / "cache"),
    )


def test_a_fork_while_another_thread_builds_the_manager(tmp_path):
    (tmp_path / "file").write_text("")
    run_python(
        FORK
        + BUILDING.replace("NAP", "0.5")
        + """
thread = threading.Thread(target=model_manager.slots)
thread.start()
assert started.wait(20)
def work():
    logging.getLogger().removeHandler(handler)
    assert "english_sentence" in model_manager.slots()
check_child(work)
thread.join()
assert "english_sentence" in model_manager.slots()
""",
        MODEL_MANAGER_CACHE_DISK=str(tmp_path / "file" / "cache"),
    )


def test_a_child_unloads_idle_models_as_its_parent_was_set_to():
    run_python(
        MANAGER
        + FORK
        + """
m = tiny(auto_cleanup=True)
m.set_auto_cleanup(False, 100, 50)
def work():
    assert m.auto_cleanup == m_settings, (m.auto_cleanup, m_settings)
m_settings = m.auto_cleanup
check_child(work)
"""
    )


def test_a_request_under_way_stays_with_the_parent():
    run_python(
        MANAGER
        + FORK
        + """
from model_manager.errors import ForkedError
m = tiny(cache_size=0)
ticket = m.submit([f"text {n}" for n in range(100_000)], print, "english_sentence")
def work():
    try:
        print(ticket.done)
    except ForkedError as error:
        assert "made before this process was forked" in str(error)
    else:
        raise AssertionError("it seems to go on")
check_child(work)
assert ticket.cancel()
assert ticket.done
"""
    )


def test_a_fork_while_threads_embed_and_load():
    run_python(
        MANAGER
        + FORK
        + """
m = tiny(cache_size=0)
m.load("english_sentence")
stop = threading.Event()
def busy(n):
    step = 0
    while not stop.is_set():
        step += 1
        m.embed([f"{n} {step} {k}" for k in range(20)], "english_sentence")
        if step % 5 == 0:
            m.unload("turkish_sentence")
            m.load("turkish_sentence")
threads = [threading.Thread(target=busy, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
def work():
    for n in range(3):
        assert m.embed([f"child {n}", TURKISH_TEXT]).shape == (2, DIMENSION)
try:
    for _ in range(10):
        check_child(work)
        time.sleep(0.01)
finally:
    stop.set()
    for thread in threads:
        thread.join()
"""
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method):
    code = f"""
import multiprocessing, sys, warnings
from conftest import tiny, ENGLISH_TEXT
def shape(manager):
    return manager.embed(ENGLISH_TEXT).shape
if __name__ == "__main__":
    m = tiny()
    m.embed("in the parent")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("{method}").Pool(2) as pool:
            print(pool.map(shape, [m, m]))
"""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(code)
        process = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "python")},
        )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "[(32,), (32,)]"


def test_log_records_arrive_in_logging():
    process = run_python(
        MANAGER
        + """
import logging
logging.basicConfig(level=logging.INFO, format="%(name)s|%(levelname)s|%(message)s", stream=sys.stdout)
m = tiny()
m.load("english_sentence")
m.unload("english_sentence")
"""
    )
    assert re.search(r"^model_manager\S*\|INFO\|.*english_sentence", process.stdout, re.MULTILINE)
    assert process.stderr == "", "nothing prints by itself"
