"""Time and memory of one request for text, and its isolation from others."""

from __future__ import annotations

import asyncio
import queue
import threading
import time

import pytest
from generators import GREEDY, SLOT, WITHOUT_END, eventually, figures
from model_manager.errors import InputError, OverloadedError, WaitTimeoutError

TEXT = "Merhaba dünya"


def ends_within(call, seconds=30.0):
    """Whether a call returns; one that never returns must not hold up the other tests."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def test_a_timeout_bounds_the_whole_answer(endless):
    for call in (
        lambda **params: endless.complete(TEXT, **params),
        lambda **params: endless.generate(TEXT, **params),
        lambda **params: list(endless.stream(TEXT, **params)),
        lambda **params: asyncio.run(endless.agenerate(TEXT, **params)),
        lambda **params: endless.text_generator(TEXT, **params),
    ):
        started = time.monotonic()
        with pytest.raises(WaitTimeoutError, match=r"answer of model .* within 0\.200 s"):
            call(**WITHOUT_END, timeout=0.2)
        assert time.monotonic() - started > 0.15
    eventually(lambda: figures(endless)["active"] == 0)
    assert figures(endless)["failed"] == 5
    assert endless.generate(TEXT, max_new_tokens=3, timeout=60) is not None


def test_pieces_come_until_the_timeout(endless):
    # A busy machine may need longer for the first piece.
    for timeout in (0.3, 1, 3, 9):
        stream = endless.stream(TEXT, **WITHOUT_END, timeout=timeout)
        pieces = []
        with pytest.raises(WaitTimeoutError):
            pieces.extend(stream)
        assert stream.completion is None
        if pieces:
            return
    pytest.fail("no piece came")


def test_a_timeout_bounds_the_wait_in_the_queue(make_writer, endless_model):
    manager = make_writer(generator_model=str(endless_model), max_parallel=1)
    busy = manager.stream(TEXT, **WITHOUT_END)
    next(busy)
    with pytest.raises(WaitTimeoutError):
        manager.generate(TEXT, max_new_tokens=3, timeout=0.1)
    busy.cancel()


def test_a_timeout_bounds_the_reading_of_a_prompt(endless):
    prompt = "Merhaba dünya " * 8_000
    with pytest.raises(WaitTimeoutError):
        endless.generate(prompt, max_new_tokens=1, timeout=0.5)


def test_a_full_queue_names_its_setting(make_writer, endless_model):
    manager = make_writer(generator_model=str(endless_model), max_parallel=1, max_generation_queue=1)
    busy = manager.stream(TEXT, **WITHOUT_END)
    next(busy)
    waiting = manager.stream(TEXT, max_new_tokens=2)
    with pytest.raises(OverloadedError, match=r"1 requests are waiting \(limit 1\).* raise max_generation_queue"):
        manager.generate(TEXT)
    busy.cancel()
    assert list(waiting)


def test_a_pipeline_is_no_longer_than_the_queue(make_writer):
    manager = make_writer(max_parallel=1, max_generation_queue=1)
    texts = [f"{TEXT} {number}" for number in range(6)]
    answers = manager.text_generator(texts, max_new_tokens=3)
    assert answers == [manager.text_generator(text, max_new_tokens=3) for text in texts]


def test_the_context_can_be_lowered(make_writer):
    manager = make_writer(max_context=20)
    described = manager.describe_generator()
    assert (described["architecture"], described["dtype"]) == ("gpt2", "float32")
    assert described["context"] == 20
    answer = manager.complete(TEXT, **GREEDY, max_new_tokens=50, min_new_tokens=50)
    assert answer["prompt_tokens"] + answer["completion_tokens"] == 20
    assert answer["finish_reason"] == "length"
    with pytest.raises(InputError, match=r"max_context allows 20 .* raise max_context"):
        manager.generate(TEXT * 10)


def test_memory_of_keys_and_values_is_bounded_and_told(make_writer, endless_model):
    with make_writer(generator_model=str(endless_model)) as probe:
        token = probe.describe_generator()["kv_bytes_per_token"]
    limit = token * 512
    manager = make_writer(generator_model=str(endless_model), kv_memory=limit)
    described = manager.describe_generator()
    assert (described["kv_limit"], described["context"]) == (limit, 512)
    with pytest.raises(InputError, match=r"kv_memory .* holds the keys and values of 512 .* raise kv_memory"):
        manager.generate("Merhaba dünya " * 500)
    seen = []
    over = threading.Event()

    def watch():
        while not over.wait(0.001):
            found = figures(manager)
            seen.append((found["kv_bytes"] + found["prefix_bytes"], found["active"]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    # Each grows to two fifths of the memory: at the end, two fit.
    options = {**GREEDY, "max_new_tokens": 200, "min_new_tokens": 200}
    streams = [manager.stream(f"{number} {TEXT}", **options) for number in range(8)]
    answers = [list(stream) for stream in streams]
    over.set()
    watcher.join()
    assert all(answers)
    assert 0 < max(used for used, _ in seen) <= limit
    assert max(active for _, active in seen) > 2
    assert figures(manager)["paused"] > 0
    alone = [list(manager.stream(f"{number} {TEXT}", **options)) for number in range(8)]
    assert ["".join(answer) for answer in answers] == ["".join(answer) for answer in alone]
    stats = manager.stats()
    eventually(lambda: figures(manager)["kv_bytes"] == 0)
    assert stats["slots"][SLOT]["generation"]["kv_limit"] == limit
    assert manager.stats()["memory"]["kv"] == figures(manager)["prefix_bytes"] > 0
    manager.unload(SLOT)
    assert manager.stats()["memory"]["kv"] == 0


def test_keys_and_values_count_in_the_budget(make_writer, endless_model):
    with make_writer(generator_model=str(endless_model)) as probe:
        described = probe.describe_generator()
        probe.load("english_sentence")
        sentence = probe.stats()["slots"]["english_sentence"]["bytes"]
    weights, token = described["bytes"], described["kv_bytes_per_token"]
    # The load charges the files' size, which is a little more than the weights.
    budget = weights + sentence + 100_000 + 64 * token
    manager = make_writer(generator_model=str(endless_model), memory_budget=budget)
    manager.load("english_sentence")
    described = manager.describe_generator()
    assert manager.is_loaded("english_sentence")
    assert described["kv_limit"] == budget - weights
    # An idle model is evicted for a long answer, which may use the memory that the weights leave.
    long = described["context"] - 64
    answer = manager.complete(TEXT, **GREEDY, max_new_tokens=long, min_new_tokens=long)
    assert answer["completion_tokens"] == long
    assert not manager.is_loaded("english_sentence")
    with pytest.raises(InputError, match="raise memory_budget"):
        manager.generate("Merhaba dünya " * described["context"])


def test_what_is_kept_of_prompts_makes_room_for_a_model(make_writer, endless_model):
    with make_writer(generator_model=str(endless_model)) as probe:
        weights = probe.describe_generator()["bytes"]
        probe.load("english_sentence")
        sentence = probe.stats()["slots"]["english_sentence"]["bytes"]
    manager = make_writer(generator_model=str(endless_model), memory_budget=weights + sentence + 100_000)
    manager.load(SLOT)
    # The kept beginning of the last prompt occupies the memory that the sentence model needs.
    manager.generate(TEXT, **GREEDY, max_new_tokens=400, min_new_tokens=400)
    eventually(lambda: figures(manager)["prefix_bytes"] > 100_000)
    manager.load("english_sentence")
    assert manager.is_loaded(SLOT)
    assert figures(manager)["prefix_bytes"] == 0


def two_models(make_writer, model, tokens):
    """A manager whose budget holds two copies of a model, and keys and values of so many tokens."""
    with make_writer(generator_model=str(model)) as probe:
        token = probe.describe_generator()["kv_bytes_per_token"]
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    manager = make_writer(generator_model=str(model), memory_budget=2 * size + tokens * token)
    manager.register("other", str(model), kind="generator", pinned=True)
    return manager


@pytest.mark.parametrize("leave", ["unload", "replace", "unregister"])
def test_what_a_model_keeps_makes_room_after_it_has_left(make_writer, endless_model, leave):
    """An answer of a model that has left its slot goes on, with the memory that the model keeps of earlier answers."""
    manager = two_models(make_writer, endless_model, tokens=900)
    manager.register("writer", str(endless_model), kind="generator")
    manager.complete("Eski " + TEXT, model="writer", **GREEDY, max_new_tokens=250, min_new_tokens=250)
    stream = manager.stream(TEXT, model="writer", **GREEDY, max_new_tokens=700, min_new_tokens=700)
    next(stream)
    if leave == "unload":
        manager.unload("writer")
    elif leave == "replace":
        manager.register("writer", str(endless_model), kind="generator", replace=True)
    else:
        manager.unregister("writer")
    manager.load("other")
    assert ends_within(lambda: list(stream))
    assert stream.completion["completion_tokens"] == 700


def test_a_stream_object_keeps_no_memory_of_a_model_that_left(make_writer, endless_model):
    """Neither one whose answer is complete and not read to its end, nor one that is read."""
    manager = two_models(make_writer, endless_model, tokens=600)
    options = {**GREEDY, "max_new_tokens": 400, "min_new_tokens": 400}
    unread = manager.stream(TEXT, **options)
    next(unread)
    eventually(lambda: figures(manager)["completed"] == 1)
    manager.unload(SLOT)
    answers = []
    assert ends_within(lambda: answers.append(manager.complete("Yeni " + TEXT, **options)))
    assert answers[0]["completion_tokens"] == 400
    unread.cancel()
    read = manager.stream(TEXT, **options)
    list(read)
    manager.unload(SLOT)
    assert ends_within(lambda: answers.append(manager.complete("Daha yeni " + TEXT, **options)))
    assert answers[1]["completion_tokens"] == read.completion["completion_tokens"] == 400


def test_a_callback_cannot_wait_for_its_own_generator(make_writer):
    manager = make_writer()
    found: queue.Queue[BaseException | str] = queue.Queue()

    def on_event(piece, completion, error):
        if piece is None:
            for call in (manager.generate, lambda *a, **k: list(manager.stream(*a, **k))):
                try:
                    found.put(str(call(TEXT, max_new_tokens=2)))
                except InputError as error:
                    found.put(error)

    manager.submit_generation(TEXT, on_event, **GREEDY, max_new_tokens=2)
    for _ in range(2):
        assert "use submit_generation" in str(found.get(timeout=30))
    assert manager.complete(TEXT, **GREEDY, max_new_tokens=2)["completion_tokens"] == 2


def test_beginnings_are_reused_only_in_their_scope(make_writer):
    manager = make_writer()
    prompt = "Merhaba dünya, bugün hava çok güzel"

    def reused(**params):
        return manager.complete(prompt, **GREEDY, max_new_tokens=2, **params)["reused_tokens"]

    assert [reused(prefix_scope="a"), reused(prefix_scope="b"), reused()] == [0, 0, 0]
    first = reused(prefix_scope="a")
    assert first > 0
    assert [reused(prefix_scope="b"), reused()] == [first, first]


def test_values_that_mean_off(make_writer):
    manager = make_writer()
    plain = manager.complete(TEXT, **GREEDY, max_new_tokens=8)
    for params in ({"stop": ""}, {"stop": []}, {"stop": ["", "no such text"]}):
        assert manager.complete(TEXT, **GREEDY, max_new_tokens=8, **params)["text"] == plain["text"]
    every = {"seed": 3, "temperature": 5.0, "max_new_tokens": 8}
    assert manager.generate(TEXT, top_k=-1, **every) == manager.generate(TEXT, top_k=0, **every)
    # Only the likeliest token, as with temperature 0.
    likeliest = manager.complete(TEXT, top_p=0, **every)
    assert (likeliest["tokens"], likeliest["seed"]) == (plain["tokens"], None)
