"""Bulk calls share tokenizing between threads: the same results, the same first error, the same ways to end."""

from __future__ import annotations

import asyncio
import random
import sys
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


@pytest.mark.parametrize("threads", [1, 4])
def test_texts_of_several_blocks(make_manager, threads):
    """More texts than are shared between threads at once: their order, and the first error of a later block."""
    manager = make_manager(cache_size=0, threads=threads, max_text_bytes=5000)
    some = odd_texts(700)
    texts = some * 60
    assert manager.count_tokens(texts, SLOT) == manager.count_tokens(some, SLOT) * 60
    texts[30_100], texts[30_300], texts[41_000] = "a" * 5003, "a" * 5001, "a" * 5009
    with pytest.raises(InputError, match="5003 bytes"):
        manager.count_tokens(texts, SLOT)


class Text(str):
    """A text of a class of its own."""

    __slots__ = ()


def test_texts_that_the_call_alone_holds(make_manager):
    """Each text is made for the call and held by nothing else."""
    manager = make_manager(cache_size=0, threads=4)
    texts = odd_texts(2000)
    wanted = manager.count_tokens(texts)
    assert manager.count_tokens(f"{text[:1]}{text[1:]}" for text in texts) == wanted
    assert manager.count_tokens(map(Text, texts)) == wanted
    assert manager.count_tokens(Text(texts[0])) == wanted[0]
    assert manager.count_tokens([]) == []


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("a\ud800", InputError, "^the text holds a lone surrogate"),
        (["a", "b\udfff", "c\ud800"], InputError, r"^texts\[1\] holds a lone surrogate"),
        (["a", b"b", "c\ud800"], TypeError, r"^texts\[1\] must be a str, not bytes"),
        (7, TypeError, "^texts must be a str or an iterable of str, not int"),
        ({"a": 1}, TypeError, "^texts must be a str or an iterable of str, not dict"),
    ],
)
def test_what_is_no_text_is_refused(shared, texts, error, message):
    with pytest.raises(error, match=message):
        shared.count_tokens(texts)


def test_an_error_of_the_iterable_comes_out(shared):
    def texts():
        yield "one"
        raise LookupError("file gone")

    with pytest.raises(LookupError, match="file gone"):
        shared.count_tokens(texts())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_counting_copies_no_text():
    """200 MB of texts, of which there is one in memory. The first is refused, so that none is tokenized."""
    run_python(
        """
from pathlib import Path
from conftest import tiny
from model_manager.errors import InputError
m = tiny(cache_size=0, threads=2, max_text_bytes=5000)
m.count_tokens("warm", "english_sentence")
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
texts = ["a" * 1_000_000] * 200
before = peak()
try:
    m.count_tokens(texts, "english_sentence")
except InputError as error:
    assert "1000000 bytes" in str(error), error
else:
    raise SystemExit("the text was not refused")
assert peak() - before < 50, peak() - before
"""
    )


def test_python_goes_on_while_texts_are_counted(make_manager):
    manager = make_manager(cache_size=0, threads=2)
    texts = odd_texts(2000) * 100
    manager.count_tokens(texts[:10], SLOT)
    call = threading.Thread(target=manager.count_tokens, args=(texts, SLOT))
    call.start()
    turns = 0
    while call.is_alive():
        call.join(0.001)
        turns += 1
    # A call that keeps the interpreter to itself leaves one or two turns.
    assert turns > 10, turns


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
began = time.monotonic()
m.count_tokens(texts[: len(texts) // 20], model="english_sentence")
part = time.monotonic() - began
began = time.monotonic()
threading.Timer(0.3, _thread.interrupt_main).start()
try:
    m.count_tokens(texts, model="english_sentence")
except KeyboardInterrupt:
    took = time.monotonic() - began
    # All of it would take twenty times the part.
    assert took < 2 + 5 * part, (took, part)
else:
    raise SystemExit("the call was not ended")
assert len(m.count_tokens(texts[:3000])) == 3000
"""
    )
