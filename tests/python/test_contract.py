"""The chatbot's interface, name by name and key by key."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import pickle
import weakref

import model_manager as package
import pytest
from conftest import ENGLISH_MODEL, ENGLISH_TEXT, TURKISH_MODEL, TURKISH_TEXT, run_python
from model_manager import LazyLoadTracker, ModelManager, ModelType, TurkishLanguageDetector
from model_manager.compat.rules import FALLBACK_ANSWERS

FORBIDDEN = [
    "initialize",
    "cleanup",
    "generate_response",
    "generate_openai_response",
    "get_memory_usage",
    "_sentence_model",
    "_text_generator",
    "models_loaded",
    "registry",
    "keys",
]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_callers_probe_for_names_that_must_not_exist(shared, name):
    assert not hasattr(shared, name)
    assert not hasattr(package.model_manager, name)


def test_the_object_is_truthy(shared):
    assert shared
    assert package.model_manager


def test_without_arguments_there_is_one_object():
    assert ModelManager() is ModelManager() is package.model_manager


def test_with_arguments_managers_are_independent():
    with ModelManager(cache_size=3) as first, ModelManager(cache_size=3) as second:
        assert first is not second
        assert first is not package.model_manager
        assert first.config.cache_size == 3


def test_a_derived_class_without_arguments_is_independent():
    class Mine(ModelManager):
        pass

    with Mine() as mine:
        assert type(mine) is Mine
        assert mine is not package.model_manager


def test_the_chatbots_module_has_its_other_names():
    from model_manager import chatbot

    for name in [
        "LazyLoadTracker",
        "ModelManager",
        "ModelType",
        "TurkishLanguageDetector",
        "lazy_load_model",
        "memory_efficient_cache",
        "model_manager",
    ]:
        assert getattr(chatbot, name) is getattr(package, name)


def test_model_types():
    assert {kind.name: kind.value for kind in ModelType} == {
        "TURKISH_SENTENCE": "turkish_sentence",
        "ENGLISH_SENTENCE": "english_sentence",
        "TEXT_GENERATOR": "text_generator",
    }


def test_detector_is_a_classmethod():
    assert TurkishLanguageDetector.is_turkish("Bu çok güzel") is True
    assert TurkishLanguageDetector.is_turkish("hello there") is False
    assert TurkishLanguageDetector.is_turkish("") is False
    assert TurkishLanguageDetector.is_turkish("bu\ud800 çok güzel") is True


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("generate_text_response", {"prompt": inspect.Parameter.empty, "max_length": 120, "turkish_context": True}),
        ("generate_huggingface_response", {"message": inspect.Parameter.empty, "user_id": None}),
        ("warmup_models", {"models": None}),
        ("set_auto_cleanup", {"enabled": inspect.Parameter.empty, "cleanup_interval": 300, "max_idle_time": 600}),
    ],
)
def test_defaults(method, parameters):
    signature = inspect.signature(getattr(ModelManager, method))
    assert {name: p.default for name, p in signature.parameters.items() if name != "self"} == parameters


def test_models_load_on_access_and_never_by_being_looked_at(manager):
    for name in ("_turkish_sentence_model", "_english_sentence_model", "_text_generator_model"):
        assert getattr(manager, name) is None
    assert not any(map(manager.is_loaded, manager.slots()))

    assert manager.english_sentence_model.encode(ENGLISH_TEXT).shape == (32,)
    assert manager._english_sentence_model.encode(ENGLISH_TEXT).shape == (32,)
    assert manager._turkish_sentence_model is None

    assert manager.turkish_sentence_model.name == "turkish_sentence"
    assert manager._turkish_sentence_model.name == "turkish_sentence"


def test_the_preferred_model(make_manager):
    assert make_manager().sentence_model.name == "turkish_sentence"
    assert make_manager(prefer_turkish=False).sentence_model.name == "english_sentence"


def test_the_model_of_a_text(shared):
    assert shared.get_embedding_model_for_text(TURKISH_TEXT).name == "turkish_sentence"
    assert shared.get_embedding_model_for_text(ENGLISH_TEXT).name == "english_sentence"


def test_model_info_of_a_fresh_manager(manager):
    info = manager.get_model_info()
    assert json.loads(json.dumps(info)) == info
    assert {key: type(value) for key, value in info.items()} == {
        "english_sentence_model_loaded": bool,
        "turkish_sentence_model_loaded": bool,
        "text_generator_loaded": bool,
        "device": str,
        "model_config": dict,
        "memory_info": dict,
        "language_detection_enabled": bool,
        "prefer_turkish_models": bool,
        "cache_info": dict,
        "lazy_loading_stats": dict,
        "auto_cleanup_enabled": bool,
        "cleanup_interval_seconds": int,
        "max_idle_time_seconds": int,
        "last_cleanup": float,
    }
    assert not info["english_sentence_model_loaded"]
    assert not info["turkish_sentence_model_loaded"]
    assert not info["text_generator_loaded"]
    assert info["device"] == "cpu"
    assert info["model_config"] == {}
    assert set(info["memory_info"]) == {"memory_mb", "memory_percent"}
    assert 0 < info["memory_info"]["memory_percent"] < 100
    assert info["cache_info"] == {
        "embedding_cache_size": 0,
        "embedding_cache_hits": 0,
        "embedding_cache_misses": 0,
        "embedding_cache_maxsize": 50,
        "cache_hit_ratio": 0.0,
    }
    assert info["cleanup_interval_seconds"] == 300
    assert info["max_idle_time_seconds"] == 600


def test_model_info_after_use(manager):
    manager.generate_embedding(ENGLISH_TEXT)
    manager.generate_embedding(ENGLISH_TEXT)
    info = manager.get_model_info()
    assert info["english_sentence_model_loaded"]
    assert not info["turkish_sentence_model_loaded"]
    assert info["model_config"] == {"english_sentence_model": ENGLISH_MODEL}
    assert info["cache_info"]["embedding_cache_size"] == 1
    assert info["cache_info"]["cache_hit_ratio"] == 0.5

    manager.generate_embedding(TURKISH_TEXT)
    assert manager.get_model_info()["model_config"] == {
        "english_sentence_model": ENGLISH_MODEL,
        "turkish_sentence_model": TURKISH_MODEL,
    }


def test_lazy_loading_statistics(manager):
    manager.generate_embedding(ENGLISH_TEXT)
    statistics = manager.get_lazy_loading_statistics()
    assert json.loads(json.dumps(statistics)) == statistics
    assert set(statistics) == {"tracker", "config", "current_state"}
    assert {"load_times", "load_counts", "last_access", "memory_usage"} <= set(statistics["tracker"])
    for figures in statistics["tracker"].values():
        assert set(figures) <= {"english_sentence"}
    assert statistics["tracker"]["load_counts"] == {"english_sentence": 1}
    assert statistics["tracker"]["load_times"]["english_sentence"] > 0
    assert 0 <= statistics["tracker"]["last_access"]["english_sentence"] < 30
    assert statistics["config"] == {
        "auto_cleanup": False,
        "cleanup_interval": 300,
        "max_idle_time": 600,
        "max_cache_size": 50,
    }
    state = statistics["current_state"]
    assert state["models_loaded"] == {"turkish_sentence": False, "english_sentence": True, "text_generator": False}
    assert state["memory_usage_mb"] > 10
    assert state["cache_usage"] == {"hits": 0, "misses": 1, "maxsize": 50, "currsize": 1}


def test_further_slots_show_up(manager):
    manager.register("mine", loader=object)
    loaded = manager.get_lazy_loading_statistics()["current_state"]["models_loaded"]
    assert loaded == {"turkish_sentence": False, "english_sentence": False, "text_generator": False, "mine": False}


def test_unload_all_models_forgets(manager):
    manager.generate_embedding(ENGLISH_TEXT)
    manager.unload_all_models()
    info = manager.get_model_info()
    assert not info["english_sentence_model_loaded"]
    assert info["model_config"] == {}
    assert info["cache_info"]["embedding_cache_size"] == 0
    assert info["lazy_loading_stats"]["load_counts"] == {}
    assert len(manager.generate_embedding(ENGLISH_TEXT)) == 32, "and loads again"


def test_cleanup_resources_and_clear_caches(manager):
    manager.generate_embedding(ENGLISH_TEXT)
    manager.clear_caches()
    assert manager.is_loaded("english_sentence")
    assert manager.cache_info()["entries"] == 0
    manager.cleanup_resources()
    assert not manager.is_loaded("english_sentence")
    assert manager._force_gc() is None


def test_set_auto_cleanup_shows_at_once(manager):
    manager.set_auto_cleanup(True, cleanup_interval=7, max_idle_time=9)
    config = manager.get_lazy_loading_statistics()["config"]
    assert (config["auto_cleanup"], config["cleanup_interval"], config["max_idle_time"]) == (True, 7, 9)
    manager.set_auto_cleanup(False)
    info = manager.get_model_info()
    assert (info["auto_cleanup_enabled"], info["cleanup_interval_seconds"], info["max_idle_time_seconds"]) == (
        False,
        300,
        600,
    )


def test_memory_usage_is_megabytes(shared):
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    assert isinstance(shared._get_memory_usage(), float)
    assert 0.2 * peak < shared._get_memory_usage() <= 1.1 * peak


def test_warm_up(make_manager, caplog):
    manager = make_manager()
    manager.warmup_models()
    assert manager.is_loaded("turkish_sentence")
    assert not manager.is_loaded("english_sentence")

    manager = make_manager(prefer_turkish=False)
    manager.warmup_models()
    assert manager.is_loaded("english_sentence")

    manager = make_manager()
    manager.warmup_models([ModelType.ENGLISH_SENTENCE, "no such slot"])
    assert manager.is_loaded("english_sentence")
    assert "no such slot" in caplog.text


def test_tracker_can_be_used_alone():
    tracker = LazyLoadTracker()
    tracker.record_load("a", 0.5, 20.0)
    tracker.record_load("a", 1.5, 30.0)
    tracker.record_access("b")
    statistics = tracker.get_statistics()
    assert statistics["load_times"] == {"a": 1.5}
    assert statistics["load_counts"] == {"a": 2}
    assert statistics["memory_usage"] == {"a": 30.0}
    assert statistics["last_access"].keys() == {"a", "b"}
    assert statistics["load_time_p50"]["a"] in (0.5, 1.0, 1.5)
    assert statistics["load_time_p95"]["a"] == pytest.approx(1.5, abs=0.06)
    tracker.clear()
    assert not any(tracker.get_statistics().values())


def test_settings_are_read_at_first_use_and_model_names_at_each_load():
    """The host imports this package first and loads its .env file afterwards."""
    code = """
