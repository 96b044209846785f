"""Settings: their sources and their allowed values."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re

import pytest
from conftest import ROOT
from model_manager import Config, ModelManager, _types
from model_manager.errors import ConfigError

FIELDS = {field["name"]: field for field in Config.fields()}

CONTRACT = {
    "lazy_loading": ("LAZY_LOADING_ENABLED", True),
    "auto_cleanup": ("AUTO_CLEANUP_ENABLED", True),
    "cleanup_interval": ("CLEANUP_INTERVAL_SECONDS", 300),
    "max_idle_time": ("MAX_IDLE_TIME_SECONDS", 600),
    "cache_size": ("MEMORY_EFFICIENT_CACHE_SIZE", 50),
    "prefer_turkish": ("AI_PREFER_TURKISH_MODELS", True),
    "language_detection": ("AI_LANGUAGE_DETECTION", True),
    "turkish_model": ("TURKISH_SENTENCE_MODEL", "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"),
    "english_model": ("ENGLISH_FALLBACK_MODEL", "all-MiniLM-L6-v2"),
    "generator_model": ("HUGGINGFACE_MODEL", "ytu-ce-cosmos/turkish-gpt2-large"),
    "use_huggingface": ("USE_HUGGINGFACE", True),
    "max_tokens": ("AI_MAX_TOKENS", 150),
    "temperature": ("AI_TEMPERATURE", 0.7),
}

# name: (text in the environment, the value that it means)
EXAMPLES = {
    "lazy_loading": ("false", False),
    "auto_cleanup": ("0", False),
    "cleanup_interval": ("12.5", 12.5),
    "max_idle_time": ("30", 30),
    "cache_size": ("1000", 1000),
    "cache_bytes": ("1048576", 1048576),
    "cache_policy": ("ttl", "ttl"),
    "cache_ttl": ("5", 5),
    "cache_disk": ("/tmp/vectors", "/tmp/vectors"),
    "cache_disk_bytes": ("2GB", "2GB"),
    "cache_disk_dtype": ("int8", "int8"),
    "cache_disk_ttl": ("30d", "30d"),
    "warm_restart": ("100", 100),
    "cache_url": ("redis://localhost", "redis://localhost"),
    "cache_url_ttl": ("1d", "1d"),
    "cache_timeout": ("0.1", 0.1),
    "cache_secret": ("env:SECRET", "env:SECRET"),
    "eviction": ("cost", "cost"),
    "cold_start_price": ("900", 900),
    "max_keep_alive": ("7200", 7200),
    "adaptive_state": ("/tmp/habits", "/tmp/habits"),
    "prefer_turkish": ("no", False),
    "language_detection": ("FALSE", False),
    "turkish_model": ("/a/model", "/a/model"),
    "english_model": ("pkg:some_package/model", "pkg:some_package/model"),
    "generator_model": ("/a/generator", "/a/generator"),
    "reranker_model": ("/a/reranker", "/a/reranker"),
    "use_huggingface": ("off", False),
    "max_tokens": ("20", 20),
    "temperature": ("1.5", 1.5),
    "dtype": ("float32", "float32"),
    "generator_dtype": ("int8", "int8"),
    "device": ("cpu", "cpu"),
    "profile": ("multilingual", "multilingual"),
    "language_detector": ("improved", "improved"),
    "threads": ("3", 3),
    "max_queue": ("17", 17),
    "max_text_bytes": ("65536", 65536),
    "max_parallel": ("4", 4),
    "max_generation_queue": ("9", 9),
    "prompt_lookup_tokens": ("4", 4),
    "max_context": ("2048", 2048),
    "kv_memory": ("1GB", "1GB"),
    "memory_budget": ("2GB", "2GB"),
    "keep_alive": ("5m", "5m"),
    "load_timeout": ("9", 9),
    "cache_dir": ("/a/cache", "/a/cache"),
    "offline": ("true", True),
    "remote_connections": ("2", 2),
    "remote_batch": ("16", 16),
    "remote_timeout": ("5", 5),
    "revision": ("v1", "v1"),
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for field in FIELDS.values():
        monkeypatch.delenv(field["environment"], raising=False)


def test_every_field_is_everywhere():
    assert set(FIELDS) == set(EXAMPLES), "each field has an example here"
    assert set(FIELDS) == set(Config().to_dict())
    stub = (ROOT / "python" / "model_manager" / "_core.pyi").read_text(encoding="utf-8")
    config = stub[stub.index("class Config:") :].split("\n@final", 1)[0]
    assert list(_types.Settings.__annotations__) == list(FIELDS)
    for name, field in FIELDS.items():
        assert hasattr(Config(), name)
        property_doc = config.split(f"def {name}(self)", 1)[1].split("@", 1)[0]
        assert f"`{field['environment']}`" in property_doc, f"the stub names the variable of {name}"
        assert field["doc"]
        assert field["type"]


def test_the_stub_names_every_choice():
    stub = (ROOT / "python" / "model_manager" / "_core.pyi").read_text(encoding="utf-8")
    config = stub[stub.index("class Config:") :].split("\n@final", 1)[0]
    counted = 0
    for name, field in FIELDS.items():
        text = config.split(f"def {name}(self)", 1)[1].split("@", 1)[0]
        names = set(re.findall(r"[a-z+]+://", field["doc"]))
        if "str" in field["type"]:
            try:
                Config(**{name: "no such choice?"})
            except ConfigError as error:
                refusal = str(error)
                if "must be one of" in refusal or 'or "auto"' in refusal:
                    names |= set(re.findall(r'"([a-z][a-z0-9]*)"', refusal))
        if text.split('"""')[1].startswith("The same"):
            continue
        counted += len(names)
        for one in names:
            assert f"``{one}``" in text, f"{name}: the stub does not name {one}"
    assert counted > 20


