"""What the core's callbacks may call: they run on the threads that answer other asynchronous calls."""

from __future__ import annotations

import asyncio
import queue

import pytest
from conftest import ENGLISH_TEXT
from generators import GREEDY, SLOT, TEXT
from model_manager import aio
from model_manager.errors import InputError

SECONDS = 30
"""The timeout of all waits."""
ENGLISH = "english_sentence"
EMBEDS = {
    "aembed": lambda manager, text: manager.aembed([text], ENGLISH, timeout=SECONDS),
    "aresponse": lambda manager, text: aio.aresponse(manager, [text], ENGLISH, served_model="m", timeout=SECONDS),
    "a response of many": lambda manager, text: aio.aresponse(
        manager, [f"{text} {number}" for number in range(3000)], ENGLISH, served_model="m", timeout=SECONDS
    ),
    "aembed of a long text": lambda manager, text: manager.aembed([text * 20_000], ENGLISH, timeout=SECONDS),
}
WRITES = {
    "agenerate": lambda manager, prompt: manager.agenerate(prompt, max_new_tokens=2, timeout=SECONDS, **GREEDY),
    "agenerate of a long prompt": lambda manager, prompt: manager.agenerate(
        prompt * 1300, max_new_tokens=2, timeout=SECONDS, **GREEDY
    ),
    "astream": lambda manager, prompt: streamed(manager, prompt),
}


async def streamed(manager, prompt):
    return [piece async for piece in manager.astream(prompt, max_new_tokens=2, timeout=SECONDS, **GREEDY)]


def outcome_in_callback(submit, work):
    """What `work` returns or raises in the callback that `submit` gets."""
    outcomes = queue.Queue()

    def callback(*_):
        try:
            outcomes.put(work())
        except Exception as error:  # noqa: BLE001  handed to the test
            outcomes.put(error)

    submit(callback)
    return outcomes.get(timeout=2 * SECONDS)


@pytest.fixture
def loaded(make_writer, endless_model):
    manager = make_writer(generator_model=str(endless_model))
    manager.load(ENGLISH)
    manager.load(SLOT)
    return manager


@pytest.fixture
def after_embedding(loaded):
    """`run(work)`: the outcome of `work(manager)` in a callback of `submit`."""
    return lambda work: outcome_in_callback(
        lambda callback: loaded.submit([ENGLISH_TEXT], callback, ENGLISH), lambda: work(loaded)
    )


@pytest.fixture
def while_writing(loaded):
    """`run(work)`: the outcome of `work(manager)` in a callback of `submit_generation`."""
    return lambda work: outcome_in_callback(
        lambda callback: loaded.submit_generation(TEXT, callback, max_new_tokens=1), lambda: work(loaded)
    )


@pytest.mark.parametrize("call", EMBEDS)
def test_a_callback_cannot_await_an_embedding_of_its_manager(after_embedding, call):
    raised = after_embedding(lambda manager: asyncio.run(EMBEDS[call](manager, "another text")))
    assert isinstance(raised, InputError), raised
    assert str(raised).startswith("a callback cannot wait for another asynchronous call of the same manager")


@pytest.mark.parametrize("call", WRITES)
def test_a_callback_cannot_await_an_answer_of_its_generator(while_writing, call):
    raised = while_writing(lambda manager: asyncio.run(WRITES[call](manager, TEXT)))
    assert isinstance(raised, InputError), raised
    assert str(raised).startswith("a callback cannot wait for another asynchronous call of the same manager")


def test_a_callback_may_await_what_other_threads_answer(after_embedding, while_writing):
    assert isinstance(after_embedding(lambda manager: asyncio.run(WRITES["agenerate"](manager, TEXT))), str)
    pieces = after_embedding(lambda manager: asyncio.run(WRITES["astream"](manager, TEXT)))
    assert all(isinstance(piece, str) for piece in pieces)
    vectors = while_writing(lambda manager: asyncio.run(EMBEDS["aembed"](manager, "another text")))
    assert vectors.shape == (1, 32)


def test_a_callback_may_wait_for_embed_and_for_what_is_cached(after_embedding):
    def work(manager):
        computed = manager.embed(["another text"], ENGLISH, timeout=SECONDS)
        cached = asyncio.run(manager.aembed(["another text"], ENGLISH, timeout=SECONDS))
        return (computed == cached).all()

    assert after_embedding(work)


def test_a_callback_may_submit_without_waiting(after_embedding):
    done = queue.Queue()
    after_embedding(lambda manager: manager.submit(["another text"], lambda *outcome: done.put(outcome), ENGLISH))
    result, error = done.get(timeout=SECONDS)
    assert error is None
    assert result.shape == (1, 32)
