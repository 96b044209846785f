"""`aembed`: concurrent, cancelled and failing calls, without a thread per call."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import numpy as np
import pytest
from conftest import DIMENSION, ENGLISH_MODEL, ENGLISH_TEXT, TURKISH_TEXT
from model_manager.errors import InputError


async def test_same_as_embed(shared):
    one = await shared.aembed(ENGLISH_TEXT)
    np.testing.assert_array_equal(one, shared.embed(ENGLISH_TEXT))
    several = await shared.aembed([ENGLISH_TEXT, TURKISH_TEXT], truncate_dim=8)
    np.testing.assert_allclose(several, shared.embed([ENGLISH_TEXT, TURKISH_TEXT], truncate_dim=8), atol=1e-6)
    assert (await shared.aembed([])).shape == (0, DIMENSION)


async def test_a_thousand_at_once(make_manager):
    manager = make_manager(cache_size=0)
    before = threading.active_count()
    rows = await asyncio.gather(*(manager.aembed(f"text {n}", "english_sentence") for n in range(1000)))
    assert threading.active_count() <= before + 1
    np.testing.assert_allclose(rows[7], manager.embed("text 7", "english_sentence"), atol=1e-6)
    stats = manager.stats()["queue"]
    assert stats["batches"] < 500, "they were batched"
    assert manager.tracker.get_statistics()["load_counts"] == {"english_sentence": 1}


async def test_the_loop_goes_on_while_a_model_loads(manager):
    release = threading.Event()
    manager.register("slow", loader=lambda: release.wait(60))
    with pytest.raises(TimeoutError):
        manager.load("slow", timeout=0.01)
    assert (await manager.aembed("a text", "turkish_sentence")).shape == (DIMENSION,)
    assert manager.stats()["slots"]["slow"]["state"] == "loading"
    release.set()


async def test_wrong_arguments_raise(shared):
    with pytest.raises(TypeError):
        await shared.aembed(None)
    with pytest.raises(KeyError):
        await shared.aembed("a text", "no_such")
    with pytest.raises(InputError):
        await shared.aembed("lone \ud800")


async def test_a_failing_load_raises_in_each_task(manager):
    manager.register("broken", "/no/such/model")
    results = await asyncio.gather(*(manager.aembed(f"{n}", "broken") for n in range(20)), return_exceptions=True)
    assert all(isinstance(result, FileNotFoundError) for result in results)


async def test_a_cancelled_task_withdraws_its_texts(make_manager):
    manager = make_manager(cache_size=0)
    manager.load("english_sentence")
    texts = [f"{n} " + "many words " * 30 for n in range(20_000)]
    busy = asyncio.create_task(manager.aembed(texts[:4000], "english_sentence"))
    await asyncio.sleep(0.01)
    task = asyncio.create_task(manager.aembed(texts, "english_sentence"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await busy).shape == (4000, DIMENSION)
    assert (await manager.aembed("still alive")).shape == (DIMENSION,)
    stats = manager.stats()["queue"]
    assert stats["texts"] < 20_000
    assert stats["queued"] == 0


async def test_texts_of_cancelled_calls_are_counted_before_they_are_queued_too(make_manager):
    manager = make_manager(cache_size=0)
    # The model is not loaded yet: some of these wait for it, some for the queue.
    tasks = [asyncio.create_task(manager.aembed([f"{n} a", f"{n} b"], "english_sentence")) for n in range(50)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)

    def accounted():
        queue = manager.stats()["queue"]
        return queue["texts"] + queue["cancelled"]

    for _ in range(6000):
        if accounted() >= 100:
            break
        await asyncio.sleep(0.01)
    assert accounted() == 100


async def test_wait_for(make_manager):
    manager = make_manager(cache_size=0)
    texts = [f"{n} " + "many words " * 30 for n in range(20_000)]
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(manager.aembed(texts, "english_sentence"), 0.05)
    assert (await manager.aembed("still alive")).shape == (DIMENSION,)


async def test_the_core_has_its_own_timeout(make_manager):
    manager = make_manager(cache_size=0)
    with pytest.raises(TimeoutError):
        await manager.aembed([f"{n} " + "many words " * 30 for n in range(50_000)], "english_sentence", timeout=0.05)
    assert (await manager.aembed("still alive")).shape == (DIMENSION,)


def test_a_loop_closed_too_early_does_no_harm(make_manager):
    manager = make_manager(cache_size=0)

    async def leave():
        asyncio.ensure_future(manager.aembed([f"text {n}" for n in range(3000)], "english_sentence"))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert manager.embed("still alive").shape == (DIMENSION,)


def test_several_loops_in_several_threads(shared):
    results = []

    def run(n):
        results.append(asyncio.run(shared.aembed(f"loop {n}")))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [result.shape for result in results] == [(DIMENSION,)] * 4


def test_submit_tells_once_and_from_another_thread(make_manager):
    manager = make_manager()
    done = threading.Event()
    calls = []

    def on_done(result, error):
        calls.append((result, error, threading.get_ident()))
        done.set()

    ticket = manager.submit(["one", "two"], on_done, "english_sentence")
    assert done.wait(20)
    (result, error, thread) = calls[0]
    assert error is None
    assert result.shape == (2, DIMENSION)
    assert thread != threading.get_ident()
    assert ticket.done
    assert ticket.cancel() is False
    assert len(calls) == 1


@pytest.mark.parametrize("options", [{}, {"served_model": "m"}], ids=["submit", "submit_response"])
def test_a_cancelled_ticket_is_silent(manager, options):
    calls = []
    manager.register("slow", ENGLISH_MODEL)
    submit = manager.submit_response if options else manager.submit
    tickets = [
        submit(f"{n} " + "words " * 100, lambda *result: calls.append(result), "slow", **options) for n in range(200)
    ]
    cancelled = [ticket for ticket in tickets if ticket.cancel()]
    assert cancelled
    manager.embed("a text", "slow")
    end = time.monotonic() + 30
    while len(calls) < 200 - len(cancelled):
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(calls) == 200 - len(cancelled)
    assert all(ticket.done for ticket in tickets)


def test_a_failing_callback_harms_no_other_call(manager, monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)

    def fail(result, error):
        raise ZeroDivisionError

    manager.submit("one", fail, "english_sentence")
    assert manager.embed("two", "english_sentence").shape == (DIMENSION,)
    end = time.monotonic() + 30
    while not reported:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert reported[0].exc_type is ZeroDivisionError
    assert manager.embed("three", "english_sentence").shape == (DIMENSION,)
