"""Commands that read a collection where there is none, and fields that documents do not have."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("words", [("search", "invoice"), ("index", "--reembed", "--alias", "live")])
@pytest.mark.parametrize("path", [("--path", "nodb"), ()])
def test_a_command_that_reads_makes_no_database(command, tmp_path, words, path):
    done = command(*words, "-c", "notes", *path)
    assert (done.code, done.out) == (1, "")
    assert "collection 'notes' does not exist" in done.err
    assert f"no Qdrant in the folder {'nodb' if path else 'qdrant_data'}" in done.err
    assert "--path" in done.err
    assert "`model-manager index`" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_files_is_left_alone(command, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    assert command("search", "invoice", "-c", "notes", "--path", "other").code == 1
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["file"]


def test_a_field_of_ids_that_no_document_has(command, tmp_path):
    (tmp_path / "t.csv").write_text("id,text\n1,hello\n2,bye\n")
    done = command("index", "t.csv", "-c", "notes", "--id-field", "nope")
    assert (done.code, done.out) == (1, "")
    assert "t.csv: no column 'nope'; its columns: id, text. --id-field names another field" in done.err
    # Without the option, a table needs no ids.
    (tmp_path / "u.csv").write_text("text\nhello\n")
    assert command("index", "u.csv", "-c", "notes").code == 0
    (tmp_path / "d.jsonl").write_text('{"id": "1", "text": "a"}\n{"key": 2, "text": "b"}\n{"text": "c"}\n')
    done = command("index", "d.jsonl", "-c", "lines", "--id-field", "nope")
    assert done.code == 0
    assert "no document has the field 'nope' of --id-field" in done.err
    for field in ("key", "id"):
        done = command("index", "d.jsonl", "-c", f"by {field}", "--id-field", field)
        assert (done.code, done.err) == (0, "")
    assert "no document" not in command("index", "d.jsonl", "-c", "lines").err


def test_one_field_is_not_both_text_and_id(command, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    done = command("index", "d.jsonl", "-c", "notes", "--id-field", "text")
    assert done.code == 2
    assert "--id-field text: this field holds the text" in done.err
