"""When a model is in memory: loading once, waiting, keep-alive, unloading."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import subprocess
import sys
import threading
import time
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import DIMENSION, ENGLISH_MODEL, ENGLISH_TEXT, FIXTURES, TURKISH_TEXT, in_threads
from generators import GPT2
from model_manager import ModelManager
from model_manager.errors import (
    ClosedError,
    InputError,
    LoaderError,
    OverloadedError,
    UnknownModelError,
    WaitTimeoutError,
)


class Thing:
    """An object of a loader that supports weak references."""


@pytest.fixture
def small_switch_interval():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def until(condition, seconds=10.0):
    """Wait for another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


def test_racing_threads_share_one_load(make_manager, small_switch_interval):
    manager = make_manager()
    results = in_threads(64, lambda n: manager.embed(f"text {n}", "english_sentence").shape)
    assert results == [(DIMENSION,)] * 64
    assert manager.tracker.get_statistics()["load_counts"] == {"english_sentence": 1}


def test_racing_threads_share_one_call_of_a_loader(manager, small_switch_interval):
    calls = []

    def load():
        calls.append(threading.current_thread())
        time.sleep(0.1)
        return Thing()

    manager.register("mine", loader=load)
    results = in_threads(32, lambda n: manager.get("mine"))
    assert len(calls) == 1
    assert set(map(id, results)) == {id(results[0])}
    assert isinstance(results[0], Thing)


def test_a_failing_load_is_told_to_all_and_then_tried_again(manager, small_switch_interval):
    calls = []

    def load():
        calls.append(1)
        time.sleep(0.1)
        if len(calls) == 1:
            raise LookupError("not yet")
        return Thing()

    manager.register("mine", loader=load)
    errors = in_threads(16, lambda n: manager.get("mine"))
    assert len(calls) == 1
    for error in errors:
        assert isinstance(error, LoaderError)
        assert isinstance(error.__cause__, LookupError)
        assert "not yet" in str(error)
    assert isinstance(manager.get("mine"), Thing)


def test_a_cause_belongs_to_its_own_failure(manager):
    answers = iter([LookupError("first"), None, ValueError("third")])

    def load():
        answer = next(answers)
        if answer is not None:
            raise answer

    manager.register("mine", loader=load)
    for cause in (LookupError, type(None), ValueError):
        with pytest.raises(LoaderError) as error:
            manager.get("mine")
        assert isinstance(error.value.__cause__, cause)


def test_loaders_that_need_each_other_are_refused(manager):
    running = threading.Barrier(2)

    def needs(other):
        def load():
            running.wait(10)
            return manager.get(other)

        return load

    manager.register("first", loader=needs("second"))
    manager.register("second", loader=needs("first"))
    for error in in_threads(2, lambda n: manager.get(("first", "second")[n])):
        assert isinstance(error, LoaderError)
        assert "loaders wait for each other" in str(error)
        assert '"first" needs "second"' in str(error)
    # One that needs another works.
    manager.register("second", loader=Thing, replace=True)
    running = threading.Barrier(1)
    assert isinstance(manager.get("first"), Thing)


def test_racing_load_and_unload(make_manager, small_switch_interval):
    manager = make_manager(cache_size=0)

    def work(n):
        for step in range(15):
            if n % 4 == 0:
                manager.unload("english_sentence")
            else:
                assert manager.embed(f"{n} {step}", "english_sentence").shape == (DIMENSION,)
        return True

    assert in_threads(12, work) == [True] * 12


def test_waiting_ends_at_the_timeout_and_the_load_goes_on(manager):
    go_on = threading.Event()
    manager.register("slow", loader=lambda: go_on.wait(60) and Thing())
    for call in (manager.load, manager.get):
        with pytest.raises(WaitTimeoutError, match="slow"):
            call("slow", timeout=0.05)
    with pytest.raises(TimeoutError):
        manager.warmup(["slow"], timeout=0.05)
    assert manager.stats()["slots"]["slow"]["state"] == "loading"
    go_on.set()
    assert isinstance(manager.get("slow", timeout=50), Thing)


