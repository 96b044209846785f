"""The exact identity of a checkpoint: what a call of `_embed_identified` says, and who compares vectors by it."""

from __future__ import annotations

import os
import shutil
import sqlite3

import numpy as np
from conftest import give_other_weights, tiny
from embedding_server import EmbeddingServer
from model_manager.semantic import IntentClassifier, SemanticCache

QUESTIONS = ["Çalışma saatleri nedir?", "Yemekhane nerede?"]


def nudge(folder):
    """Another checkpoint, whose vectors are nearly the same."""
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    nudged = weights[name].copy()
    nudged[0, 0] += np.float32(0.01)
    # A new file, as a deployment writes one: the former is mapped.
    save_file({**weights, name: nudged}, file.with_name("new"))
    file.with_name("new").replace(file)


def identity(manager, model="m", **options):
    vectors, content = manager._embed_identified(QUESTIONS, model, **options)
    np.testing.assert_array_equal(vectors, manager.embed(QUESTIONS, model, **options))
    return content


def asked(embedder, monkeypatch):
    """The texts of each call, which are collected from now on."""
    calls, real = [], embedder._queries_identified
    monkeypatch.setattr(embedder, "_queries_identified", lambda texts: calls.append(list(texts)) or real(texts))
    return calls


def test_equal_files_have_one_identity_and_others_have_another(model_copy, tmp_path):
    with tiny() as manager:
        manager.register("m", str(model_copy))
        first = identity(manager)
        assert len(first) == 64
        assert first == identity(manager), "with every vector in the cache"
        manager.unload("m")
        assert first == identity(manager)
        assert manager._embed_identified([], "m")[1] == first
        shutil.copytree(model_copy, tmp_path / "elsewhere" / "copy")
        manager.register("copy", str(tmp_path / "elsewhere" / "copy"))
        manager.register("narrow", str(model_copy), dtype="int8")
        assert identity(manager, "copy") == first
        assert identity(manager, "narrow") != first
        nudge(model_copy)
        manager.unload("m")
        manager.cache_clear()
        second = identity(manager)
        assert second not in (first, None)


def test_where_it_is_not_known_there_is_none(model_copy):
    with tiny() as manager, EmbeddingServer() as server:
        manager.register("remote", server.ollama)
        assert identity(manager, "remote") is None
        assert manager._embed_identified(QUESTIONS)[1] is None, "of whichever slot the language chooses"
        manager.register("m", str(model_copy))
        manager.load("m")
        os.utime(model_copy / "config.json", (1, 1))
        assert identity(manager) is None, "its files were changed after the load"
        manager.unload("m")
        manager.load("m")
        assert len(identity(manager)) == 64


def test_nearly_equal_checkpoints_are_two(model_copy, tmp_path):
    path = tmp_path / "answers.db"
    with tiny() as manager:
        manager.register("m", str(model_copy))
        before = manager.embed(QUESTIONS[0], "m", copy=True)
        intents = IntentClassifier({"a": [QUESTIONS[0]], "b": [QUESTIONS[1]]}, manager, "m")
        intents.predict(QUESTIONS[0])
        known = intents._known[0]
        caches = [SemanticCache(manager, "m"), SemanticCache(manager, "m", path=path)]
        for cache in caches:
            cache.put(QUESTIONS[0], "x")
        former = caches[0]._model
        nudge(model_copy)
        manager.unload("m")
        after = manager.embed(f"{QUESTIONS[0]} ", "m")
        assert float(np.dot(before, after) / np.linalg.norm(before) / np.linalg.norm(after)) > 0.9999
        intents.predict(QUESTIONS[0])
        assert intents._known[0] != known
        for cache in caches:
            assert cache.get(f"{QUESTIONS[0]} ").answer == "x"
            assert cache._model != former
        caches[1].close()
        with sqlite3.connect(path) as file:
            assert file.execute("SELECT DISTINCT fingerprint FROM answers").fetchall() == [(caches[1]._model[1],)]


