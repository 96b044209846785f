"""`agenerate`, `achat`, `astream`: no thread per call, cancelled within a token, available while the model loads."""

from __future__ import annotations

import asyncio
import gc
import threading
from types import MappingProxyType

import pytest
from conftest import ENGLISH_MODEL, run_python
from generators import GPT2, GREEDY, SLOT, TEXT, WITHOUT_END, eventually, figures, writer
from model_manager._async import _is_long
from model_manager.errors import (
    ClosedError,
    InputError,
    ModelNotFoundError,
    NoGeneratorError,
    UnknownModelError,
    WaitTimeoutError,
)

TURN = [{"role": "user", "content": "Merhaba"}]


async def test_same_as_generate(gpt2):
    assert await gpt2.agenerate(TEXT, **GREEDY, max_new_tokens=20) == gpt2.generate(TEXT, **GREEDY, max_new_tokens=20)
    assert await gpt2.achat(TURN, **GREEDY, max_new_tokens=9) == gpt2.chat(TURN, **GREEDY, max_new_tokens=9)


async def test_eight_at_once_while_the_model_loads(make_writer):
    prompts = [f"{TEXT} {number}" for number in range(8)]
    with writer() as other:
        alone = [other.generate(prompt, **GREEDY, max_new_tokens=30) for prompt in prompts]
    manager = make_writer()
    before = threading.active_count()
    together = await asyncio.gather(*(manager.agenerate(prompt, **GREEDY, max_new_tokens=30) for prompt in prompts))
    assert together == alone
    assert threading.active_count() == before
    assert manager.tracker.get_statistics()["load_counts"] == {SLOT: 1}


async def test_a_stream_of_pieces(gpt2):
    stream = gpt2.astream(TEXT, **GREEDY, max_new_tokens=20)
    assert stream.completion is None
    pieces = [piece async for piece in stream]
    assert "".join(pieces) == stream.completion["text"] == gpt2.generate(TEXT, **GREEDY, max_new_tokens=20)
    assert len(pieces) > 5
    assert [piece async for piece in stream] == []


async def test_a_task_without_references_reads_to_the_end(gpt2):
    """The event loop has only weak references to tasks: one that waits for a piece lives as long as the generation."""
    read = asyncio.Event()

    async def consume():
        async for _ in gpt2.astream(TEXT, **GREEDY, max_new_tokens=20):
            pass
        read.set()

    asyncio.create_task(consume())  # noqa: RUF006  the missing reference is the point
    while not read.is_set():
        await asyncio.sleep(0)
        gc.collect()


async def test_pieces_come_while_the_answer_is_written(endless):
    stream = endless.astream(TEXT, **WITHOUT_END)
    async for _ in stream:
        break
    assert figures(endless)["completed"] == 0
    await stream.aclose()


async def test_cancel_gives_what_was_written(endless):
    stream = endless.astream(TEXT, **WITHOUT_END)
    read = [await stream.__anext__() for _ in range(5)]
    stream.cancel()
    read += [piece async for piece in stream]
    assert stream.completion["finish_reason"] == "cancelled"
    assert "".join(read) == stream.completion["text"]
    assert stream.completion["completion_tokens"] < 5000


async def stopped(manager):
    """The running generation ended early, and the next one is served."""
    await asyncio.to_thread(eventually, lambda: figures(manager)["cancelled"] == 1)
    assert figures(manager)["generated_tokens"] < 5000
    assert figures(manager)["active"] <= 1
    assert len(await manager.agenerate(TEXT, max_new_tokens=3)) >= 0


async def test_aclose_stops(endless):
    stream = endless.astream(TEXT, **WITHOUT_END)
    await stream.__anext__()
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await stream.__anext__()
    assert stream.completion is None
    await stopped(endless)


async def test_aclose_stops_an_answer_that_is_complete(gpt2):
    stream = gpt2.astream(TEXT, **GREEDY, max_new_tokens=20)
    await stream.__anext__()
    await asyncio.to_thread(eventually, lambda: stream.completion is not None)
    await stream.aclose()
    assert [piece async for piece in stream] == []
    assert stream.completion["finish_reason"] == "length"


async def test_aclose_drops_an_error_that_was_not_read(gpt2):
    stream = gpt2.astream("")
    await asyncio.to_thread(eventually, lambda: stream._pieces.ended)
    await stream.aclose()
    assert [piece async for piece in stream] == []


