"""asyncio calls end by their `timeout` while a callback of another call holds the thread that would end them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import sys
import threading
import types
import weakref

import pytest
from conftest import ENGLISH_MODEL, FIXTURES
from generators import GPT2, GREEDY, SLOT, TEXT, eventually, figures
from model_manager.aio import aresponse, start_response
from model_manager.errors import WaitTimeoutError
from model_manager.server import ServedModel
from servers import until

HELD = 50.0
"""Seconds until a callback returns by itself: a test that fails ends, too."""
PATIENCE = 20.0
"""Seconds for what takes well below one. Far below `HELD`: a call that waits for the callback fails."""


@contextlib.contextmanager
def held(submit):
    """While the block runs, the callback given to `submit` does not return."""
    entered, release = threading.Event(), threading.Event()

    def callback(*_):
        entered.set()
        release.wait(HELD)

    submit(callback)
    assert entered.wait(PATIENCE)
    try:
        yield
    finally:
        release.set()


async def late(call, what):
    """The call ends by its own timeout."""
    with pytest.raises(WaitTimeoutError, match=rf"{what} was not ready within 0\.100 s; raise the timeout"):
        await asyncio.wait_for(call, PATIENCE)


@pytest.fixture
def unheard(monkeypatch):
    """What no caller gets to see: errors of callbacks and of futures that are not awaited."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    return found


@pytest.fixture
def watched_loop(unheard):
    """Has the running loop report to `unheard`."""

    def watch():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))

    return watch


async def read(stream):
    return [piece async for piece in stream]


GENERATIONS = {
    "agenerate": lambda manager, **params: manager.agenerate(TEXT, **params),
    "achat": lambda manager, **params: manager.achat([{"role": "user", "content": TEXT}], **params),
    "astream": lambda manager, **params: read(manager.astream(TEXT, **params)),
    "acall": lambda manager, **params: manager.text_generator.acall(TEXT, **params),
    "a long prompt": lambda manager, **params: manager.agenerate("a " * 10_000, **params),
}


@pytest.mark.parametrize("name", GENERATIONS)
async def test_a_generation_is_late(make_writer, endless_model, unheard, watched_loop, name):
    watched_loop()
    manager = make_writer(generator_model=str(endless_model))
    manager.load(SLOT)
    with held(lambda callback: manager.submit_generation(TEXT, callback, max_new_tokens=1)):
        await late(GENERATIONS[name](manager, max_new_tokens=3, timeout=0.1), 'the answer of model "text_generator"')
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert await manager.agenerate(TEXT, **GREEDY, max_new_tokens=3, timeout=PATIENCE)
    await asyncio.to_thread(eventually, lambda: figures(manager)["active"] == 0)
    gc.collect()
    assert unheard == []


async def test_a_stream_that_is_late_ends_at_once_and_for_good(make_writer):
    manager = make_writer()
    manager.load(SLOT)
    with held(lambda callback: manager.submit_generation(TEXT, callback, max_new_tokens=1)):
        stream = manager.astream(TEXT, max_new_tokens=3, timeout=0.1)
        await late(anext(stream), 'the answer of model "text_generator"')
        assert await anext(stream, None) is None
        assert stream.completion is None


async def test_a_task_that_waits_is_cancelled_before_its_timeout(make_writer, endless_model):
    manager = make_writer(generator_model=str(endless_model))
    manager.load(SLOT)
    with held(lambda callback: manager.submit_generation(TEXT, callback, max_new_tokens=1)):
        for call in GENERATIONS.values():
            task = asyncio.create_task(call(manager, timeout=1000.0))
            with pytest.raises(asyncio.TimeoutError) as error:
                await asyncio.wait_for(task, 0.05)
            assert not isinstance(error.value, WaitTimeoutError)
            assert task.cancelled()


@pytest.fixture
def encoders(make_manager):
    """A manager with a model of each kind, all in memory, whose calls are computed each time."""
    manager = make_manager(cache_size=0, generator_model=GPT2)
    manager.register("splade", str(FIXTURES / "splade_bert"), dtype="float32")
    manager.register("bge", str(FIXTURES / "bge_m3"), dtype="float32")
    manager.register("reranker", str(FIXTURES / "rerank_bert"), dtype="float32")
    for slot in ("english_sentence", "splade", "bge", "reranker"):
        manager.load(slot)
    return manager


ENCODINGS = {
    "aembed": lambda manager, **options: manager.aembed("a text", "english_sentence", **options),
    "outputs": lambda manager, **options: manager.aembed("a", "bge", outputs=("dense", "multi"), **options),
    "aembed_sparse": lambda manager, **options: manager.aembed_sparse("a text", "splade", **options),
    "aembed_multi": lambda manager, **options: manager.aembed_multi("a text", "bge", **options),
    "arerank": lambda manager, **options: manager.arerank("a question", ["a text"], **options),
    "aclassify": lambda manager, **options: manager.aclassify([("a", "b")], "reranker", **options),
    "aresponse": lambda manager, **options: aresponse(
        manager, "a text", "english_sentence", served_model="m", **options
    ),
}