def test_environment_names_are_distinct_and_ours_have_the_prefix():
    names = [field["environment"] for field in FIELDS.values()]
    assert len(set(names)) == len(names)
    for name, field in FIELDS.items():
        assert field["environment"].startswith("MODEL_MANAGER_") == (name not in CONTRACT)


@pytest.mark.parametrize("name", CONTRACT)
def test_the_chatbots_settings(name):
    assert (FIELDS[name]["environment"], FIELDS[name]["default"]) == CONTRACT[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_default_then_environment_then_keyword(name, monkeypatch):
    field, (text, value) = FIELDS[name], EXAMPLES[name]
    assert getattr(Config(), name) == field["default"]
    monkeypatch.setenv(field["environment"], text)
    assert getattr(Config(), name) == value
    assert getattr(Config(**{name: value}), name) == value
    if field["default"] is not None:
        assert getattr(Config(**{name: field["default"]}), name) == field["default"]
    monkeypatch.setenv(field["environment"], "")
    assert getattr(Config(), name) == field["default"], "an empty variable is no setting"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cleanup_interval", 0),
        ("cleanup_interval", -1),
        ("cleanup_interval", float("nan")),
        ("max_idle_time", -1),
        ("max_idle_time", float("inf")),
        ("cache_size", -1),
        ("cache_bytes", -1),
        ("cache_policy", "fifo"),
        ("turkish_model", ""),
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("dtype", "float8"),
        ("profile", "turkish"),
        ("language_detector", "best"),
        ("device", "tpu"),
        ("threads", -1),
        ("max_queue", 0),
        ("max_text_bytes", 0),
        ("memory_budget", "much"),
        ("memory_budget", -5),
        ("keep_alive", "soon"),
        ("load_timeout", -1),
        ("remote_connections", 0),
        ("remote_connections", 65),
        ("remote_batch", 0),
        ("remote_timeout", 0),
    ],
)
def test_out_of_range(name, value):
    with pytest.raises(ConfigError, match=name):
        Config(**{name: value})
    with pytest.raises(ValueError, match=name):
        ModelManager(**{name: value})


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("LAZY_LOADING_ENABLED", "perhaps"),
        ("CLEANUP_INTERVAL_SECONDS", "often"),
        ("MEMORY_EFFICIENT_CACHE_SIZE", "12.5"),
        ("AI_TEMPERATURE", "hot"),
        ("MODEL_MANAGER_DTYPE", "double"),
    ],
)
def test_a_bad_variable_is_named(variable, text, monkeypatch):
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError, match=f"{variable}.*{re.escape(text)}|{variable}={re.escape(text)}"):
        Config()


@pytest.mark.parametrize(
    ("name", "value"), [("cache_size", "many"), ("lazy_loading", []), ("dtype", 7), ("threads", 1.5)]
)
def test_wrong_types(name, value):
    with pytest.raises((TypeError, ConfigError), match=name):
        Config(**{name: value})


def test_unknown_keywords():
    with pytest.raises(TypeError, match="no_such"):
        Config(no_such=1)
    with pytest.raises(TypeError, match="no_such"):
        ModelManager(no_such=1)
    with pytest.raises(TypeError):
        Config(50)


def test_it_is_immutable_and_a_value():
    config = Config(cache_size=7)
    with pytest.raises(AttributeError):
        config.cache_size = 8
    assert config == Config(cache_size=7)
    assert config != Config(cache_size=8)
    assert config != 7
    assert hash(config) == hash(Config(cache_size=7))
    assert Config(**config.to_dict()) == config
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert "cache_size=7" in repr(config)
    assert eval(repr(config), {"Config": Config}) == config


def test_its_representation_has_no_secrets():
    config = Config(
        cache_url="redis://user:hunter2@one:1,redis://:hunter2@two:2",
        cache_secret="hunter2",
        english_model="openai+https://hunter2@host/v1/model",
    )
    shown = repr(config)
    assert "hunter2" not in shown
    assert "cache_secret='***'" in shown
    assert "redis://***@one:1,redis://***@two:2" in shown
    assert config.cache_secret == "hunter2"


def test_it_pickles_and_copies(monkeypatch):
    config = Config(cache_size=7, keep_alive="5m")
    data = pickle.dumps(config)
    monkeypatch.setenv("MODEL_MANAGER_DTYPE", "float32")
    assert pickle.loads(data) == config, "whatever the environment says where it is unpickled"
    assert copy.deepcopy(config) == config


def test_keywords_replace_those_of_a_config():
    with ModelManager(Config(cache_size=7, threads=2), cache_size=9) as manager:
        assert (manager.config.cache_size, manager.config.threads) == (9, 2)


def test_the_constructor_is_documented():
    for name, member in inspect.getmembers(Config):
        if not name.startswith("_"):
            assert member.__doc__, f"Config.{name} has no docstring"