async def test_a_stream_let_go_stops(endless):
    async for _ in endless.astream(TEXT, **WITHOUT_END):
        break
    await stopped(endless)


async def test_a_cancelled_task_stops_its_stream(endless):
    async def read():
        async for _ in endless.astream(TEXT, **WITHOUT_END):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stopped(endless)


async def test_a_cancelled_task_stops_its_answer(endless):
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(endless.agenerate(TEXT, **WITHOUT_END), 0.02)
    await stopped(endless)


async def test_one_task_reads_a_stream(endless):
    stream = endless.astream(TEXT, **WITHOUT_END)
    await stream.__anext__()
    raised = []
    for _ in range(200):  # a piece that comes at once serves both, and nothing collides
        stream._pieces.pieces.clear()
        first, second = asyncio.create_task(stream.__anext__()), asyncio.create_task(stream.__anext__())
        done, _ = await asyncio.wait([first, second])
        raised = [task.exception() for task in done if task.exception()]
        if raised:
            break
    assert [type(error) for error in raised] == [RuntimeError]
    await stream.aclose()


async def test_wrong_arguments_raise_at_once(gpt2):
    with pytest.raises(TypeError, match="did you mean max_new_tokens"):
        gpt2.astream(TEXT, max_tokens=3)
    with pytest.raises(InputError, match="top_p"):
        gpt2.astream(TEXT, top_p=2)
    with pytest.raises(UnknownModelError):
        gpt2.astream(TEXT, "no_such")
    with pytest.raises(TypeError):
        await gpt2.agenerate(None)
    with pytest.raises(TypeError, match="generate"):
        await gpt2.achat("text")


async def test_a_refused_prompt(gpt2):
    for prompt in ("", "word " * 100):
        with pytest.raises(InputError, match="prompt"):
            await gpt2.agenerate(prompt)
        stream = gpt2.astream(prompt)
        with pytest.raises(InputError, match="prompt"):
            await stream.__anext__()
        with pytest.raises(StopAsyncIteration):
            await stream.__anext__()


