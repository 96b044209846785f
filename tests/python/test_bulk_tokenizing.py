"""Bulk calls share tokenizing between threads: the same results, the same first error, the same ways to end."""

from __future__ import annotations

import asyncio
import random
import threading

import numpy as np
import pytest
from conftest import FIXTURES, run_python
from model_manager.errors import InputError

SLOT = "english_sentence"
WORDS = ["merhaba", "dünya", "the", "world", "İSTANBUL", "你好", "🙂", "e\u0301", "!?", "\n", "2024", "[MASK]", ""]
LONG = "word " * 30_000  # more than is tokenized at once


def odd_texts(count: int) -> list[str]:
    draw = random.Random(5)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(1, 30))) for _ in range(count)]


def bulk(manager, texts):
    """What bulk calls of all kinds give."""
    counts = manager.count_tokens(texts)
    vectors = manager.embed(texts[:700], SLOT)
    scores = manager.rerank("merhaba dünya", texts[:300], model="scorer")
    return counts, vectors, [(one.index, one.score) for one in scores]


def test_results_are_those_of_one_thread(make_manager):
    texts = odd_texts(2500)
    texts[700] = texts[1500] = LONG
    found = []
    for threads in (1, 4):
        manager = make_manager(cache_size=0, threads=threads)
        manager.register("scorer", str(FIXTURES / "rerank_bert"))
        found.append(bulk(manager, texts))
        assert found[-1][0][:20] == [manager.count_tokens(text) for text in texts[:20]]
    (counts, vectors, scores), (other_counts, other_vectors, other_scores) = found
    assert counts == other_counts
    assert len(counts) == 2500
    np.testing.assert_array_equal(vectors, other_vectors)
    assert scores == other_scores


def test_racing_calls_have_their_own_results(make_manager):
    manager = make_manager(cache_size=0, threads=4)
    texts = odd_texts(1200)
    wanted = manager.count_tokens(texts), manager.embed(texts[:300], SLOT)
    wrong: list[str] = []

    def call(turn: int) -> None:
        rotated = texts[turn:] + texts[:turn]
        if manager.count_tokens(rotated) != wanted[0][turn:] + wanted[0][:turn]:
            wrong.append(f"counts {turn}")
        if not np.array_equal(manager.embed(texts[turn:300], SLOT), wanted[1][turn:]):
            wrong.append(f"vectors {turn}")

    threads = [threading.Thread(target=call, args=(turn,)) for turn in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_error_by_number_is_raised(make_manager, threads):
    manager = make_manager(cache_size=0, threads=threads, max_text_bytes=5000)
    texts = odd_texts(2000)
    texts[300], texts[301], texts[1100] = "a" * 5003, "a" * 5001, "a" * 5009
    with pytest.raises(InputError, match="5003 bytes"):
        manager.count_tokens(texts)
    with pytest.raises(InputError, match="5001 bytes"):
        manager.count_tokens(texts[301:], SLOT)
    assert len(manager.count_tokens(texts[:300])) == 300


async def test_a_bulk_call_can_be_cancelled(make_manager):
    manager = make_manager(cache_size=0, threads=4)
    await manager.aembed("warm", SLOT)
    task = asyncio.create_task(manager.aembed(odd_texts(2000) * 50, SLOT))
    await asyncio.sleep(0.1)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await manager.aembed("a text", SLOT)).shape == (32,)


def test_ctrl_c_ends_a_bulk_count():
    run_python(
        """
import _thread, threading, time
from conftest import tiny
from test_bulk_tokenizing import odd_texts
m = tiny(cache_size=0, threads=4)
texts = odd_texts(2000) * 1000
m.count_tokens(texts[:10])
threading.Timer(0.3, _thread.interrupt_main).start()
began = time.monotonic()
try:
    m.count_tokens(texts, model="english_sentence")
except KeyboardInterrupt:
    took = time.monotonic() - began
    assert took < 2, took
else:
    raise SystemExit("the call was not ended")
assert len(m.count_tokens(texts[:3000])) == 3000
"""
    )
