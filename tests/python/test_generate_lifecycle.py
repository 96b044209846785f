"""A generator is loaded, shared, unloaded and forked like every other model."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import FIXTURES, run_python
from generators import GREEDY, SLOT, WITHOUT_END, eventually, figures
from model_manager.errors import ClosedError, MemoryBudgetError, NoGeneratorError, WaitTimeoutError

TEXT = "Merhaba dünya"


def test_it_loads_at_its_first_use(make_writer):
    manager = make_writer()
    assert manager._text_generator_model is None
    assert manager.get_model_info()["text_generator_loaded"] is False
    assert manager.stats()["slots"][SLOT]["kind"] == "generator"
    assert manager.stats()["slots"][SLOT]["generation"] is None
    manager.generate(TEXT, max_new_tokens=3)
    assert repr(manager._text_generator_model) == "<TextGenerator 'text_generator', loaded>"
    info = manager.get_model_info()
    assert info["text_generator_loaded"] is True
    assert info["model_config"] == {"text_generator_model": str(FIXTURES / "gpt2")}
    assert manager.get_lazy_loading_statistics()["current_state"]["models_loaded"][SLOT] is True


def test_racing_threads_load_it_once(make_writer):
    manager = make_writer()
    gate = threading.Barrier(8)
    answers = []

    def work():
        gate.wait()
        answers.append(manager.generate(TEXT, **GREEDY, max_new_tokens=10))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 8
    assert len(set(answers)) == 1
    assert manager.tracker.get_statistics()["load_counts"] == {SLOT: 1}


def test_the_environment_names_the_model_anew_at_each_load():
    code = f"""
import os
from model_manager import model_manager
os.environ["HUGGINGFACE_MODEL"] = {str(FIXTURES / "gpt2")!r}
model_manager.load("text_generator")
first = model_manager.describe_generator()["path"]
os.environ["HUGGINGFACE_MODEL"] = {str(FIXTURES / "llama")!r}
model_manager.unload("text_generator")
print(first.endswith("gpt2"), model_manager.describe_generator()["path"].endswith("llama"))
"""
    assert run_python(code).stdout.split() == ["True", "True"]


def test_unloading_lets_the_answer_finish(endless):
    stream = endless.stream(TEXT, max_new_tokens=300, min_new_tokens=300)
    next(stream)
    assert endless.unload(SLOT) is True
    assert endless.is_loaded(SLOT) is False
    list(stream)
    assert stream.completion["completion_tokens"] == 300
    assert endless.generate(TEXT, max_new_tokens=3) is not None
    assert endless.tracker.get_statistics()["load_counts"][SLOT] == 2


async def test_unloading_lets_the_asynchronous_answer_finish(endless):
    stream = endless.astream(TEXT, max_new_tokens=300, min_new_tokens=300)
    await stream.__anext__()
    assert endless.unload(SLOT) is True
    assert [piece async for piece in stream]
    assert stream.completion["completion_tokens"] == 300
    assert await endless.agenerate(TEXT, max_new_tokens=3) is not None


@pytest.mark.parametrize("answers", [0, 1, 8])
def test_closing_ends_every_answer_of_racing_callers(make_writer, answers):
    """Before, during and after the load, calls of every kind finish or raise `ClosedError`."""
    manager = make_writer()
    length = {"max_new_tokens": 40, "min_new_tokens": 40}
    finished, closed = [], []
    start = threading.Barrier(7)

    def streamed():
        stream = manager.stream(TEXT, **length)
        list(stream)
        return stream.completion

    async def read():
        stream = manager.astream(TEXT, **length)
        assert [piece async for piece in stream]
        return stream.completion

    def submitted():
        events = queue.SimpleQueue()
        manager.submit_generation(TEXT, lambda *event: events.put(event), **length)
        while True:
            _, completion, error = events.get(timeout=30)
            if error is not None:
                raise error
            if completion is not None:
                return completion

    def work(ask):
        start.wait()
        try:
            while True:
                finished.append(ask())
        except ClosedError:
            closed.append(ask)

    threads = [
        threading.Thread(target=work, args=(ask,)) for ask in (streamed, lambda: asyncio.run(read()), submitted) * 2
    ]
    for thread in threads:
        thread.start()
    start.wait()
    eventually(lambda: len(finished) >= answers)
    manager.close()
    for thread in threads:
        thread.join(30)
    assert len(closed) == 6
    assert all(answer["finish_reason"] == "length" and len(answer["tokens"]) == 40 for answer in finished)


def test_keep_alive_zero_unloads_after_use(make_writer):
    manager = make_writer()
    manager.generate(TEXT, max_new_tokens=3, keep_alive=0)
    eventually(lambda: not manager.is_loaded(SLOT))
    stream = manager.stream(TEXT, max_new_tokens=3, keep_alive=0)
    assert manager.is_loaded(SLOT)
    list(stream)
    eventually(lambda: not manager.is_loaded(SLOT))


async def test_keep_alive_zero_of_asynchronous_calls(make_writer):
    manager = make_writer()
    await manager.agenerate(TEXT, max_new_tokens=3, keep_alive=0)
    eventually(lambda: not manager.is_loaded(SLOT))


def test_it_leaves_when_idle_and_comes_back(make_writer):
    manager = make_writer(auto_cleanup=True, max_idle_time=0.2)
    handle = manager.text_generator
    first = handle(TEXT, max_new_tokens=5)
    eventually(lambda: not manager.is_loaded(SLOT))
    assert repr(handle) == "<TextGenerator 'text_generator', not loaded>"
    assert handle(TEXT, max_new_tokens=5) == first


def test_an_answer_that_takes_longer_than_the_idle_time_is_not_interrupted(make_writer, endless_model):
    manager = make_writer(generator_model=str(endless_model), auto_cleanup=True, max_idle_time=0.05)
    answer = manager.complete(TEXT, max_new_tokens=2000, min_new_tokens=2000)
    assert answer["completion_tokens"] == 2000
    assert manager.tracker.get_statistics()["load_counts"][SLOT] == 1


def test_memory_in_the_figures(make_writer):
    manager = make_writer()
    manager.generate(TEXT, max_new_tokens=3)
    stats = manager.stats()
    size = manager.describe_generator()["bytes"]
    assert stats["slots"][SLOT]["bytes"] == size
    assert stats["memory"]["models"] == size
    assert stats["tracker"]["memory_usage"][SLOT] == pytest.approx(size / 2**20)
    manager.unload(SLOT)
    assert manager.stats()["memory"]["models"] == 0


def test_it_must_fit_the_budget(make_writer):
    manager = make_writer(memory_budget="10kB")
    with pytest.raises(MemoryBudgetError):
        manager.generate(TEXT)
    assert manager.text_generator is None


def test_it_makes_room_and_room_is_made_for_it(make_writer):
    with make_writer() as probe:
        probe.warmup([SLOT, "english_sentence"])
        sizes = probe.stats()["slots"]
        budget = max(sizes[SLOT]["bytes"], sizes["english_sentence"]["bytes"]) + 60_000
    manager = make_writer(memory_budget=budget)
    manager.embed("a text", "english_sentence")
    try:
        manager.generate(TEXT, max_new_tokens=3)
    except MemoryBudgetError:
        pytest.skip("the files are larger than the memory that they take")
    assert not manager.is_loaded("english_sentence")


def test_figures_of_work(make_writer):
    manager = make_writer()
    answers = [manager.complete(f"{TEXT} {number}", max_new_tokens=5, min_new_tokens=5) for number in range(4)]
    eventually(lambda: figures(manager)["completed"] == 4)
    done = figures(manager)
    assert done["requests"] == 4
    assert done["generated_tokens"] == 20
    assert done["prompt_tokens"] == sum(answer["prompt_tokens"] for answer in answers)
    assert done["reused_tokens"] == sum(answer["reused_tokens"] for answer in answers)
    assert done["busy_seconds"] > 0
    json.dumps(manager.stats())
    assert manager.unload(SLOT)
    eventually(lambda: figures(manager)["active"] == 0)
    now = ("active", "waiting", "kv_bytes", "prefix_bytes", "kv_limit")
    unloaded = figures(manager)
    assert unloaded == {**done, **dict.fromkeys(now, 0), "busy_seconds": unloaded["busy_seconds"]}
    manager.register(SLOT, source=str(FIXTURES / "llama"), kind="generator", replace=True)
    manager.generate(TEXT, max_new_tokens=3)
    eventually(lambda: figures(manager)["completed"] == 5)
    assert figures(manager)["requests"] == 5, "a replaced model goes on counting"


def test_a_load_that_takes_too_long(make_writer):
    manager = make_writer()
    release = threading.Event()
    manager.register("slow", loader=lambda: release.wait(20))
    with pytest.raises(WaitTimeoutError):
        manager.generate(TEXT, "slow", timeout=0.05)
    release.set()
    manager.load("slow")
    with pytest.raises(NoGeneratorError, match="loader"):
        manager.generate(TEXT, "slow")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_generates(make_writer):
    code = f"""
