"""`SemanticCache`: answers that are found by the meaning of their questions."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from model_manager import errors
from model_manager.semantic import (
    SemanticCache,
    pairwise_similarity,
)

QUESTION = "Çalışma saatleri nedir?"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_a_similar_question_gets_the_stored_answer(manager):
    cache = SemanticCache(manager, threshold=0.5)
    assert cache.get(QUESTION) is None
    cache.put(QUESTION, {"text": "09.00-18.00"})
    same = cache.get(QUESTION)
    assert (same.answer, same.question, same.score) == ({"text": "09.00-18.00"}, QUESTION, 1.0)
    other = "Çalışma saatleriniz nedir?"
    cosine = float(pairwise_similarity(*manager.embed([QUESTION, other], "turkish_sentence")[:, None, :])[0])
    assert 0.5 < cosine < 1
    assert cache.get(other).score == pytest.approx(cosine, abs=1e-6)
    cache.threshold = cosine + 0.01
    assert cache.get(other) is None
    assert cache.stats() == {"entries": 1, "hits": 2, "misses": 2, "evicted": 0}
    assert "1 of 10000 entries" in repr(cache)


def test_the_most_similar_of_several_wins_and_scopes_are_apart(manager):
    cache = SemanticCache(manager, threshold=0.1)
    texts = [f"Soru {number}: {word}" for number, word in enumerate(["fabrika", "izin", "yemek", "servis", "maaş"])]
    for text in texts:
        cache.put(text, text.upper(), scope="tr")
    asked = "Soru 3: servisler"
    vectors = manager.embed([asked, *texts], "turkish_sentence")
    best = texts[int(np.argmax(vectors[1:] @ vectors[0]))]
    assert cache.get(asked, scope="tr").question == best
    assert cache.get(asked, scope="en") is None
    assert cache.get(texts[0]) is None
    cache.clear(scope="en")
    assert len(cache) == 5
    cache.clear(scope="tr")
    assert len(cache) == 0


def test_the_least_recently_used_entry_makes_way(manager):
    cache = SemanticCache(manager, threshold=1.0, max_entries=3)
    for name in "abc":
        cache.put(f"soru {name}", name)
    cache.get("soru a")
    cache.put("soru d", "d")
    assert [cache.get(f"soru {name}") is not None for name in "abcd"] == [True, False, True, True]
    cache.put("soru d", "yeni")
    assert cache.get("soru d").answer == "yeni"
    assert cache.stats()["evicted"] == 1
    assert cache.remove("soru d")
    assert not cache.remove("soru d")
    for number in range(200):  # rows are used again, and the matrix stays as small as the cache
        cache.put(f"soru {number}", number)
    assert cache.get("soru 199").answer == 199
    assert len(cache._vectors) == 3


def test_answers_expire(manager):
    clock = Clock()
    cache = SemanticCache(manager, threshold=0.5, ttl=60, clock=clock)
    cache.put(QUESTION, "x")
    clock.now += 59
    assert cache.get(QUESTION)
    clock.now += 1
    assert cache.get(QUESTION) is None
    assert cache.get(QUESTION + "?") is None
    cache.put("başka", "y")
    assert len(cache) == 1


def test_an_exception_of_compute_stores_nothing(manager):
    cache = SemanticCache(manager)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_compute("bir", lambda _: 1 // 0)
    assert cache.get_or_compute("bir", str.upper) == "BIR"
    assert cache.get_or_compute("bir", lambda _: pytest.fail("computed twice")) == "BIR"


def test_the_first_caller_gets_what_later_ones_get(manager, tmp_path):
    with SemanticCache(manager, path=tmp_path / "answers.db") as cache:
        found = [cache.get_or_compute("bir", lambda _: {1: ("a", "b")}) for _ in range(2)]
        found.append(asyncio.run(cache.aget_or_compute("bir", str)))
        found.append(asyncio.run(cache.aget_or_compute("iki", lambda _: {1: ("a", "b")})))
    assert found == [{"1": ["a", "b"]}] * 4


def test_coroutines_are_awaited_once_and_never_stored(manager):
    cache = SemanticCache(manager)
    calls = []

    async def compute(question):
        calls.append(question)
        return question.upper()

    with pytest.raises(TypeError, match=r"^answer must be a value, not coroutine, .*aget_or_compute awaits") as raised:
        cache.get_or_compute("bir", compute)
    assert raised.value.param == "answer"
    assert (len(cache), calls) == (0, [])
    for _ in range(2):
        assert asyncio.run(cache.aget_or_compute("bir", compute, scope="tr")) == "BIR"
    assert calls == ["bir"]
    assert cache.get("bir") is None
    # It is refused before it is needed.
    with pytest.raises(TypeError, match=r"^compute must be a function"):
        asyncio.run(cache.aget_or_compute("bir", "BIR", scope="tr"))


def test_what_can_be_read_once_is_not_stored(manager):
    """The second reader would get nothing."""

    async def pieces():
        yield "a"

    cache = SemanticCache(manager)
    for answer in (iter(["a"]), (piece for piece in "ab"), pieces(), map(str, "ab")):
        with pytest.raises(
            TypeError, match=rf"^answer must be a value, not {type(answer).__name__}, which is read once"
        ):
            cache.put("bir", answer)
    assert len(cache) == 0


def test_a_cache_works_in_asyncio(manager):
    async def scenario():
        cache = SemanticCache(manager)
        await cache.aput("bir", 1)
        return await asyncio.gather(*(cache.aget("bir") for _ in range(10)))

    assert [hit.answer for hit in asyncio.run(scenario())] == [1] * 10


def test_threads_store_and_find_at_the_same_time(manager, tmp_path):
    cache = SemanticCache(manager, threshold=1.0, max_entries=20, path=tmp_path / "answers.db")
    failed = []

    def work(thread):
        for number in range(15):
            text = f"soru {(thread * 7 + number) % 30}"
            cache.put(text, text)
            found = cache.get(text)
            if found is not None and found.answer != found.question:
                failed.append((text, found))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(cache) == 20
    assert len(set(cache._row_of.values())) == 20
    cache.close()


def test_copies_reach_every_threshold(manager):
    """The product of two equal vectors of length 1 may be rounded to a little less."""
    cache = SemanticCache(manager, threshold=1.0)
    texts = [f"soru {number}" for number in range(40)]
    for text in texts:
        cache.put(text, text)
    # Blanks at the end do not change the tokens.
    assert [text for text in texts if cache.get(f"{text} ") is None] == []


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"threshold": 0}, "threshold"),
        ({"threshold": 2}, "threshold"),
        ({"max_entries": 0}, "max_entries"),
        ({"ttl": 0}, "ttl"),
    ],
)
def test_a_cache_names_what_is_wrong(manager, options, param):
    with pytest.raises(errors.ArgumentError) as caught:
        SemanticCache(manager, **options)
    assert caught.value.param == param


def test_wrong_questions_and_answers(manager, tmp_path):
    cache = SemanticCache(manager, path=tmp_path / "answers.db")
    with pytest.raises(errors.ArgumentError, match="blank"):
        cache.put("  ", 1)
    with pytest.raises(errors.ArgumentError, match="as JSON"):
        cache.put("bir", object())
    with pytest.raises(errors.ArgumentError, match="as JSON"):
        cache.put("bir", float("nan"))
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for answer in ("half an emoji: \ud83d", {"\ud83d": 1}, deep):
        with pytest.raises(errors.ArgumentError, match="as JSON") as caught:
            cache.put("bir", answer)
        assert caught.value.param == "answer"
        assert cache.get("bir") is None
    for call in (lambda: cache.put("bir", 1, scope="\ud83d"), lambda: cache.clear(scope="\ud83d")):
        with pytest.raises(errors.ArgumentError, match=r"scope='.+' holds a lone surrogate") as caught:
            call()
        assert caught.value.param == "scope"
    with pytest.raises(TypeError, match="question must be a str"):
        cache.get(3)
    with pytest.raises(TypeError, match="scope must be a str"):
        cache.get("bir", scope=3)
    assert len(cache) == 0
