"""Settings that would be ignored in silence: misspelt variables, and those that need another setting."""

from __future__ import annotations

import json
import logging

import pytest
from conftest import run_python, tiny
from model_manager import Config, ModelManager, _environment, errors
from model_manager._environment import SERVER_PREFIX, unknown


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch):
    monkeypatch.setattr(_environment, "_warned", set())


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MODEL_MANAGER_THREDS", "MODEL_MANAGER_THREADS"),
        ("MODEL_MANAGER_CACHE_SIZE", "MEMORY_EFFICIENT_CACHE_SIZE"),
        ("MODEL_MANAGER_MAX_IDLE_TIME", "MAX_IDLE_TIME_SECONDS"),
        ("MODEL_MANAGER_OF_MINE", None),
    ],
)
def test_a_manager_warns_once(monkeypatch, caplog, name, meant):
    monkeypatch.setenv(name, "1")
    for _ in range(2):
        tiny().close()
    (record,) = [one for one in caplog.records if name in one.getMessage()]
    assert record.levelno == logging.WARNING
    question = f"; did you mean {meant}?" if meant else ""
    assert record.getMessage() == f"the environment variable {name} is no setting and is ignored{question}"


def test_the_process_wide_manager_warns_at_its_first_use(tmp_path):
    """Not at import: the program configures logging after it."""
    (tmp_path / ".env").write_text("MODEL_MANAGER_DTYP=int8\n")
    code = f"""
import logging, os, model_manager
os.chdir({str(tmp_path)!r})
logging.basicConfig(format="%(message)s", filename="log")
model_manager.model_manager.config
"""
    shown = run_python(code, MODEL_MANAGER_THREDS="1", MODEL_MANAGER_DOTENV="true")
    assert shown.stderr == ""
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.partition(" is no setting and is ignored; ")[::2] for line in lines] == [
        ("the environment variable MODEL_MANAGER_DTYP", "did you mean MODEL_MANAGER_DTYPE?"),
        ("the environment variable MODEL_MANAGER_THREDS", "did you mean MODEL_MANAGER_THREADS?"),
    ]


NEEDED = [("warm_restart", "1000", "cache_disk"), ("cache_secret", "hunter2", "cache_url")]


@pytest.mark.parametrize(("name", "value", "needed"), NEEDED)
def test_a_keyword_without_effect_is_refused(name, value, needed, caplog):
    given = int(value) if value.isdigit() else value
    with pytest.raises(errors.ConfigError, match=f"^{name} has no effect without {needed}") as caught:
        ModelManager(**{name: given})
    assert caught.value.param == name
    assert value not in str(caught.value)
    ModelManager(**{name: 0 if isinstance(given, int) else None}).close()
    assert caplog.records == []


@pytest.mark.parametrize(("name", "value", "needed"), NEEDED)
def test_a_variable_without_effect_is_logged_once(name, value, needed, caplog, monkeypatch):
    """It may be set for a whole deployment, of which other managers use it."""
    monkeypatch.setenv(f"MODEL_MANAGER_{name.upper()}", value)
    for _ in range(2):
        tiny().close()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{name} has no effect without {needed}")
    assert value not in record.getMessage()


def test_settings_with_what_they_need(caplog, tmp_path):
    with tiny(warm_restart=10, cache_disk=str(tmp_path), cache_secret="s", cache_url="redis://127.0.0.1:1"):
        pass
    with ModelManager(Config(warm_restart=10), cache_disk=str(tmp_path)):
        pass
    assert not any("has no effect" in record.getMessage() for record in caplog.records)


def test_the_process_wide_manager_warns_of_a_variable_without_effect(tmp_path):
    (tmp_path / ".env").write_text("MODEL_MANAGER_CACHE_SECRET=hunter2\n")
    code = f"""
import logging, os, model_manager
os.chdir({str(tmp_path)!r})
logging.basicConfig(format="%(message)s", filename="log")
model_manager.model_manager.config
"""
    shown = run_python(code, MODEL_MANAGER_DOTENV="true")
    assert shown.stderr == ""
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith("cache_secret has no effect without cache_url")


def test_right_names_are_no_mistakes(monkeypatch):
    known = {field["environment"] for field in Config.fields()}
    others = {"MODEL_MANAGER_DOTENV", "MODEL_MANAGER_ISA", "MODEL_MANAGER_PRELOAD", "MODEL_MANAGER_REMOTE_KEY"}
    of_kubernetes = {
        "MODEL_MANAGER_PORT",
        "MODEL_MANAGER_PORT_8000_TCP",
        "MODEL_MANAGER_PORT_8000_TCP_ADDR",
        "MODEL_MANAGER_SERVICE_HOST",
        "MODEL_MANAGER_SERVICE_PORT_HTTP",
        "MODEL_MANAGER_REDIS_SERVICE_PORT",
    }
    for name in (*known, *others, *of_kubernetes, "MODEL_MANAGER_REDIS_PASSWORD"):
        monkeypatch.setenv(name, "1")
    assert unknown(Config.fields, similar=True) == {}


def test_variables_of_the_server(monkeypatch, caplog):
    server = pytest.importorskip("model_manager.server")
    for name in ("MODEL_MANAGER_SERVER_MODEL", "MODEL_MANAGER_SERVER_ALIASES", "MODEL_MANAGER_SERVER_ACCESS_LOG"):
        monkeypatch.setenv(name, "1")
    server.ServerConfig()
    assert caplog.records == []
    monkeypatch.setenv("MODEL_MANAGER_SERVER_API_KEY_LIST", "1")
    monkeypatch.setenv("MODEL_MANAGER_SERVER_PORT_NUMBER", "1")
    monkeypatch.setenv("MODEL_MANAGER_SERVER_HOST", "1")
    tiny().close()
    assert caplog.records == [], "a manager knows nothing of the server's settings"
    server.ServerConfig()
    messages = [record.getMessage() for record in caplog.records]
    assert any(
        "MODEL_MANAGER_SERVER_HOST is no setting and is ignored; did you mean API_HOST?" in one for one in messages
    )
    assert len(messages) == 3
    assert set(unknown(server.ServerConfig.fields, SERVER_PREFIX)) == {
        "MODEL_MANAGER_SERVER_API_KEY_LIST",
        "MODEL_MANAGER_SERVER_HOST",
        "MODEL_MANAGER_SERVER_PORT_NUMBER",
    }


def test_doctor_also_looks_for_similar_names(command, monkeypatch):
    monkeypatch.setenv("TURKISH_SENTENSE_MODEL", "x")
    monkeypatch.setenv("MODEL_MANAGER_SERVER_ADMN", "false")
    monkeypatch.setenv("SOME_OTHER_VARIABLE", "x")
    done = command("doctor", "--quick", "--json")
    assert done.code == 0, done.err
    warnings = json.loads(done.out)["warnings"]
    (similar,) = [one for one in warnings if "TURKISH_SENTENSE_MODEL" in one]
    assert similar.endswith("did you mean TURKISH_SENTENCE_MODEL?")
    assert any("did you mean MODEL_MANAGER_SERVER_ADMIN?" in one for one in warnings)
    assert not any("SOME_OTHER_VARIABLE" in one for one in warnings)
    assert "is no setting" not in done.err, "once"