def test_the_settings_timeout_is_the_default(make_manager):
    manager = make_manager(load_timeout=0.05)
    go_on = threading.Event()
    manager.register("slow", loader=lambda: go_on.wait(60) and Thing())
    with pytest.raises(WaitTimeoutError):
        manager.get("slow")
    go_on.set()


def test_other_threads_run_while_one_waits(manager):
    go_on = threading.Event()
    manager.register("slow", loader=lambda: go_on.wait(60) and Thing())
    waiter = threading.Thread(target=manager.load, args=("slow",))
    waiter.start()
    until(lambda: manager.stats()["slots"]["slow"]["state"] == "loading")
    assert manager.embed(ENGLISH_TEXT).shape == (DIMENSION,)
    go_on.set()
    waiter.join(50)
    assert manager.is_loaded("slow")


def test_a_slow_load_does_not_hold_up_another_model(manager):
    go_on = threading.Event()
    manager.register("slow", loader=lambda: go_on.wait(60) and Thing())
    with pytest.raises(TimeoutError):
        manager.load("slow", timeout=0.01)
    manager.load("english_sentence", timeout=50)
    go_on.set()


def test_unload(manager):
    assert manager.unload("english_sentence") is False
    manager.load("english_sentence")
    assert manager.is_loaded("english_sentence")
    assert manager.unload("english_sentence") is True
    assert not manager.is_loaded("english_sentence")
    assert manager.embed(ENGLISH_TEXT).shape == (DIMENSION,)
    manager.load("turkish_sentence")
    assert manager.unload_all() == 2


def test_unload_lets_an_own_object_go(manager):
    manager.register("mine", loader=Thing)
    reference = weakref.ref(manager.get("mine"))
    gc.collect()
    assert reference() is manager.peek("mine")
    manager.unload("mine")
    until(lambda: gc.collect() or reference() is None)


def test_unregister(manager):
    manager.register("mine", loader=Thing)
    manager.load("mine")
    manager.unregister("mine")
    assert "mine" not in manager.slots()
    with pytest.raises(KeyError):
        manager.get("mine")
    for name in ("turkish_sentence", "english_sentence", "text_generator"):
        with pytest.raises(InputError, match=name):
            manager.unregister(name)


def test_a_registration_has_a_number_of_its_own(make_manager):
    manager = make_manager()
    names = ["turkish_sentence", "english_sentence", "text_generator", "reranker"]
    manager.register("mine", loader=Thing)
    numbers = {name: manager._registration(name) for name in [*names, "mine"]}
    manager.get("mine")
    manager.unload("mine")
    assert {name: manager._registration(name) for name in numbers} == numbers
    manager.register("mine", loader=Thing, replace=True)
    again = manager._registration("mine")
    manager.unregister("mine")
    with pytest.raises(UnknownModelError, match="mine"):
        manager._registration("mine")
    manager.register("mine", loader=Thing)
    found = [*numbers.values(), again, manager._registration("mine"), make_manager()._registration("text_generator")]
    assert len(set(found)) == len(found)


def test_a_slot_that_is_found_to_write_text_keeps_its_number(manager, tmp_path):
    manager.register("late", str(tmp_path / "model"))
    assert manager.stats()["slots"]["late"]["kind"] == "embedding", "nothing says what it is"
    number = manager._registration("late")
    shutil.copytree(GPT2, tmp_path / "model")
    assert manager.generate("a", "late", max_new_tokens=1)
    assert manager.stats()["slots"]["late"]["kind"] == "generator"
    assert manager._registration("late") == number


def test_idle_models_leave_without_a_further_call(make_manager):
    manager = make_manager(auto_cleanup=True, cleanup_interval=60, max_idle_time=0.3)
    manager.embed(ENGLISH_TEXT)
    assert manager.is_loaded("english_sentence")
    until(lambda: not manager.is_loaded("english_sentence"))
    assert manager.tracker.get_statistics()["unload_counts"] == {"english_sentence": 1}
    assert manager.last_cleanup_seconds < 30


