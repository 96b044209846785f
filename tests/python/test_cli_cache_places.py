"""Where vectors are stored, which processes read them, and which are never stored."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import run_python
from embedding_server import EmbeddingServer


@pytest.fixture
def server():
    with EmbeddingServer() as one:
        yield one


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "faq.txt").write_text("first\nsecond\n", encoding="utf-8")
    return "faq.txt"


def test_preload_says_who_reads_the_vectors(command, texts, tmp_path, monkeypatch):
    monkeypatch.delenv("MODEL_MANAGER_CACHE_DISK", raising=False)
    done = command("preload", texts, "-m", "english_sentence")
    assert done.code == 0, done.err
    folder = tmp_path / "cache" / "model_manager" / "vectors"
    assert done.out == "2 texts are stored.\n"
    assert str(folder) in done.err
    assert "MODEL_MANAGER_CACHE_DISK=true" in done.err
    assert list((folder / "segments").glob("*.vec"))
    # What the sentence promises.
    code = """
from model_manager import Config, ModelManager
with ModelManager(Config()) as manager:
    manager.embed(["first", "second"], "english_sentence")
    print(manager.is_loaded("english_sentence"))
"""
    assert run_python(code).stdout == "True\n"
    assert run_python(code, MODEL_MANAGER_CACHE_DISK="true").stdout == "False\n"


@pytest.mark.parametrize("value", ["false", "none", "0"])
def test_a_cache_that_is_off_is_not_written(command, texts, tmp_path, monkeypatch, value):
    monkeypatch.setenv("MODEL_MANAGER_CACHE_DISK", value)
    for words in (("preload", texts, "-m", "english_sentence"), ("cache", "import", texts)):
        done = command(*words)
        assert (done.code, done.out) == (1, "")
        assert f"MODEL_MANAGER_CACHE_DISK={value}" in done.err
        assert "set it to true" in done.err
    assert not (tmp_path / "cache").exists()


def test_where_disk_is_off_servers_are_filled(command, texts, tmp_path, monkeypatch, redis_server):
    monkeypatch.setenv("MODEL_MANAGER_CACHE_DISK", "false")
    url = redis_server().url
    monkeypatch.setenv("MODEL_MANAGER_CACHE_URL", url)
    for _ in range(2):  # the second time they are found
        done = command("preload", texts, "-m", "english_sentence")
        assert (done.code, done.out) == (0, "2 texts are stored.\n"), done.err
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("MODEL_MANAGER_CACHE_URL", "redis://127.0.0.1:1")
    done = command("preload", texts, "-m", "english_sentence")
    assert (done.code, done.out) == (1, "")
    assert "redis did not store all" in done.err


def test_texts_of_a_servers_model_are_not_sent_in_vain(command, texts, server, monkeypatch, tmp_path):
    """Their vectors are never stored."""
    monkeypatch.setenv("MODEL_MANAGER_CACHE_DISK", str(tmp_path / "disk"))
    source = server.ollama
    done = command("preload", texts, "-m", source)
    assert (done.code, done.out) == (1, "")
    assert "are never stored" in done.err
    assert source in done.err
    # The slot that the language of a text leads to.
    monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", source)
    done = command("preload", texts)
    assert done.code == 1
    assert "'english_sentence'" in done.err
    assert "are never stored" in done.err
    assert server.asked == []
    shown = command("preload", "--help").out
    assert "ollama://" not in shown


def test_info_names_the_folder(command, monkeypatch, tmp_path):
    monkeypatch.delenv("MODEL_MANAGER_CACHE_DISK", raising=False)
    folder = tmp_path / "cache" / "model_manager" / "vectors"
    shown = json.loads(command("cache", "info", "--json").out)["tiers"][0]
    assert shown["place"] == str(folder)
    assert str(folder) in command("cache", "info").out
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = json.loads(command("cache", "info", "--json").out)["tiers"][0]["place"]
    assert place == str(tmp_path / "home" / ".cache" / "model_manager" / "vectors")
    assert Path(place).is_dir(), "the core uses it"
    monkeypatch.setenv("MODEL_MANAGER_CACHE_DISK", "~/mine")
    place = json.loads(command("cache", "info", "--json").out)["tiers"][0]["place"]
    assert Path(place).is_dir()
    assert Path(place).name == "mine"


def test_a_page_of_the_hub_is_no_server(command, monkeypatch):
    monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2")
    monkeypatch.setenv("TURKISH_SENTENCE_MODEL", "ollama://127.0.0.1:1/m")
    shown = command("models").out
    assert re.search(r"english_sentence .* not on this machine", shown)
    assert re.search(r"turkish_sentence .* another server's", shown)
