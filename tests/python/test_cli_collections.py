"""`index` and `search`: a collection from the command line."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sqlite3
import subprocess
import time

import pytest
from commands import COMMANDS, start
from conftest import ENGLISH_MODEL, ROOT

pytestmark = pytest.mark.usefixtures("command_settings")


def write_documents(tmp_path):
    lines = [
        {"id": 1, "text": "merhaba dünya", "lang": "tr", "year": 2024},
        {"id": 2, "text": "hello world", "lang": "en", "year": 2023},
        {"text": "no id of its own", "lang": "en", "year": 2023},
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_index_and_search(command, tmp_path):
    write_documents(tmp_path)
    done = command("index", "docs.jsonl", "-c", "notes", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert (report["indexed"], report["skipped"], report["failed"], report["finished"]) == (3, 0, 0, True)
    assert command("index", "docs.jsonl", "-c", "notes").out.startswith("0 indexed, 3 skipped, 0 failed in ")
    found = json.loads(command("search", "hello world", "-c", "notes", "-s", "-1", "--json").out)
    assert found[0] == {"id": "2", "score": 1.0, "text": "hello world", "metadata": {"lang": "en", "year": 2023}}
    assert {hit["id"] for hit in found} == {"1", "2", "docs.jsonl:3"}
    filtered = command("search", "hello", "-c", "notes", "-s", "-1", "--json", "-w", "year=2023", "-w", "lang=en")
    assert {hit["id"] for hit in json.loads(filtered.out)} == {"2", "docs.jsonl:3"}
    either = command("search", "hello", "-c", "notes", "-s", "-1", "--json", "-w", "year=2023", "-w", "year=2024")
    assert len(json.loads(either.out)) == 3
    assert json.loads(command("search", "hello", "-c", "notes", "--json", "-w", 'year="2023"').out) == []
    table = command("search", "hello world", "-c", "notes", "-n", "1").out
    assert "1.000" in table
    assert "hello world" in table
    nothing = command("search", "hello", "-c", "notes", "-s", "1.1")
    assert (nothing.code, nothing.out) == (0, "")
    assert "Nothing reaches a score of 1.1" in nothing.err
    for value in ("3000", "NaN", "Infinity", "1e999"):  # the last three are texts
        nothing = command("search", "hello", "-c", "notes", "-s", "-1", "-w", f"year={value}")
        assert "Nothing matches --where and reaches a score of -1;" in nothing.err, value
    again = json.loads(command("index", "docs.jsonl", "-c", "notes", "--recreate", "--json").out)
    assert (again["indexed"], again["skipped"]) == (3, 0)


def test_index_of_other_forms(command, tmp_path):
    (tmp_path / "t.csv").write_text('body,key,lang\n"a, b",x1,en\n"two\nlines",x2,tr\n', encoding="utf-8")
    (tmp_path / "lines.txt").write_text("first line\nsecond line\n", encoding="utf-8")
    fields = ("--text-field", "body", "--id-field", "key")
    assert command("index", "t.csv", "lines.txt", "-c", "notes", *fields).code == 0
    assert command("index", "-c", "notes", stdin="from standard input\n").code == 0
    assert command("index", "-c", "notes", stdin="another time\nfrom standard input\n").out.startswith(
        "1 indexed, 1 skip"
    )
    found = json.loads(command("search", "a", "-c", "notes", "-s", "-1", "--json").out)
    assert {
        hit["text"] if hit["id"].startswith("-:") else hit["id"]: (hit["text"], hit["metadata"]) for hit in found
    } == {
        "x1": ("a, b", {"lang": "en"}),
        "x2": ("two\nlines", {"lang": "tr"}),
        "lines.txt:1": ("first line", {}),
        "lines.txt:2": ("second line", {}),
        "from standard input": ("from standard input", {}),
        "another time": ("another time", {}),
    }


def test_columns_of_csv_are_found_by_numbers(command, tmp_path):
    (tmp_path / "t.csv").write_text("id,text,year\n1,hello,2024\n2,bye,2023\n")
    (tmp_path / "d.jsonl").write_text('{"id": "3", "text": "again", "year": 2024}\n')
    assert command("index", "t.csv", "d.jsonl", "-c", "notes").code == 0
    for where, wanted in (("year=2024", {"1", "3"}), ('year="2024"', {"1"}), ("year=2023", {"2"})):
        done = command("search", "hello", "-c", "notes", "-s", "-1", "--json", "-w", where)
        assert {hit["id"] for hit in json.loads(done.out)} == wanted, where


def test_documents_that_fail_make_the_exit_code_1(command, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"id": 1, "text": "good"}\nnot json\n[1]\n{"id": 4, "text": " "}\n')
    done = command("index", "d.jsonl", "-c", "notes")
    assert done.code == 1
    assert done.out.startswith("1 indexed, 0 skipped, 3 failed in ")
    assert "document 1: d.jsonl:2: is not JSON" in done.err
    assert "document 2: d.jsonl:3: is not a JSON object" in done.err
    assert "document 3 (id '4'): its text is empty" in done.err
    report = json.loads(command("index", "d.jsonl", "-c", "notes", "--json").out)
    assert (report["skipped"], [one["position"] for one in report["failures"]]) == (1, [1, 2, 3])
    stopped = command("index", "d.jsonl", "-c", "notes", "--fail-fast")
    assert stopped.code == 1
    assert "indexing was given up: document 1: d.jsonl:2: is not JSON" in stopped.err


def test_examples_of_the_readme(command, tmp_path):
    (tmp_path / "texts.txt").write_text("merhaba\nhello\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("the parcel is at the gate\nlunch is at noon\n", encoding="utf-8")
    (tmp_path / "faq.jsonl").write_text('{"text": "when is lunch"}\n', encoding="utf-8")
    write_documents(tmp_path)
    section = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    block = section.split("```sh\n", 1)[1].split("```", 1)[0]
    lines = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert sorted({line[0] for line in lines}) == COMMANDS
    for line in lines:
        if line[0] == "demo":
            line += ["--model", ENGLISH_MODEL]  # no network
        if line[0] == "doctor" and len(line) > 1:
            line[1] = ENGLISH_MODEL
            line = line[:2]  # an adapter of the hub cannot be fetched
        if line[0] != "serve":
            done = command(*line)
            assert done.code == 0, (line, done.err)
            assert done.out or "-o" in line, line


def test_search_by_words_and_a_reranker(command, tmp_path):
    (tmp_path / "faq.txt").write_text(
        "E-104 hatası yağ azalınca görünür\nyemek on ikide\nizin formu\n", encoding="utf-8"
    )
    assert command("index", "faq.txt", "-c", "faq", "--sparse", "bm25").code == 0
    both = ("-c", "faq", "--sparse", "bm25", "--json")
    found = json.loads(command("search", "e104", *both, "--mode", "sparse").out)
    assert [hit["id"] for hit in found] == ["faq.txt:1"]
    assert len(json.loads(command("search", "e104", *both).out)) == 3
    ordered = json.loads(command("search", "e104", *both, "--rerank", "reranker").out)
    assert [hit["score"] for hit in ordered] == sorted((hit["score"] for hit in ordered), reverse=True)
    other = command("search", "e104", *both, "--language", "english")
    assert other.code == 1
    assert "'bm25 (turkish)', not of 'bm25 (english)'" in other.err
    assert command("search", "e104", "-c", "faq", "--mode", "sparse").code == 1


def test_nothing_found(command, tmp_path):
    (tmp_path / "faq.txt").write_text("lunch is at noon\n", encoding="utf-8")
    assert command("index", "faq.txt", "-c", "faq", "--sparse", "bm25").code == 0
    for options in (("--mode", "sparse"), ("-w", "lang=tr")):
        done = command("search", "parcel", "-c", "faq", "--sparse", "bm25", *options)
        assert (done.code, done.out, done.err) == (0, "", "Nothing matches.\n"), options
    for options in (("--mode", "dense", "--sparse", "bm25"), ()):
        done = command("search", "parcel", "-c", "faq", "-w", "lang=tr", *options)
        assert done.err == "Nothing matches --where and reaches a score of 0.7; --score-threshold lowers it.\n", options
    above = command("search", "lunch", "-c", "faq", "--sparse", "bm25", "--mode", "sparse", "-s", "1000")
    assert above.err == "Nothing reaches a score of 1000; --score-threshold lowers it.\n"
    missing = command("search", "parcel", "-c", "other")
    assert (missing.code, "or `model-manager index`" in missing.err) == (1, True)


def test_ids_and_texts_are_shown_as_they_are(command, tmp_path):
    """Rich knows emoji by name, and a terminal obeys control characters."""
    rows = [
        {"id": "faq:key:3", "text": "a :warning: [bold]note[/bold]"},
        {"id": "x" * 150, "text": "word " * 80},
        {"id": "escape", "text": "red \x1b[31m text \x07\x9b"},
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command("index", "d.jsonl", "-c", "notes").code == 0
    shown = command("search", "note", "-c", "notes", "-s", "-1").out
    for words in ("faq:key:3", "a :warning: [bold]note[/bold]", "x" * 150, ("word " * 80).rstrip()):
        assert f" {words} " in shown
    assert r"red \x1b[31m text \x07\x9b" in shown
    assert len(shown.splitlines()) == 8
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)


def test_index_for_another_model(command, tmp_path):
    write_documents(tmp_path)
    assert command("index", "docs.jsonl", "-c", "notes").code == 0
    model = ("-m", ENGLISH_MODEL)
    refused = command("index", "-c", "notes", *model, "--reembed")
    assert refused.code == 1
    assert "name the alias that searches use from now on" in refused.err
    done = json.loads(command("index", "-c", "notes", *model, "--reembed", "--alias", "live", "--json").out)
    assert (done["source"], done["points"], done["done"], done["report"]["indexed"]) == ("notes", 3, True, 3)
    assert len(json.loads(command("search", "hello", "-c", "live", *model, "-s", "-1", "--json").out)) == 3
    assert command("index", "-c", "live", *model, "--reembed").out.startswith("nothing to do: ")
    for wrong in (("docs.jsonl", "--reembed"), ("--drop-old",), ("--reembed", "--recreate")):
        assert command("index", "-c", "notes", *wrong).code == 2


def _points(storage):
    try:
        with contextlib.closing(sqlite3.connect(f"file:{storage}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT count(*) FROM points").fetchone()[0]
    except sqlite3.OperationalError:
        return 0  # not yet there


def test_ctrl_c(tmp_path):
    """An interrupt while input arrives: exit code 130, and a report of the progress."""
    process = start("index", "-c", "notes", "-b", "10", stdin=subprocess.PIPE)
    try:
        for n in range(35):
            process.stdin.write(f"document {n}\n")
        process.stdin.flush()
        deadline = time.monotonic() + 50
        while _points(tmp_path / "qdrant_data" / "collection" / "notes" / "storage.sqlite") < 20:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        messages = process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, messages
    assert "Indexing of 'notes' ended early: 20 indexed, 0 skipped, 0 failed in " in messages
    assert "Interrupted." in messages
    assert "Traceback" not in messages
