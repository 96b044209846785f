"""`SemanticCache.get_or_compute`: of several callers that ask at once, one computes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import TURKISH_MODEL, tiny
from model_manager.semantic import SemanticCache

THREADS = 8
QUESTION = "Yemekhane nerede?"
PATIENCE = 20
"""Seconds that nothing here takes."""


@pytest.fixture(scope="module")
def embedding():
    with tiny() as manager:
        yield manager


@pytest.fixture(params=[False, True], ids=["memory", "file"])
def cache(embedding, request, tmp_path):
    path = tmp_path / "answers.db" if request.param else None
    with SemanticCache(embedding, TURKISH_MODEL, path=path) as cache:
        yield cache


@pytest.fixture
def waiting(cache, monkeypatch):
    """How many callers wait, or have waited, for a computation of another one."""
    entered, real = [], cache._flights.waiting

    @contextlib.contextmanager
    def counted(key):
        with real(key) as outcome:
            if outcome is not None:
                entered.append(key)
            yield outcome

    monkeypatch.setattr(cache._flights, "waiting", counted)
    return entered


def until(ready):
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.001)


async def auntil(ready):
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def outcome(call, *args):
    try:
        return call(*args)
    except BaseException as error:  # noqa: BLE001  what a thread would end with
        return error


def raced(cache, compute, count=THREADS):
    """The outcomes of so many threads that ask for one question at once."""
    start = threading.Barrier(count)

    def ask():
        start.wait(PATIENCE)
        return outcome(cache.get_or_compute, QUESTION, compute)

    with ThreadPoolExecutor(count) as pool:
        return [asked.result(PATIENCE) for asked in [pool.submit(ask) for _ in range(count)]]


def test_one_of_several_threads_computes(cache, waiting):
    calls = []

    def compute(question):
        calls.append(question)
        until(lambda: len(waiting) == THREADS - 1)
        assert not any(lock.locked() for lock in (cache._lock, cache._writing, cache._loading, cache._flights.lock))
        return {"answer": ["x"]}

    found = raced(cache, compute)
    assert calls == [QUESTION]
    assert found == [{"answer": ["x"]}] * THREADS
    # Each has its own.
    for answer in found:
        answer["answer"].append("y")
    assert found[0] == {"answer": ["x", "y"]}
    assert cache.get(QUESTION).answer == {"answer": ["x"]}


def test_threads_that_come_at_any_time_compute_once(cache):
    for number in range(20):
        cache.clear()
        calls = []
        assert raced(cache, lambda _, calls=calls, number=number: calls.append(1) or number) == [number] * THREADS
        assert calls == [1]


@pytest.mark.parametrize("error", [ValueError("no answer"), TypeError("neither")], ids=["value", "type"])
def test_an_error_is_that_of_all_who_wait(cache, waiting, error):
    calls = []

    def compute(_question):
        calls.append(1)
        until(lambda: len(waiting) == THREADS - 1)
        raise error

    assert raced(cache, compute) == [error] * THREADS
    assert calls == [1]
    assert cache.get_or_compute(QUESTION, str.upper) == QUESTION.upper(), "nothing was stored"


def test_an_answer_that_cannot_be_stored_is_an_error_of_all(cache, waiting):
    def compute(_question):
        until(lambda: len(waiting) == THREADS - 1)
        return iter([1])

    found = raced(cache, compute)
    assert {type(one) for one in found} == {TypeError}


def test_after_an_interrupt_another_one_computes(cache, waiting):
    calls = []

    def compute(_question):
        calls.append(1)
        if len(calls) == 1:
            until(lambda: len(waiting) == THREADS - 1)
            raise KeyboardInterrupt
        return "x"

    found = raced(cache, compute)
    assert sorted(map(str, found)) == ["", *["x"] * (THREADS - 1)]
    assert len(calls) == 2


def test_other_questions_do_not_wait(cache):
    inside = threading.Event()

    def compute(_question):
        # It ends after the other one has been computed.
        assert inside.wait(PATIENCE)
        return "x"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_compute, QUESTION, compute)
        other = pool.submit(cache.get_or_compute, "bambaşka bir soru", lambda _: inside.set() or "y")
        scoped = pool.submit(cache.get_or_compute, QUESTION, lambda _: "z", scope="tr")
        assert [one.result(PATIENCE) for one in (first, other, scoped)] == ["x", "y", "z"]


def test_a_computation_may_ask_for_its_own_question(cache):
    def compute(question):
        return "outer" if cache.get_or_compute(question, lambda _: "inner") == "inner" else "?"

    assert cache.get_or_compute(QUESTION, compute) == "outer"
    assert cache.get(QUESTION).answer == "outer"


def test_computations_that_ask_for_each_other_end(cache):
    both = threading.Barrier(2)
    others = {QUESTION: "bambaşka bir soru", "bambaşka bir soru": QUESTION}

    def compute(question):
        both.wait(PATIENCE)
        return cache.get_or_compute(others[question], lambda asked: f"own {asked}")

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(cache.get_or_compute, question, compute) for question in others]
        found = [one.result(PATIENCE) for one in asked]
    # The one that came second computed what it asked for itself, and the first one got the answer of the second.
    assert len(set(found)) == 1
    assert found[0] in {f"own {question}" for question in others}


def test_one_of_several_tasks_computes(cache, waiting):
    calls = []

    async def compute(question):
        calls.append(question)
        await auntil(lambda: len(waiting) == THREADS - 1)
        return ["x"]

    async def ask():
        return await asyncio.gather(*(cache.aget_or_compute(QUESTION, compute) for _ in range(THREADS)))

    found = asyncio.run(asyncio.wait_for(ask(), PATIENCE))
    assert calls == [QUESTION]
    assert found == [["x"]] * THREADS
    assert len({id(answer) for answer in found}) == THREADS


def test_after_a_cancelled_task_another_one_computes(cache, waiting):
    calls = []

    async def compute(_question):
        calls.append(asyncio.current_task())
        if len(calls) == 1:
            await asyncio.sleep(PATIENCE)
        return "x"

    async def ask():
        tasks = [asyncio.create_task(cache.aget_or_compute(QUESTION, compute)) for _ in range(4)]
        await auntil(lambda: len(waiting) == 3)
        calls[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(asyncio.wait_for(ask(), PATIENCE))
    assert sorted(type(one).__name__ for one in found) == ["CancelledError", "str", "str", "str"]
    assert len(calls) == 2


def test_a_caller_that_stops_waiting_disturbs_no_other(cache, waiting):
    go = threading.Event()

    def compute(_question):
        assert go.wait(PATIENCE)
        return "x"

    async def ask():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(cache.aget_or_compute(QUESTION, lambda _: pytest.fail("twice")), 0.05)

    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(cache.get_or_compute, QUESTION, compute)
        until(lambda: cache._flights.is_under_way(("", QUESTION)))
        asyncio.run(ask())
        assert waiting
        go.set()
        assert leader.result(PATIENCE) == "x"


def test_a_thread_waits_for_a_task_and_a_task_for_a_thread(cache, waiting):
    async def ask():
        async def compute(_question):
            await auntil(lambda: waiting)
            return "x"

        leader = asyncio.create_task(cache.aget_or_compute(QUESTION, compute))
        await auntil(lambda: cache._flights.is_under_way(("", QUESTION)))
        thread = asyncio.get_running_loop().run_in_executor(
            None, cache.get_or_compute, QUESTION, lambda _: pytest.fail("twice")
        )
        return await asyncio.gather(leader, thread)

    assert asyncio.run(asyncio.wait_for(ask(), PATIENCE)) == ["x", "x"]


def test_a_thread_with_an_event_loop_does_not_wait_for_its_tasks(cache):
    async def ask():
        begun, go = asyncio.Event(), asyncio.Event()

        async def compute(_question):
            begun.set()
            await go.wait()
            return "later"

        task = asyncio.create_task(cache.aget_or_compute(QUESTION, compute))
        await begun.wait()
        other = cache.get_or_compute(QUESTION, lambda _: "at once")
        go.set()
        return [other, await task]

    assert asyncio.run(asyncio.wait_for(ask(), PATIENCE)) == ["at once", "later"]


@pytest.mark.parametrize("how", ["call", "thread", "task"])
def test_the_computation_of_a_task_may_ask_for_its_own_question(cache, how):
    async def compute(question):
        if how == "call":
            return [cache.get_or_compute(question, lambda _: "own")]
        if how == "thread":
            return [await asyncio.to_thread(cache.get_or_compute, question, lambda _: "own")]
        return [await asyncio.create_task(cache.aget_or_compute(question, lambda _: "own"))]

    assert asyncio.run(asyncio.wait_for(cache.aget_or_compute(QUESTION, compute), PATIENCE)) == ["own"]


def test_a_child_process_computes_what_its_parent_does(cache):
    go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        parent = pool.submit(cache.get_or_compute, QUESTION, lambda _: go.wait(PATIENCE) and "x")
        until(lambda: cache._flights.is_under_way(("", QUESTION)))
        former = cache._flights
        cache._after_fork_child()
        assert cache.get_or_compute(QUESTION, lambda _: "y") == "y"
        cache._flights = former
        go.set()
        assert parent.result(PATIENCE) == "x"
