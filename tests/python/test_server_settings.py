"""The settings of the server: keywords, environment, what is refused."""

from __future__ import annotations

import json

import pytest
from model_manager.errors import ConfigError
from model_manager.server import ServedModel, ServerConfig, create_app, router
from servers import MODELS


def test_defaults():
    config = ServerConfig()
    assert (config.host, config.port, config.api_keys, config.max_inputs) == ("127.0.0.1", 8000, (), 2048)
    assert config.models == (ServedModel("qwen3-embedding", source="Qwen/Qwen3-Embedding-0.6B"),)


def test_environment(monkeypatch):
    monkeypatch.setenv("API_HOST", "0.0.0.0")
    monkeypatch.setenv("API_PORT", "9000")
    monkeypatch.setenv("OLLAMA_MODEL_NAME", "bge-m3")
    monkeypatch.setenv("OLLAMA_URL", "http://gpu:11434/")
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "1024")
    monkeypatch.setenv("MODEL_MANAGER_SERVER_API_KEYS", "one, two,")
    monkeypatch.setenv("MODEL_MANAGER_SERVER_ADMIN", "off")
    monkeypatch.setenv("MODEL_MANAGER_SERVER_REQUEST_TIMEOUT", "1.5")
    config = ServerConfig()
    assert (config.host, config.port, config.api_keys, config.admin) == ("0.0.0.0", 9000, ("one", "two"), False)
    assert config.request_timeout == 1.5
    assert config.models == (ServedModel("bge-m3", source="ollama://gpu:11434/bge-m3", dimensions=1024),)
    monkeypatch.setenv("MODEL_MANAGER_SERVER_MODEL", "intfloat/multilingual-e5-small")
    assert ServerConfig().models[0].source == "intfloat/multilingual-e5-small"
    assert ServerConfig(port=1).port == 1, "a keyword beats the environment"


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("gpu", "ollama://gpu/m"),
        ("gpu:1234", "ollama://gpu:1234/m"),
        ("http://gpu:11434/", "ollama://gpu:11434/m"),
        ("http://gpu", "ollama://gpu:80/m"),
        ("http://[::1]", "ollama://[::1]:80/m"),
        ("http://proxy:80/ollama", "ollama://proxy:80/ollama//m"),
        ("https://ollama.example.com", "ollama+https://ollama.example.com/m"),
        ("https://gpu:8443/", "ollama+https://gpu:8443/m"),
        ("HTTPS://ollama.example.com/a/b/", "ollama+https://ollama.example.com/a/b//m"),
    ],
)
def test_addresses_of_ollama(monkeypatch, make_manager, url, source):
    monkeypatch.setenv("OLLAMA_URL", url)
    monkeypatch.setenv("OLLAMA_MODEL_NAME", "m")
    assert ServerConfig().models[0].source == source
    make_manager().register("m", source, kind="embedding")


def test_a_name_may_be_listed_as_an_alias_too(monkeypatch):
    monkeypatch.setenv("OLLAMA_MODEL_NAME", "tiny")
    monkeypatch.setenv("MODEL_MANAGER_SERVER_ALIASES", "tiny, small, small")
    assert ServerConfig().models[0].name == "tiny"


def test_keys_are_not_shown():
    assert "secret" not in repr(ServerConfig(api_keys=["secret"]))