import os
from model_manager import ModelManager
manager = ModelManager(generator_model={str(FIXTURES / "gpt2")!r}, auto_cleanup=False)
expected = manager.generate({TEXT!r}, do_sample=False, max_new_tokens=20)
stream = manager.stream({TEXT!r}, max_new_tokens=50)
next(stream)
child = os.fork()
if child == 0:
    import asyncio
    from model_manager.errors import ForkedError
    try:
        next(stream)
        os._exit(2)
    except ForkedError as error:
        assert "before this process was forked" in str(error)
    assert next(stream, None) is None
    same = manager.generate({TEXT!r}, do_sample=False, max_new_tokens=20) == expected
    same &= asyncio.run(manager.agenerate({TEXT!r}, do_sample=False, max_new_tokens=20)) == expected
    os._exit(0 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
list(stream)
assert manager.generate({TEXT!r}, do_sample=False, max_new_tokens=20) == expected
print("both")
"""
    # Python 3.12 warns about forks with threads, which this test is about.
    assert run_python("import warnings; warnings.simplefilter('ignore')\n" + code).stdout == "both\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process")
@pytest.mark.parametrize("call", ["generate", "stream", "pipeline"])
def test_control_c_ends_a_long_answer(endless_model, call):
    work = {
        "generate": "manager.generate('a', **long)",
        "stream": "list(manager.stream('a', **long))",
        "pipeline": "manager.text_generator('a', **long)",
    }[call]
    code = f"""
from model_manager import ModelManager
long = {WITHOUT_END!r}
manager = ModelManager(generator_model={str(endless_model)!r}, auto_cleanup=False)
manager.load("text_generator")
try:
    print("ready", flush=True)
    {work}
except KeyboardInterrupt:
    done = manager.stats()["slots"]["text_generator"]["generation"]
    print(done["generated_tokens"] < 20_000, manager.generate("b", max_new_tokens=3) is not None, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "True True\n"
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
