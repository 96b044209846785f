"""Two checkpoints under one name: `SemanticCache` and `IntentClassifier` compare vectors of one of them only."""

from __future__ import annotations

import shutil
import sqlite3

import numpy as np
import pytest
from conftest import give_other_weights, tiny
from model_manager.semantic import IntentClassifier, SemanticCache

QUESTIONS = ["Çalışma saatleri nedir?", "Yemekhane nerede?", "When do you open?"]
EXAMPLES = {"hours": ["When are you open?", "Çalışma saatleriniz nedir?"], "invoice": ["Where is my invoice?"]}


def replace(folder):
    """Put another checkpoint into the place of the model, as a deployment does."""
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    give_other_weights(other)
    (other / "model.safetensors").replace(folder / "model.safetensors")
    shutil.rmtree(other)


def assert_vectors(cache, questions=QUESTIONS):
    """The stored vectors are those of a manager that has seen no other model."""
    with tiny(cache_size=0) as fresh:
        fresh.register("m", cache._embedder.manager.stats()["slots"]["m"]["source"])
        expected = fresh.embed(questions, "m")
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for question, vector in zip(questions, expected, strict=True):
        np.testing.assert_allclose(cache._vectors[cache._row_of["", question]], vector, atol=1e-5)


@pytest.mark.parametrize("size", [0, 1, 1000], ids=["no cache", "a small cache", "a cache"])
@pytest.mark.parametrize("kept", [False, True], ids=["memory", "file"])
def test_a_checkpoint_that_is_replaced_in_one_process_embeds_the_questions_again(model_copy, tmp_path, size, kept):
    path = tmp_path / "answers.db" if kept else None
    with tiny(cache_size=size) as manager:
        manager.register("m", str(model_copy))
        cache = SemanticCache(manager, "m", path=path, threshold=0.999)
        for question in QUESTIONS:
            cache.put(question, question.upper())
        for blanks in (" ", "  "):  # and back
            replace(model_copy)
            manager.unload("m")
            # A text that the cache of vectors has not seen, of the same tokens.
            asked = [question + blanks for question in QUESTIONS]
            assert [cache.get(question).answer for question in asked] == [one.upper() for one in QUESTIONS]
            assert_vectors(cache)
        cache.close()
        if kept:
            with sqlite3.connect(path) as file:
                (fingerprint,) = {row for (row,) in file.execute("SELECT fingerprint FROM answers")}
            assert fingerprint == cache._embedder.query_fingerprint


def test_the_same_checkpoint_is_not_embedded_again(model_copy, monkeypatch):
    with tiny() as manager:
        manager.register("m", str(model_copy))
        cache = SemanticCache(manager, "m", threshold=0.999)
        for question in QUESTIONS:
            cache.put(question, "x")
        monkeypatch.setattr(cache, "_embed_again", lambda: pytest.fail("embedded again"))
        for step in (manager.unload, manager.load, manager.unload):
            step("m")
            manager.cache_clear()
            assert cache.get(QUESTIONS[0] + " ") is not None


@pytest.mark.parametrize("size", [0, 1000], ids=["no cache", "a cache"])
def test_examples_of_a_replaced_checkpoint_are_embedded_again(model_copy, size):
    text = "When do you open today?"
    with tiny(cache_size=size) as manager:
        manager.register("m", str(model_copy))
        intents = IntentClassifier(EXAMPLES, manager, "m")
        before = intents.predict(text + " ")
        replace(model_copy)
        manager.unload("m")
        after = intents.predict(text)
    with tiny() as manager:
        manager.register("m", str(model_copy))
        fresh = IntentClassifier(EXAMPLES, manager, "m").predict(text)
    assert after.scores == pytest.approx(fresh.scores, abs=1e-6)
    assert after.scores != pytest.approx(before.scores, abs=1e-3)