def test_nothing_but_the_questions_is_embedded(model_copy, tmp_path, monkeypatch):
    path = tmp_path / "answers.db"
    with tiny(cache_size=0) as manager:
        manager.register("m", str(model_copy))
        with SemanticCache(manager, "m", path=path) as cache:
            calls = asked(cache._embedder, monkeypatch)
            for question in QUESTIONS:
                cache.put(question, "x")
            cache.get(f"{QUESTIONS[0]} ")
            assert [texts for texts in calls if texts] == [[QUESTIONS[0]], [QUESTIONS[1]], [f"{QUESTIONS[0]} "]]
        # Another process with a copy of the model: a file of the same identity is read as it is.
        shutil.copytree(model_copy, tmp_path / "copy" / "model")
        with tiny() as other:
            other.register("m", str(tmp_path / "copy" / "model"))
            with SemanticCache(other, "m", path=path) as cache:
                calls = asked(cache._embedder, monkeypatch)
                assert len(cache) == 2
                assert not any(calls), calls


def test_a_file_with_probes_of_earlier_versions_is_not_embedded_again(model_copy, tmp_path, monkeypatch):
    path = tmp_path / "answers.db"
    with tiny() as manager:
        manager.register("m", str(model_copy))
        with SemanticCache(manager, "m", path=path) as cache:
            for question in QUESTIONS:
                cache.put(question, "x")
        known = cache._model[1]
        with sqlite3.connect(path) as file:
            file.execute("UPDATE answers SET fingerprint = substr(fingerprint, 1, 17) || '0123456789abcdef'")
        with SemanticCache(manager, "m", path=path) as cache:
            calls = asked(cache._embedder, monkeypatch)
            assert len(cache) == 2
            assert [texts for texts in calls if texts] == [[QUESTIONS[1]]], "one question shows it"
        with sqlite3.connect(path) as file:
            assert set(file.execute("SELECT fingerprint FROM answers")) == {(known,)}


def test_a_served_model_keeps_its_probe(tmp_path, monkeypatch):
    path = tmp_path / "answers.db"
    with EmbeddingServer() as server, tiny() as manager:
        manager.register("m", server.ollama)
        with SemanticCache(manager, "m", path=path) as cache:
            cache.put(QUESTIONS[0], "x")
            calls = asked(cache._embedder, monkeypatch)
            cache.put(QUESTIONS[1], "y")
            assert [len(texts) for texts in calls] == [2], "the question and the probe, at once"
            assert len(cache._model[1].partition("-")[2]) == 16
        with SemanticCache(manager, "m", path=path) as cache:
            assert cache.get(QUESTIONS[1]).answer == "y"
            assert len(cache) == 2


def test_a_checkpoint_that_is_there_for_one_call_is_seen(model_copy):
    """What describes the model is the same before and after the call, and in the call."""
    with tiny(cache_size=0) as manager:
        manager.register("m", str(model_copy))
        other = model_copy.with_name("other")
        shutil.copytree(model_copy, other)
        give_other_weights(other)
        own = (model_copy / "model.safetensors").read_bytes()

        def put(content):
            (model_copy / "new").write_bytes(content)
            (model_copy / "new").replace(model_copy / "model.safetensors")
            manager.unload("m")

        cache = SemanticCache(manager, "m", threshold=0.999)
        cache.put(QUESTIONS[0], "0")
        expected = cache._vectors[cache._row_of["", QUESTIONS[0]]].copy()
        real = cache._embedder._queries_identified
        swapped = []

        def once(texts):
            if swapped:
                return real(texts)
            swapped.append(texts)
            put((other / "model.safetensors").read_bytes())
            found = real(texts)
            put(own)
            return found

        cache._embedder._queries_identified = once
        cache.put(QUESTIONS[1], "1")
        assert swapped
        np.testing.assert_allclose(cache._vectors[cache._row_of["", QUESTIONS[0]]], expected, atol=1e-6)
        found = manager.embed(QUESTIONS[1], "m")
        np.testing.assert_allclose(
            cache._vectors[cache._row_of["", QUESTIONS[1]]], found / np.linalg.norm(found), atol=1e-5
        )