import os
from model_manager import model_manager
os.environ["ENGLISH_FALLBACK_MODEL"] = os.environ["FIRST"]
os.environ["MEMORY_EFFICIENT_CACHE_SIZE"] = "7"
os.environ["MODEL_MANAGER_DTYPE"] = "float32"
assert len(model_manager.generate_embedding("an english text")) == 32
assert model_manager.config.cache_size == 7
os.environ["ENGLISH_FALLBACK_MODEL"] = os.environ["SECOND"]
model_manager.unload_all_models()
assert len(model_manager.generate_embedding("an english text")) == 24
assert model_manager.get_model_info()["model_config"] == {"english_sentence_model": os.environ["SECOND"]}
"""
    from conftest import FIXTURES

    run_python(code, FIRST=ENGLISH_MODEL, SECOND=str(FIXTURES / "bert_plain"))


def test_lazy_loading_can_be_switched_off(make_manager):
    manager = make_manager(lazy_loading=False)
    assert manager.is_loaded("turkish_sentence")
    assert manager.is_loaded("english_sentence")


def test_the_bound_generate_embedding_is_a_method(manager):
    bound = manager.generate_embedding
    expected = bound(ENGLISH_TEXT)
    assert bound == manager.generate_embedding
    assert hash(bound) == hash(manager.generate_embedding)
    assert bound != ModelManager.generate_embedding
    assert ModelManager.generate_embedding(manager, ENGLISH_TEXT) == expected
    for copied in (copy.copy(bound), copy.deepcopy({"embed": bound})["embed"], weakref.ref(bound)()):
        assert copied == bound
    restored = pickle.loads(pickle.dumps(bound))
    assert restored(ENGLISH_TEXT) == expected
    assert restored.__self__ is not manager
    restored.__self__.close()


@pytest.mark.parametrize("answers", [[], (), None, 7, [None], "only this"])
def test_there_is_a_fallback_answer_whatever_was_set(manager, answers):
    class Message:
        def __str__(self):
            raise RuntimeError("the host's own fault")

    manager.fallback_answers = answers
    manager.quality_threshold = 2
    for message in ("merhaba", Message()):
        answer = asyncio.run(manager.generate_huggingface_response(message))
        assert answer in ((answers,) if isinstance(answers, str) else FALLBACK_ANSWERS)