def test_use_keeps_a_model(make_manager):
    manager = make_manager(auto_cleanup=True, max_idle_time=0.6, cache_size=0)
    uses = []
    for _ in range(8):
        manager.embed(ENGLISH_TEXT)
        uses.append(time.monotonic())
        time.sleep(0.15)
    # On a machine that stood still for so long there was no use.
    if max(after - before for before, after in pairwise(uses)) < 0.5:
        assert manager.tracker.get_statistics()["load_counts"] == {"english_sentence": 1}


def test_auto_cleanup_can_be_switched_on_and_off(make_manager):
    manager = make_manager()
    manager.embed(ENGLISH_TEXT)
    time.sleep(0.3)
    assert manager.is_loaded("english_sentence")
    manager.set_auto_cleanup(True, 0.1, 0.2)
    until(lambda: not manager.is_loaded("english_sentence"))
    manager.set_auto_cleanup(False)
    manager.load("english_sentence")
    time.sleep(0.4)
    assert manager.is_loaded("english_sentence")


@pytest.mark.parametrize("arguments", [(True, 0), (True, -1), (True, 300, 0), (True, float("nan"))])
def test_auto_cleanup_checks_its_arguments(manager, arguments):
    with pytest.raises(ValueError, match=r"cleanup_interval|max_idle_time"):
        manager.set_auto_cleanup(*arguments)


def test_keep_alive_of_a_slot(make_manager):
    manager = make_manager(auto_cleanup=True, max_idle_time=600)
    manager.register("short", ENGLISH_MODEL, keep_alive="200ms")
    manager.register("never", ENGLISH_MODEL, keep_alive=0)
    manager.register("ever", ENGLISH_MODEL, keep_alive=-1)
    for name in ("short", "never", "ever"):
        manager.embed(ENGLISH_TEXT, name)
    until(lambda: not manager.is_loaded("never"))
    until(lambda: not manager.is_loaded("short"))
    assert manager.is_loaded("ever")


def test_keep_alive_of_a_call(make_manager):
    manager = make_manager(auto_cleanup=True, max_idle_time=600, cache_size=0)
    manager.embed(ENGLISH_TEXT, keep_alive=0)
    until(lambda: not manager.is_loaded("english_sentence"))
    manager.embed(ENGLISH_TEXT, keep_alive="5m")
    assert manager.is_loaded("english_sentence")
    manager.embed(ENGLISH_TEXT, keep_alive=0.1)
    until(lambda: not manager.is_loaded("english_sentence"))


@pytest.mark.parametrize("keep_alive", ["soon", "5 parsecs", float("nan"), ""])
def test_impossible_keep_alive(manager, keep_alive):
    with pytest.raises(ValueError, match="keep_alive"):
        manager.embed(ENGLISH_TEXT, keep_alive=keep_alive)


def test_pinned_models_stay(make_manager):
    manager = make_manager(auto_cleanup=True, max_idle_time=0.1, cleanup_interval=0.1)
    manager.register("pinned", ENGLISH_MODEL, pinned=True)
    manager.embed(ENGLISH_TEXT, "pinned")
    manager.embed(ENGLISH_TEXT, "english_sentence")
    until(lambda: not manager.is_loaded("english_sentence"))
    assert manager.is_loaded("pinned")
    assert manager.unload("pinned")


def test_cleanup_idle_by_hand(make_manager):
    manager = make_manager(auto_cleanup=True, max_idle_time=60)
    manager.embed(ENGLISH_TEXT)
    assert manager.cleanup_idle() == 0
    assert manager.is_loaded("english_sentence"), "not idle for long enough"
    assert manager.last_cleanup_seconds < 5


def test_levels_of_the_log_may_change_at_any_time(manager, caplog):
    log = logging.getLogger("model_manager")
    for level, heard in [(logging.ERROR, False), (logging.NOTSET, True), (logging.ERROR, False)]:
        caplog.clear()
        before = log.level
        log.setLevel(level)
        try:
            manager.register("model", "/no/such/model", fallback=[ENGLISH_MODEL], replace=True)
            manager.load("model")
        finally:
            log.setLevel(before)
        assert ("/no/such/model" in caplog.text) == heard


