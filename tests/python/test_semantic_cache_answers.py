"""`SemanticCache` keeps its answers: whoever changes one that was given out, or that was stored, changes no other."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from model_manager.semantic import SemanticCache

QUESTION = "Çalışma saatleri nedir?"


@pytest.fixture(params=["memory", "file", "read from the file"])
def stored(request, manager, tmp_path):
    """Stores an answer for QUESTION, and returns a cache that has it."""

    def store(answer):
        path = None if request.param == "memory" else tmp_path / "answers.db"
        cache = SemanticCache(manager, path=path)
        cache.put(QUESTION, answer)
        if request.param == "read from the file":
            cache.close()
            cache = SemanticCache(manager, path=path)
        return cache

    return store


def test_an_answer_that_a_caller_changes_stays_as_it_was_stored(stored):
    answer = {"text": "09.00-18.00", "days": ["pazartesi"]}
    cache = stored(answer)
    answer["days"].append("salı")
    first = cache.get(QUESTION).answer
    assert first == {"text": "09.00-18.00", "days": ["pazartesi"]}
    first["text"] = "never"
    first["days"].clear()
    for found in (
        cache.get(QUESTION).answer,
        cache.get_or_compute(QUESTION, str),
        asyncio.run(cache.aget(QUESTION)).answer,
        asyncio.run(cache.aget_or_compute(QUESTION, str)),
        cache.get(QUESTION + "?").answer,
    ):
        assert found == {"text": "09.00-18.00", "days": ["pazartesi"]}
        found["days"].append("çarşamba")


def test_a_computed_answer_is_the_first_callers_own(stored):
    cache = stored("another answer")
    computed = {"days": ["pazartesi"]}
    first = cache.get_or_compute("Nereden?", lambda _: computed)
    first["days"].append("salı")
    computed["days"].append("çarşamba")
    assert cache.get("Nereden?").answer == {"days": ["pazartesi"]}


def test_what_cannot_be_copied_is_given_out_itself(manager):
    cache = SemanticCache(manager)
    lock = threading.Lock()
    cache.put(QUESTION, lock)
    assert cache.get(QUESTION).answer is lock
    assert cache.get_or_compute("Nereden?", lambda _: lock) is lock
    array = np.arange(3)
    cache.put(QUESTION, array)
    cache.get(QUESTION).answer[:] = 7
    array[:] = 8
    assert cache.get(QUESTION).answer.tolist() == [0, 1, 2]
