"""`cache`, `preload` and `explain`."""

from __future__ import annotations

import json
import re
import socket

import pytest


@pytest.fixture
def stored(command, tmp_path, monkeypatch):
    """A cache in a folder of its own, with two known texts."""
    monkeypatch.setenv("MODEL_MANAGER_CACHE_DISK", str(tmp_path / "cache"))
    texts = tmp_path / "faq.txt"
    texts.write_text("first\nsecond\n", encoding="utf-8")
    done = command("preload", str(texts), "-m", "english_sentence")
    assert done.code == 0, done
    assert "2" in done.out
    return tmp_path


@pytest.mark.parametrize("kind", ["file", "small", "server"])
def test_a_preload_that_stores_less_fails(command, tmp_path, monkeypatch, kind):
    (tmp_path / "faq.txt").write_text("".join(f"question number {n}\n" for n in range(9000 if kind == "small" else 20)))
    monkeypatch.setenv("MODEL_MANAGER_CACHE_DISK", str(tmp_path / "disk"))
    if kind == "file":
        (tmp_path / "disk").write_text("")
    elif kind == "small":
        monkeypatch.setenv("MODEL_MANAGER_CACHE_DISK_BYTES", "1MB")
    else:
        monkeypatch.setenv("MODEL_MANAGER_CACHE_URL", "redis://127.0.0.1:1")
        monkeypatch.setenv("MODEL_MANAGER_CACHE_TIMEOUT", "5")
    done = command("preload", "faq.txt", "-m", "english_sentence")
    assert (done.code, done.out) == (1, "")
    if kind == "server":
        assert "the texts are on disk, but redis did not store all of them" in done.err
    else:
        assert re.search(r"Error: \d+ of (20|9000) texts are on disk: its folder", done.err)


def test_info_verify_export_import_clear(command, stored):
    shown = json.loads(command("cache", "info", "--json").out)["tiers"]
    assert [(tier["tier"], tier["entries"], tier["damaged"]) for tier in shown] == [("disk", 2, 0)]
    assert "2" in command("cache", "info").out
    file = str(stored / "export")
    assert command("cache", "export", file).code == 0
    assert command("cache", "verify").code == 0
    assert command("cache", "clear").code == 0
    assert json.loads(command("cache", "verify", "--json").out) == {"whole": 0, "damaged": 0}
    assert "2" in command("cache", "import", file).out
    for path in (stored / "cache" / "segments").glob("*.vec"):
        content = bytearray(path.read_bytes())
        if len(content) > 16:
            content[-1] ^= 1
            path.write_bytes(content)
    assert command("cache", "verify").code == 1
    (stored / "other").write_text("no export")
    assert command("cache", "import", str(stored / "other")).code == 1
    assert command("cache", "import", str(stored / "missing")).code == 2


def test_what_cannot_be_emptied_is_an_error(command, stored, monkeypatch):
    monkeypatch.setenv("MODEL_MANAGER_CACHE_URL", "redis://127.0.0.1:1")
    done = command("cache", "clear")
    assert done.code == 1
    assert "not emptied: " in done.err
    assert "redis://" in done.err
    assert "empty" not in done.out


def test_a_server_that_does_not_answer_is_shown_so(command, stored, monkeypatch):
    """It is asked when it is shown, and each server for itself."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("MODEL_MANAGER_CACHE_URL", f"redis://me:secret@127.0.0.1:{port}, redis://127.0.0.1:1/2")
    done = command("cache", "info", "--json")
    assert done.code == 0
    _, *servers = json.loads(done.out)["tiers"]
    assert [(one["tier"], one["working"]) for one in servers] == [("redis", False)] * 2
    assert f"127.0.0.1:{port}" in servers[0]["place"]
    assert "127.0.0.1:1" in servers[1]["place"]
    shown = command("cache", "info")
    assert shown.out.count("does not answer") == 2
    assert "secret" not in done.out + done.err + shown.out + shown.err


def test_a_server_that_answers_is_shown_so(command, stored, redis_server, monkeypatch):
    monkeypatch.setenv("MODEL_MANAGER_CACHE_URL", redis_server().url)
    done = command("cache", "info", "--json")
    assert [one["working"] for one in json.loads(done.out)["tiers"][1:]] == [True]
    assert "does not answer" not in command("cache", "info").out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"text": "first"}\n{"other": 1}\n', "faq.jsonl:2: must be a text or an object with a text under 'text'"),
        (b"{", "faq.jsonl:1: is not JSON"),
        (b'"first"\n"\xff"\n', "faq.jsonl:2: not UTF-8 text"),
        (b'"\\ud800"\n', "faq.jsonl:1: holds a lone surrogate"),
    ],
)
def test_a_wrong_line_of_known_texts_is_named(command, tmp_path, content, words):
    (tmp_path / "faq.jsonl").write_bytes(content)
    done = command("preload", "faq.jsonl", "-m", "english_sentence")
    assert done.code == 1
    assert done.err.startswith("Error: ")
    assert words in done.err
    assert "Traceback" not in done.err


def test_known_texts_of_a_table(command, stored):
    """The header and the other columns are no texts."""
    table = stored / "faq.csv"
    table.write_text('id,question\n1,third\n2,"a, b"\n3,\n', encoding="utf-8")
    done = command("preload", str(table), "-m", "english_sentence", "--column", "question")
    assert (done.code, done.out) == (0, "2 texts are stored.\n")
    assert json.loads(command("cache", "verify", "--json").out) == {"whole": 4, "damaged": 0}
    done = command("preload", str(table), "-m", "english_sentence")
    assert done.code == 1
    assert "no column 'text'; its columns: id, question" in done.err
    lines = stored / "more.jsonl"
    lines.write_text('{"question": "fifth"}\n', encoding="utf-8")
    assert "1" in command("preload", str(lines), "-m", "english_sentence", "--column", "question").out
    for ending in ("tsv", "parquet", "PARQUET"):
        table = stored / f"faq.{ending}"
        table.write_text("id\ttext\n", encoding="utf-8")
        done = command("preload", str(table), "-m", "english_sentence")
        assert done.code == 2
        assert f"faq.{ending}: each line of it would be taken for a text" in done.err


def test_the_help_is_in_two_languages(command, monkeypatch):
    assert "outlive" in command("cache", "--help").out


def test_explain(command, monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL_MANAGER_KEEP_ALIVE", "auto")
    monkeypatch.setenv("MODEL_MANAGER_ADAPTIVE_STATE", str(tmp_path))
    assert "8 are needed" in command("explain", "english_sentence").out
    assert json.loads(command("explain", "english_sentence", "--json").out)["adaptive"] is True
    assert command("explain", "nothing").code == 1
