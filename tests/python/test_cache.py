"""The embedding cache, tested through `embed`."""

from __future__ import annotations

import time

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, FIXTURES


def counts(manager):
    info = manager.cache_info()
    return info["hits"], info["misses"], info["entries"]


def test_hits_and_misses(manager):
    for text in ("one text", "another", "one text"):
        manager.embed(text, "english_sentence")
    assert counts(manager) == (1, 2, 2)
    manager.embed(["one text", "third", "another"], "english_sentence")
    assert counts(manager) == (3, 3, 3)


def test_a_hit_is_the_same_read_only_array(manager):
    computed = manager.embed("one text", "english_sentence")
    first = manager.embed("one text", "english_sentence")
    again = manager.embed("one text", "english_sentence")
    assert np.shares_memory(first, again)
    np.testing.assert_array_equal(computed, again)
    assert not computed.flags.writeable
    assert not again.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 7
    with pytest.raises(ValueError, match="WRITEABLE"):
        again.flags.writeable = True


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")  # numpy 2.5 asks for views instead
def test_what_a_caller_makes_of_its_array_changes_no_other(manager):
    slot, text = "english_sentence", "one text"
    for _ in range(3):
        vector = manager.embed(text, slot)
        assert (vector.shape, vector.dtype, vector.strides) == ((32,), np.float32, (4,))
        assert len(manager.generate_embedding(text)) == 32
        vector.shape = (1, -1)
        vector = manager.embed(text, slot)
        vector.dtype = np.int32
        assert manager.embed(text, slot) is not manager.embed(text, slot)


def test_a_copy_on_request(manager):
    shared = manager.embed("one text", "english_sentence")
    own = manager.embed("one text", "english_sentence", copy=True)
    assert own.flags.writeable
    own[:] = 0
    assert np.linalg.norm(shared) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(manager.embed("one text", "english_sentence")) == pytest.approx(1, abs=1e-6)


def test_rows_are_the_callers_own(manager):
    rows = manager.embed(["one text", "two texts"], "english_sentence")
    rows[:] = 0
    assert np.linalg.norm(manager.embed("one text", "english_sentence")) == pytest.approx(1, abs=1e-6)


def test_an_array_outlives_eviction_and_the_manager(make_manager):
    manager = make_manager(cache_size=1)
    vector = manager.embed("one text", "english_sentence")
    before = vector.copy()
    manager.embed("two texts", "english_sentence")
    manager.cache_clear()
    manager.close()
    np.testing.assert_array_equal(vector, before)


@pytest.mark.parametrize(
    "options",
    [
        {"model": "turkish_sentence"},
        {"prompt": "query: "},
        {"prompt_name": "query"},
        {"normalize": False, "truncate_dim": 8},
        {"truncate_dim": 8},
        {"truncate_dim": 9},
    ],
    ids=str,
)
def test_every_parameter_that_changes_the_vector_is_in_the_key(manager, options):
    manager.embed("one text", "english_sentence")
    other = manager.embed("one text", **{"model": "english_sentence", **options})
    assert manager.cache_info()["hits"] == 0
    fresh = manager.cache_clear() or manager.embed("one text", **{"model": "english_sentence", **options})
    np.testing.assert_array_equal(other, fresh)


def test_dtype_is_in_the_key(manager):
    manager.register("rough", ENGLISH_MODEL, dtype="bfloat16")
    exact = manager.embed("one text", "english_sentence")
    assert not np.array_equal(manager.embed("one text", "rough"), exact)


def test_replacing_a_model_does_not_answer_with_the_old_ones_vectors(manager):
    manager.register("mine", ENGLISH_MODEL, dtype="float32")
    old = manager.embed("one text", "mine")
    manager.register("mine", str(FIXTURES / "bert_plain"), dtype="float32", replace=True)
    assert manager.embed("one text", "mine").shape != old.shape


def test_hits_survive_unloading_and_load_nothing(manager):
    vector = manager.embed("one text", "english_sentence")
    manager.unload("english_sentence")
    np.testing.assert_array_equal(manager.embed("one text", "english_sentence"), vector)
    assert not manager.is_loaded("english_sentence")


def test_the_least_recently_used_leaves(make_manager):
    manager = make_manager(cache_size=2)
    for text in ("a1", "b2", "a1", "c3", "a1", "b2"):
        manager.embed(text, "english_sentence")
    info = manager.cache_info()
    assert (info["hits"], info["misses"], info["entries"], info["evictions"]) == (2, 4, 2, 2)
    assert info["policy"] == "lru"


def test_bounded_by_bytes(make_manager):
    manager = make_manager(cache_size=10_000, cache_bytes=4096)
    manager.embed([f"text {n}" for n in range(500)], "english_sentence")
    info = manager.cache_info()
    assert 0 < info["bytes"] <= 4096
    assert info["entries"] < 50


def test_switched_off(make_manager):
    manager = make_manager(cache_size=0)
    manager.embed("one text", "english_sentence")
    manager.embed("one text", "english_sentence")
    assert manager.cache_info()["entries"] == 0
    assert manager.stats()["queue"]["texts"] == 2


def test_entries_expire_with_ttl(make_manager):
    manager = make_manager(cache_policy="ttl", cache_ttl=0.2)
    deadline = time.monotonic() + 30
    # A machine that stands still between two calls finds nothing.
    while not (hits := manager.cache_info()["hits"]):
        assert time.monotonic() < deadline
        manager.embed("one text", "english_sentence")
    time.sleep(0.3)
    manager.embed("one text", "english_sentence")
    assert manager.cache_info()["hits"] == hits


def test_a_slots_own_cache_is_purged(make_manager):
    manager = make_manager(auto_cleanup=True, cleanup_interval=0.05)
    manager.register("own", ENGLISH_MODEL, cache={"ttl": 0.2})
    manager.embed("one text", "own")
    deadline = time.monotonic() + 30
    while manager.cache_info()["models"]["own"]["entries"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_lfu_keeps_what_is_used_often(make_manager):
    manager = make_manager(cache_policy="lfu", cache_size=20)
    for _ in range(30):
        manager.embed("often", "english_sentence")
    for n in range(200):
        manager.embed(f"once {n}", "english_sentence")
    hits = manager.cache_info()["hits"]
    manager.embed("often", "english_sentence")
    assert manager.cache_info()["hits"] == hits + 1
    assert manager.cache_info()["entries"] <= 20


def test_clear_resets_the_counts(manager):
    manager.embed("one text", "english_sentence")
    manager.cache_clear()
    info = manager.cache_info()
    assert (info["hits"], info["misses"], info["insertions"], info["evictions"], info["entries"], info["bytes"]) == (
        0,
    ) * 6


def test_right_under_threads(make_manager):
    import threading

    manager = make_manager(cache_size=8)
    texts = [f"text {n}" for n in range(24)]
    want = dict(zip(texts, make_manager(cache_size=0).embed(texts, "english_sentence"), strict=True))
    wrong = []

    def work(seed):
        for n in range(200):
            text = texts[(n * seed) % len(texts)]
            if not np.allclose(manager.embed(text, "english_sentence"), want[text], atol=1e-6):
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 5, 7, 11, 13, 17, 19, 23)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    info = manager.cache_info()
    assert info["hits"] + info["misses"] == 1600
    assert info["entries"] == 8