def test_settings_travel_to_worker_processes():
    config = ServerConfig(models=MODELS, api_keys=["secret"], port=0)
    assert ServerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "settings",
    [
        {"port": 70_000},
        {"port": "8000"},
        {"port": True},
        {"host": ""},
        {"workers": 0},
        {"max_inputs": 0},
        {"max_body_bytes": -1},
        {"max_waiting": 1.5},
        {"body_timeout": 0},
        {"request_timeout": 0},
        {"drain_timeout": "5"},
        {"root_path": "ai"},
        {"root_path": "/ai/"},
        {"api_keys": "secret"},
        {"api_keys": [""]},
        {"api_keys": ["şifre"]},
        {"api_keys": ["a\tb"]},
        {"api_keys": ["key\n"]},
        {"open_paths": ["health"]},
        {"cors_origins": ["example.com"]},
        {"cors_origins": ["https://example.com/"]},
        {"cors_origins": ["https://Example.com"]},
        {"cors_origins": ["https://*.example.com"]},
        {"cors_origins": ["https://example.com:443"]},
        {"cors_origins": ["http://example.com:80"]},
        {"models": []},
        {"token_ids": "maybe"},
        {"max_choices": 0},
        {"models": ["tiny"]},
        {"models": [ServedModel("a", source="x"), ServedModel("b", source="x", aliases=["a"])]},
    ],
    ids=str,
)
def test_settings_out_of_range(settings):
    name = next(iter(settings))
    with pytest.raises(ConfigError, match=name) as raised:
        ServerConfig(**settings)
    assert raised.value.param == name


def test_one_text_as_aliases():
    """Its letters would be the names."""
    with pytest.raises(ConfigError, match="aliases must be a list, not one text") as raised:
        ServedModel("a", source="x", aliases="qwen3")
    assert raised.value.param == "aliases"


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "https://a.example", "http://localhost:3000", "https://a:80", "http://[::1]:8080", "app://-"],
)
def test_origins(origin):
    assert ServerConfig(cors_origins=[origin]).cors_origins == (origin,)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/nope", None),
        ("/v1/*", None),
        ("/metrics/", "/metrics"),
        ("/models", "/v1/models"),
        ("/v1/v1/models", "/v1/models"),
    ],
)
@pytest.mark.parametrize("make", [create_app, router])
def test_open_paths_that_no_endpoint_has(make_manager, make, path, meant):
    with pytest.raises(ConfigError, match=r"^open_paths: ") as raised:
        make(ServerConfig(models=MODELS, open_paths=["/health", path]), make_manager())
    assert repr(path) in str(raised.value)
    assert (f"did you mean {meant}?" in str(raised.value)) is (meant is not None)
    assert raised.value.param == "open_paths"


@pytest.mark.parametrize("make", [create_app, router])
def test_open_paths(make_manager, make):
    paths = ["/", "/health", "/v1/models/{model_id}", "/docs", "/openapi.json"]
    make(ServerConfig(models=MODELS, open_paths=paths), make_manager())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_PORT", "http"),
        ("MODEL_MANAGER_SERVER_ADMIN", "maybe"),
        ("MODEL_MANAGER_SERVER_REQUEST_TIMEOUT", "soon"),
        ("EMBEDDING_DIMENSIONS", "many"),
        ("EMBEDDING_DIMENSIONS", "0"),
        ("OLLAMA_URL", "http://"),
        ("OLLAMA_URL", "http://gpu:port"),
        ("OLLAMA_URL", "http://[gpu"),
        ("OLLAMA_URL", "ftp://gpu"),
        ("OLLAMA_URL", "http://gpu/?key=1"),
        ("OLLAMA_URL", "http://gpu/#a"),
        # Two keys of a template, both of which are not set: the server would be open to everybody.
        ("MODEL_MANAGER_SERVER_API_KEYS", ","),
        ("MODEL_MANAGER_SERVER_API_KEYS", " , ,"),
        ("MODEL_MANAGER_SERVER_ALLOWED_HOSTS", ","),
    ],
)
def test_environment_out_of_range(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        ServerConfig()


@pytest.mark.parametrize("wrong", [{"name": ""}, {"name": "a", "dimensions": 0}, {"name": "a", "instructions": "yes"}])
def test_served_models_out_of_range(wrong):
    name = list(wrong)[-1]
    with pytest.raises(ConfigError, match=rf"^ServedModel\.{name}=") as raised:
        ServedModel(**wrong)
    assert raised.value.param == name