def test_fallback_chain(manager, caplog):
    manager.register("model", "/no/such/model", fallback=["/no/such/other", ENGLISH_MODEL], dtype="float32")
    vector = manager.embed(ENGLISH_TEXT, "model")
    assert vector.tolist() == manager.embed(ENGLISH_TEXT, "english_sentence").tolist()
    assert manager.describe("model")["source"] == ENGLISH_MODEL
    assert "/no/such/model" in caplog.text
    assert "/no/such/other" in caplog.text


def test_when_the_whole_chain_fails_the_first_error_comes_out(make_manager):
    manager = make_manager(turkish_model="/no/such/turkish", english_model="/no/such/english")
    with pytest.raises(FileNotFoundError, match="/no/such/turkish"):
        manager.embed(TURKISH_TEXT)


def test_a_load_timeout_ends_no_call_whose_model_is_loaded(make_manager):
    manager = make_manager(load_timeout=0.02, cache_size=0)
    manager.load("english_sentence", timeout=60)
    # Few enough to be queued at once, and some 0.1 s of work.
    texts = [f"{'word ' * 400}{number}" for number in range(64)]
    assert manager.embed(texts, "english_sentence").shape == (64, DIMENSION)
    assert asyncio.run(manager.aembed(texts, "english_sentence")).shape == (64, DIMENSION)
    with pytest.raises(WaitTimeoutError, match="the result of 64 inputs"):
        manager.embed(texts, "english_sentence", timeout=0.001)


def test_a_relative_folder_is_that_of_its_registration(manager, tmp_path, monkeypatch):
    shutil.copytree(ENGLISH_MODEL, tmp_path / "here" / "mod")
    shutil.copytree(FIXTURES / "bert_plain", tmp_path / "there" / "mod")
    monkeypatch.chdir(tmp_path / "here")
    manager.register("x", "mod")
    expected = manager.embed(ENGLISH_TEXT, "x")
    for folder in ("there", "here"):
        monkeypatch.chdir(tmp_path / folder)
        manager.unload("x")
        np.testing.assert_array_equal(manager.embed(ENGLISH_TEXT, "x"), expected)
        assert manager.describe("x")["source"] == str(tmp_path / "here" / "mod")
    with pytest.raises(InputError, match="lone surrogate"):
        manager.register("y", "\ud800")


def test_two_slots_with_the_same_files_share_the_weights(manager):
    manager.register("a", ENGLISH_MODEL, dtype="float32")
    manager.register("b", ENGLISH_MODEL, dtype="float32")
    manager.load("a")
    alone = manager.stats()["memory"]["models"]
    manager.load("b")
    assert manager.stats()["memory"]["models"] == alone
    manager.unload("a")
    assert manager.embed(ENGLISH_TEXT, "b").shape == (DIMENSION,)


def test_warm_up_loads_all_and_tells_the_first_failure(manager):
    manager.register("broken", "/no/such/model")
    with pytest.raises(FileNotFoundError, match="/no/such/model"):
        manager.warmup(["turkish_sentence", "broken", "english_sentence"])
    assert manager.is_loaded("turkish_sentence")
    assert manager.is_loaded("english_sentence")
    manager.warmup([])


def test_tracker_of_a_manager(manager):
    for _ in range(3):
        manager.load("english_sentence")
        manager.unload("english_sentence")
    statistics = manager.tracker.get_statistics()
    assert statistics["load_counts"] == {"english_sentence": 3}
    assert statistics["unload_counts"] == {"english_sentence": 3}
    assert statistics["bytes_returned"]["english_sentence"] >= 0
    assert 0 < statistics["load_time_p50"]["english_sentence"] <= statistics["load_time_p95"]["english_sentence"]
    assert manager.stats()["tracker"]["load_counts"] == {"english_sentence": 3}


