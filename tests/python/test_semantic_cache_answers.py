"""What `SemanticCache` with a file hands out is the reader's own."""

from __future__ import annotations

import asyncio

from model_manager.semantic import SemanticCache

QUESTION = "Çalışma saatleri nedir?"


def test_a_reader_that_changes_an_answer_does_not_change_the_cache(manager, tmp_path):
    path = tmp_path / "answers.db"
    given = {"hours": [9, 18]}
    with SemanticCache(manager, path=path, threshold=0.999) as cache:
        found = [
            cache.get_or_compute(QUESTION, lambda _: given),
            cache.get_or_compute(QUESTION, lambda _: given),
            asyncio.run(cache.aget_or_compute(QUESTION, lambda _: given)),
            cache.get(QUESTION).answer,
            cache.get(f"{QUESTION} ").answer,
            asyncio.run(cache.aget(QUESTION)).answer,
        ]
        for answer in found:
            assert answer == {"hours": [9, 18]}
            answer["hours"].append(20)
        assert given == {"hours": [9, 18]}
        given["hours"].clear()
        assert cache.get(QUESTION).answer == {"hours": [9, 18]}
    with SemanticCache(manager, path=path) as again:
        again.get(QUESTION).answer["hours"].append(20)
        assert again.get(QUESTION).answer == {"hours": [9, 18]}


def test_without_a_file_an_answer_is_the_object_that_was_stored(manager):
    cache, given = SemanticCache(manager), object()
    cache.put(QUESTION, given)
    assert cache.get(QUESTION).answer is given