async def test_a_failing_load_raises_in_each_task(make_writer):
    manager = make_writer(generator_model="/no/such/model")
    answers = await asyncio.gather(*(manager.agenerate(TEXT) for _ in range(8)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ModelNotFoundError] * 8


async def test_a_slot_that_is_no_generator(make_writer):
    manager = make_writer()
    manager.register("tables", loader=dict)
    manager.register("vectors", ENGLISH_MODEL)
    for name in ("tables", "vectors"):
        with pytest.raises(NoGeneratorError):
            await manager.agenerate(TEXT, name)


async def test_the_load_has_a_timeout(make_writer):
    manager = make_writer()
    release = threading.Event()
    manager.register("slow", loader=lambda: release.wait(20))
    with pytest.raises(WaitTimeoutError, match="slow"):
        await manager.agenerate(TEXT, "slow", timeout=0.05)
    stream = manager.astream(TEXT, "slow", timeout=0.05)
    with pytest.raises(WaitTimeoutError):
        await stream.__anext__()
    release.set()
    # The timeout applies to the load, not to the answer.
    assert await manager.agenerate(TEXT, max_new_tokens=3, timeout=30) is not None


async def test_closing_lets_what_is_under_way_finish(endless):
    options = {"max_new_tokens": 500, "min_new_tokens": 500}
    answers = [asyncio.create_task(endless.agenerate(TEXT, **GREEDY, **options)) for _ in range(3)]
    await asyncio.to_thread(eventually, lambda: figures(endless)["active"] == 3)
    await asyncio.to_thread(endless.close)
    assert len(set(await asyncio.wait_for(asyncio.gather(*answers), 20))) == 1
    with pytest.raises(ClosedError):
        await endless.agenerate(TEXT)


def test_without_a_loop(gpt2):
    with pytest.raises(RuntimeError, match="no running event loop"):
        gpt2.astream(TEXT)


def test_a_loop_closed_too_early_does_no_harm(endless):
    async def leave():
        task = asyncio.ensure_future(endless.agenerate(TEXT, max_new_tokens=2000, min_new_tokens=2000))
        await asyncio.sleep(0)
        return task

    asyncio.run(leave())
    assert endless.generate("still alive", max_new_tokens=3) is not None


def test_the_interpreter_ends_after_an_answer():
    """The generator's thread may be reporting the end of the answer at that moment."""
    code = f"""
import asyncio
from model_manager import ModelManager
manager = ModelManager(generator_model={GPT2!r})
asyncio.run(manager.agenerate("a", max_new_tokens=30))
"""
    for _ in range(10):
        assert run_python(code).stderr == ""


def test_the_interpreter_ends_during_an_answer(endless_model):
    code = f"""
from model_manager import ModelManager
manager = ModelManager(generator_model={str(endless_model)!r})
pieces = []
manager.submit_generation("a", lambda *event: pieces.append(event), **{WITHOUT_END!r})
while not pieces:
    pass
"""
    for _ in range(3):
        assert run_python(code, timeout=30).stderr == ""


def test_loops_in_several_threads(gpt2):
    answers = [None] * 4

    def run(number):
        answers[number] = asyncio.run(gpt2.agenerate(f"{TEXT} {number}", **GREEDY, max_new_tokens=10))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == [gpt2.generate(f"{TEXT} {number}", **GREEDY, max_new_tokens=10) for number in range(4)]


def test_submit_tells_pieces_and_then_the_end(gpt2):
    events, done = [], threading.Event()

    def on_event(piece, completion, error):
        events.append((piece, completion, error, threading.get_ident()))
        if piece is None:
            done.set()

    gpt2.submit_generation(TEXT, on_event, **GREEDY, max_new_tokens=20)
    assert done.wait(20)
    *pieces, (_, completion, error, thread) = events
    assert error is None
    assert thread != threading.get_ident()
    assert "".join(event[0] for event in pieces) == completion["text"]
    assert all(sum(part is not None for part in event[:3]) == 1 for event in events)


LONG = "x" * 20_000


@pytest.mark.parametrize(
    "prompt",
    [
        LONG,
        [{"role": "user", "content": LONG}],
        [{"role": "user", "content": [{"type": "text", "text": LONG}]}],
        [MappingProxyType({"role": "user", "content": LONG})],
        ({"role": "user", "content": LONG},),
        [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": LONG}}]}],
        [{"role": "assistant", "content": "a", "reasoning_content": LONG}],
        [{"role": "user", "content": "a"}] * 20_000,
        [{"role": "user", "content": "a", "numbers": dict.fromkeys(range(20_000))}],
        [1] * 20_000,
    ],
)
def test_long_prompts_are_not_read_on_the_event_loop(prompt):
    assert _is_long(prompt)


@pytest.mark.parametrize(
    "variables", [{"documents": [{"text": LONG}]}, {"tools": [{"function": {"description": LONG}}]}]
)
def test_long_variables_of_a_template_are_not_rendered_on_the_event_loop(endless, monkeypatch, variables):
    started = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread.name))

    async def call():
        endless.astream([{"role": "user", "content": "a"}], chat_template_kwargs=variables)

    asyncio.run(call())
    assert started == ["mm-prompt"]


@pytest.mark.parametrize("prompt", ["a" * 1000, [1] * 1000, [{"role": "user", "content": "a" * 1000}], 5, None, {}])
def test_short_prompts_need_no_thread(prompt):
    assert not _is_long(prompt)


class Turn(dict):
    """A message that fails where a walk over its values does not end."""

    looks = 0

    def values(self):
        self.looks += 1
        assert self.looks < 100_000
        return super().values()


@pytest.mark.parametrize("argument", ["messages", "chat_template_kwargs"])
async def test_messages_that_hold_themselves_are_refused(endless, argument):
    turn = Turn(role="user", content="a")
    turn["again"] = turn
    given = {"messages": TURN, "chat_template_kwargs": None, argument: [turn] if argument == "messages" else turn}
    with pytest.raises(InputError, match=f"{argument} nest more than 128 levels deep"):
        await endless.achat(**given)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_whose_loop_is_closed_ends(endless, streamed):
    """Its task and its stream are still there, but nothing can read them."""
    loop = asyncio.new_event_loop()

    async def begin():
        if streamed:
            return endless.astream(TEXT, **WITHOUT_END)
        return asyncio.ensure_future(endless.agenerate(TEXT, **WITHOUT_END))

    kept = loop.run_until_complete(begin())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    eventually(lambda: figures(endless)["cancelled"] == 1)
    assert figures(endless)["active"] == 0
    if not streamed:
        kept._log_destroy_pending = False