@pytest.mark.parametrize("name", ENCODINGS)
async def test_an_encoding_is_late(encoders, unheard, watched_loop, name):
    watched_loop()
    with held(lambda callback: encoders.submit("another text", callback, "english_sentence")):
        await late(ENCODINGS[name](encoders, timeout=0.1), "the result")
        assert asyncio.all_tasks() == {asyncio.current_task()}
    await asyncio.wait_for(ENCODINGS[name](encoders, timeout=PATIENCE), PATIENCE)
    queue = encoders.stats()["queue"]
    assert (queue["queued"], queue["cancelled"]) == (0, 1)
    gc.collect()
    assert unheard == []


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_several_outputs_of_a_model_that_loads_are_late(make_manager, asynchronous):
    """What the model gives is asked first, which loads it."""
    manager, release = make_manager(), threading.Event()
    manager.register("slow", loader=lambda: release.wait(HELD))
    embed = manager.aembed if asynchronous else functools.partial(asyncio.to_thread, manager.embed)
    try:
        await late(embed("a text", "slow", outputs=("dense", "multi"), timeout=0.1), 'model "slow"')
    finally:
        release.set()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_several_outputs_share_one_timeout(encoders, monkeypatch, asynchronous):
    """Each is computed by a pass of its own."""
    given = []

    def infer(kind, items, second=None, model=None, progress=None, *, timeout, **options):
        given.append(timeout)
        return [([0], [1.0])], 0

    def submit(kind, on_done, *args, **options):
        on_done(*infer(kind, *args, **options), None)
        return types.SimpleNamespace(done=True)

    monkeypatch.setattr(encoders, "_infer", infer, raising=False)
    monkeypatch.setattr(encoders, "_submit_inference", submit, raising=False)
    embed = encoders.aembed if asynchronous else functools.partial(asyncio.to_thread, encoders.embed)
    await embed(["a text"], "english_sentence", outputs=("sparse", "multi"), timeout=50.0)
    assert 50.0 >= given[0] > given[1] > 0


ROUTES = {
    "/v1/embeddings": {"model": "tiny", "input": "a text"},
    "/v1/embeddings, large": {"model": "tiny", "input": ["a text", "b" * 300_000]},
    "/api/embed": {"model": "tiny", "input": "a text"},
    "/v1/rerank": {"query": "a question", "documents": ["a text"]},
    "/embed_sparse": {"model": "splade", "inputs": "a text"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": TEXT}]},
    "/v1/completions": {"prompt": TEXT, "stream": True},
    "/api/generate": {"prompt": TEXT, "model": SLOT},
}


@pytest.mark.parametrize("name", ROUTES)
def test_a_request_is_late(encoders, serve, name):
    encoders.load(SLOT)
    model = ServedModel("tiny", source=ENGLISH_MODEL, instructions="off")
    server = serve(encoders, models=(model,), request_timeout=0.1)
    with (
        held(lambda callback: encoders.submit("another text", callback, "english_sentence")),
        held(lambda callback: encoders.submit_generation(TEXT, callback, max_new_tokens=1)),
    ):
        answer = server.client.post(name.split(",")[0], json=ROUTES[name], timeout=PATIENCE)
    assert answer.status_code == 504
    assert server.service.waiting == 0
    until(lambda: server.service.in_flight == 0)
    object.__setattr__(server.service.config, "request_timeout", PATIENCE)
    assert server.client.post(name.split(",")[0], json=ROUTES[name]).status_code == 200


async def test_a_request_that_is_late_is_cancelled(encoders):
    with held(lambda callback: encoders.submit("another text", callback, "english_sentence")):
        future, ticket = start_response(encoders, "a text", "english_sentence", served_model="m", timeout=0.1)
        await late(future, "the result")
        assert ticket.done


async def test_a_result_that_is_there_is_not_late(encoders):
    """The loop was busy while the result came and the timeout passed."""
    future, _ = start_response(encoders, "a text", "english_sentence", served_model="m", timeout=0.1)
    asyncio.get_running_loop().call_soon(lambda: eventually(lambda: encoders.stats()["queue"]["texts"] == 1))
    asyncio.get_running_loop().call_soon(threading.Event().wait, 0.6)
    assert (await future)[0]


async def test_a_call_that_ended_is_not_kept_until_its_timeout(encoders):
    future, _ = start_response(encoders, "a text", "english_sentence", served_model="m", timeout=1000.0)
    await future
    kept = weakref.ref(future)
    del future
    await asyncio.to_thread(eventually, lambda: gc.collect() >= 0 and kept() is None)


async def test_a_dropped_stream_is_not_kept_until_its_timeout(make_writer):
    manager = make_writer()
    stream = manager.astream(TEXT, max_new_tokens=2, timeout=1000.0)
    kept = weakref.ref(stream._pieces)
    assert await read(stream) is not None
    del stream
    await asyncio.to_thread(eventually, lambda: gc.collect() >= 0 and kept() is None)


@pytest.mark.parametrize("timeout", [0, 0.0, 1e300, float("inf"), True, -1, float("nan"), "5", object()])
async def test_other_timeouts_are_the_cores(encoders, timeout):
    """Refused, over at once or without a limit, as in synchronous calls. A short text may have its vector at once."""

    def outcome(error):
        return type(error), str(error)

    found = []
    for call in (
        lambda: encoders.aembed("a text", "english_sentence", timeout=timeout),
        lambda: asyncio.to_thread(encoders.embed, "a text", "english_sentence", timeout=timeout),
    ):
        try:
            await asyncio.wait_for(call(), PATIENCE)
            found.append(None)
        except Exception as error:  # noqa: BLE001  both calls are compared
            found.append(outcome(error))
    if timeout == 0:
        found = [one for one in found if one is not None]
        assert all(kind is WaitTimeoutError for kind, _ in found)
    assert found[:1] * len(found) == found
