"""Long texts: cut where that changes nothing, refused by length where every token counts, never delaying others."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future

import numpy as np
import pytest
from conftest import run_python
from generators import writer
from model_manager.errors import InputError

SLOT = "english_sentence"
ODD = ["!?", "你好世界", "a", "the ", " ", "\n", "e\u0301", "🙂", "[MASK]"]


def whole(manager, text, **options):
    """The pending answer for a text that must not be cut."""
    future = Future()

    def on_done(result, _tokens, error):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    future.ticket = manager.submit_response(text, on_done, SLOT, served_model=SLOT, truncate=False, **options)
    return future


def rest_of_the_work():
    """Seconds of computing from now on until this process rests; the whole text takes much longer."""
    began = now = time.process_time()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        time.sleep(0.3)
        before, now = now, time.process_time()
        if now - before < 0.05:
            break
    return now - began


@pytest.mark.parametrize("slot", [SLOT, "turkish_sentence"])
def test_the_vector_is_that_of_the_beginning(shared, slot):
    """Both models read 24 tokens; the end of a text is far beyond them."""
    for piece in ["!?", "你好世界", "the ", "[MASK] "]:
        long, short = piece * 100_000, piece * 500
        np.testing.assert_array_equal(shared.embed(long, slot), shared.embed(short, slot))


def test_a_long_text_takes_little_memory():
    """Ten million bytes without a blank, which would take gigabytes as a whole."""
    run_python(
        f"""
import resource
from conftest import tiny
from model_manager import resident_bytes
m = tiny(cache_size=0)
m.embed("warm", "english_sentence")
m.embed("warm", "turkish_sentence")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for piece in {ODD!r}:
    text = piece * (10_000_000 // len(piece.encode()))
    for slot in ("english_sentence", "turkish_sentence"):
        before = peak()
        try:
            m.embed(text, slot)
        except ValueError as error:
            assert "max_text_bytes" in str(error), error
        assert peak() - before < 600e6, (piece, slot, peak() - before)
    del text
assert resident_bytes() < 400e6, resident_bytes()
""",
        timeout=60,
    )


def test_a_counted_text_gives_its_memory_back():
    run_python(
        """
from conftest import tiny
from model_manager import resident_bytes
m = tiny(cache_size=0)
text = "Hello, world! " * 50_000
m.count_tokens("warm", model="english_sentence")
before = resident_bytes()
assert m.count_tokens(text, model="english_sentence") > 200_000
assert resident_bytes() - before < 30e6, resident_bytes() - before
"""
    )


def test_whole_texts_are_refused_by_length(make_manager):
    manager = make_manager(max_text_bytes=10_000)
    with pytest.raises(InputError, match=r"10001 bytes.*at most 10000.*max_text_bytes"):
        manager.count_tokens("a" * 10_001, model=SLOT)
    with pytest.raises(InputError, match="max_text_bytes"):
        whole(manager, "a " * 10_001).result(10)
    assert manager.embed("a " * 10_001, SLOT).shape == (32,)
    assert manager.count_tokens("a " * 5_000, model=SLOT) == 5_002


def test_prompts_are_refused_by_length():
    with writer(max_text_bytes=1000) as manager:
        for prompt in ("word " * 201, [{"role": "user", "content": "word " * 201}]):
            with pytest.raises(InputError, match="max_text_bytes"):
                manager.generate(prompt)
        with pytest.raises(InputError, match="max_text_bytes"):
            manager.count_tokens("word " * 201, model="text_generator")


async def test_short_texts_pass_a_long_one(make_manager):
    manager = make_manager(max_text_bytes=1 << 30, cache_size=0)
    await manager.aembed("warm", SLOT)
    long = whole(manager, "a, 你! " * 1_200_000)
    await asyncio.sleep(0.2)
    for number in range(20):
        await manager.aembed(f"text {number}", SLOT)
    assert not long.done()
    long.ticket.cancel()


def test_a_caller_who_leaves_ends_the_work(make_manager):
    manager = make_manager(max_text_bytes=1 << 30, cache_size=0)
    manager.embed("warm", SLOT)
    long = whole(manager, "a, 你! " * 3_000_000)
    time.sleep(0.1)
    assert not long.done()
    assert long.ticket.cancel()
    assert rest_of_the_work() < 1


def test_a_timeout_ends_the_work(make_manager):
    manager = make_manager(max_text_bytes=1 << 30, cache_size=0)
    manager.embed("warm", SLOT)
    long = whole(manager, "a, 你! " * 3_000_000, timeout=0.1)
    with pytest.raises(TimeoutError):
        long.result(50)
    assert rest_of_the_work() < 1