def test_overload_is_told_quickly(make_manager):
    manager = make_manager(max_queue=50, cache_size=0)
    manager.load("english_sentence")
    answers, errors = [], []

    def send(n):
        texts = [f"{n} {m} " + "long text " * 20 for m in range(10)]
        try:
            manager.submit(texts, lambda *result: answers.append(result), "english_sentence")
        except OverloadedError as error:
            errors.append(str(error))

    for n in range(3000):
        send(n)
    until(lambda: len(answers) + len(errors) == 3000, 30)
    assert errors
    assert all("english_sentence" in error and "max_queue" in error for error in errors)
    assert all(error is None for _, error in answers)
    assert manager.stats()["queue"]["rejected"] == len(errors)
    assert manager.embed(ENGLISH_TEXT).shape == (DIMENSION,)


def test_more_texts_in_one_call_than_the_queue_holds(make_manager):
    manager = make_manager(max_queue=50, cache_size=0)
    assert manager.embed([f"text {n}" for n in range(500)], "english_sentence").shape == (500, DIMENSION)


def test_close(make_manager):
    manager = make_manager()
    manager.embed(ENGLISH_TEXT)
    assert manager.closed is False
    manager.close()
    manager.close()
    assert manager.closed is True
    for call in (lambda: manager.embed(ENGLISH_TEXT), lambda: manager.load("english_sentence")):
        with pytest.raises(ClosedError):
            call()
    assert manager.generate_embedding(ENGLISH_TEXT) == []
    assert "closed" in repr(manager)


def test_with_statement(make_manager):
    with make_manager() as manager:
        assert manager.embed(ENGLISH_TEXT).shape == (DIMENSION,)
    assert manager.closed
    with pytest.raises(ZeroDivisionError), make_manager():
        raise ZeroDivisionError


def test_closing_ends_the_threads(make_manager):
    def threads():
        return len(list(Path("/proc/self/task").iterdir()))

    with make_manager() as first:
        first.embed(ENGLISH_TEXT)
    before = threads()
    for _ in range(10):
        with make_manager(auto_cleanup=True) as manager:
            manager.embed(ENGLISH_TEXT)
            manager.embed(TURKISH_TEXT)
    until(lambda: threads() <= before + 1)


def test_a_forgotten_manager_is_freed(make_manager):
    manager = ModelManager(english_model=ENGLISH_MODEL, dtype="float32")
    manager.embed(ENGLISH_TEXT)
    reference = weakref.ref(manager)
    del manager
    gc.collect()
    assert reference() is None


def test_stats_are_json(manager):
    import json

    manager.embed([ENGLISH_TEXT, TURKISH_TEXT])
    stats = manager.stats()
    assert json.loads(json.dumps(stats)) == stats
    assert set(stats) == {
        "adaptive", "slots", "tracker", "cache", "queue", "memory", "threads", "isa", "device", "last_cleanup_seconds",
    }  # fmt: skip
    slot = stats["slots"]["english_sentence"]
    assert slot["state"] == "ready"
    assert slot["kind"] == "embedding"
    assert slot["bytes"] > 0
    assert slot["leases"] == 0
    assert slot["idle_seconds"] >= 0
    assert stats["slots"]["text_generator"]["state"] == "absent"
    assert stats["slots"]["text_generator"]["idle_seconds"] is None
    assert stats["queue"]["texts"] == 2
    assert stats["queue"]["tokens"] > 10
    assert stats["memory"]["resident"] > 1e6
    assert stats["memory"]["budget"] is None
    assert stats["threads"] >= 1


def test_closing_tells_the_log_without_holding_what_other_calls_need():
    """A handler needs the interpreter, so its calls must not wait for the thread that closes."""
    code = """
import logging, sys
from model_manager import ModelManager
from model_manager.errors import ClosedError

class Curious(logging.Handler):
    def emit(self, record):
        for call in (lambda: manager.route("a"), lambda: manager.is_loaded("model"), manager.cache_info):
            try:
                call()
            except ClosedError:
                refused.append(record.getMessage())

refused = []
manager = ModelManager(cache_size=10)
manager.register("model", sys.argv[1])
manager.embed("a text", "model")
logging.getLogger("model_manager").setLevel(logging.DEBUG)
logging.getLogger("model_manager").addHandler(Curious())
manager.close()
assert len(refused) >= 3, refused
assert 'unloaded' in refused[0], refused
"""
    done = subprocess.run([sys.executable, "-c", code, ENGLISH_MODEL], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