def test_a_row_of_a_new_checkpoint_does_not_vouch_for_the_rows_of_another(model_copy, tmp_path):
    """A rolling update: one process still has the former checkpoint while another one adds a row of the new one."""
    path = tmp_path / "answers.db"
    with tiny() as former, tiny() as present, tiny() as next_one:
        former.register("m", str(model_copy))
        old = SemanticCache(former, "m", path=path, threshold=0.999)
        old.put(QUESTIONS[0], "0")
        replace(model_copy)
        present.register("m", str(model_copy))
        new = SemanticCache(present, "m", path=path, threshold=0.999)
        assert new.get(QUESTIONS[0] + " ").answer == "0"
        old.put(QUESTIONS[1], "1")
        new.put(QUESTIONS[2], "2")
        assert_vectors(new, [QUESTIONS[0], QUESTIONS[2]])
        old.close()
        new.close()
        next_one.register("m", str(model_copy))
        with SemanticCache(next_one, "m", path=path, threshold=0.999) as cache:
            assert [cache.get(f"{question} ").answer for question in QUESTIONS] == ["0", "1", "2"]
            assert_vectors(cache)
        # From now on they are of one model, and one question shows it.
        with sqlite3.connect(path) as file:
            assert len(set(file.execute("SELECT fingerprint FROM answers"))) == 1


def with_answers(manager, path):
    """A cache that has stored an answer for each question, and is closed."""
    with SemanticCache(manager, "m", path=path) as cache:
        for question in QUESTIONS:
            cache.put(question, "x")
    return cache


def test_rows_without_a_checkpoint_are_embedded_again(model_copy, tmp_path):
    """An earlier version wrote such fingerprints."""
    path = tmp_path / "answers.db"
    with tiny() as manager:
        manager.register("m", str(model_copy))
        cache = with_answers(manager, path)
        wrong = np.zeros(cache._embedder.dimension, np.float32)
        wrong[0] = 1
        with sqlite3.connect(path) as file:
            file.execute("UPDATE answers SET fingerprint = substr(fingerprint, 1, 16)")
            file.execute("UPDATE answers SET vector = ? WHERE question != ?", (wrong.tobytes(), QUESTIONS[-1]))
        with SemanticCache(manager, "m", path=path) as cache:
            assert len(cache) == 3
            assert_vectors(cache)


def test_equal_checkpoints_of_two_processes_are_one(model_copy, tmp_path, monkeypatch):
    """A fingerprint that is of no content: one question shows that its vectors are those of the slot's model."""
    path = tmp_path / "answers.db"
    with tiny() as manager:
        manager.register("m", str(model_copy))
        cache = with_answers(manager, path)
        known = cache._embedder.query_fingerprint
        other = f"{known.partition('-')[0]}-{'0' * 16}"
        with sqlite3.connect(path) as file:
            file.execute("UPDATE answers SET fingerprint = ? WHERE question = ?", (other, QUESTIONS[0]))
        cache = SemanticCache(manager, "m", path=path)
        embedded = []
        real = cache._embedder.queries_of_one_model
        monkeypatch.setattr(
            cache._embedder, "queries_of_one_model", lambda texts: embedded.extend(texts) or real(texts)
        )
        assert len(cache) == 3
        cache.close()
        assert embedded == [QUESTIONS[0]]
        with sqlite3.connect(path) as file:
            assert set(file.execute("SELECT fingerprint FROM answers")) == {(known,)}


def test_a_score_is_not_above_one(manager):
    """Rounding takes the product of a vector with itself a little above 1."""
    examples = [f"soru {number}" for number in range(60)]
    intents = IntentClassifier({"all": examples}, manager, neighbors=1)
    assert max(one.score for one in intents.predict_many(examples)) <= 1


def test_a_checkpoint_that_is_there_for_one_call_leaves_no_vector(model_copy):
    """What describes the model is the same before and after the call, and in the call."""
    text = "When do you open today?"
    with tiny(cache_size=0) as manager:
        manager.register("m", str(model_copy))

        def other_for_one_call(embedder):
            real = embedder._queries_identified

            def queries(texts):
                embedder._queries_identified = real
                replace(model_copy)
                manager.unload("m")
                found = real(texts)
                replace(model_copy)
                manager.unload("m")
                return found

            embedder._queries_identified = queries

        intents = IntentClassifier(EXAMPLES, manager, "m")
        expected = intents.predict(text)
        other_for_one_call(intents._embedder)
        assert intents.predict(text).scores == pytest.approx(expected.scores, abs=1e-6)
        cache = SemanticCache(manager, "m", threshold=0.999)
        cache.put(QUESTIONS[0], "0")
        for question in QUESTIONS[1:]:
            other_for_one_call(cache._embedder)
            cache.put(question, "x")
        assert_vectors(cache)
        other_for_one_call(cache._embedder)
        assert cache.get(QUESTIONS[0] + " ").answer == "0"
