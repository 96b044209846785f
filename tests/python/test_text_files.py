"""`preload` and the command line read files by the same rules: one list of endings, one wording."""

from __future__ import annotations

import json

import pytest
from conftest import tiny
from model_manager.errors import InputError

pytestmark = pytest.mark.usefixtures("command_settings")
SLOT = "english_sentence"


def preloaded(file):
    """The number of texts that `preload` reads from a file."""
    with tiny() as manager:
        return manager.preload(file, SLOT, when="first_load").total


def embedded(done):
    assert done.code == 0, done.err
    return [json.loads(line)["text"] for line in done.out.splitlines()]


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", b"\xef\xbb\xbfa\rb\r\nc", ["a", "b", "c"]),
        ("a.txt", b"\xef\xbb\xbf", []),
        ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\n\n"c"\n', ["a", "b", "c"]),
        ("a.ndjson", b'"a"\n', ["a"]),
        ("a.CSV", b'id,text\n1,"a\r\nb"\n\n2,c\n', ["a\r\nb", "c"]),
        ("a.md", b"[1]\nb\n", ["[1]", "b"]),
    ],
)
def test_both_find_the_same_texts(command, tmp_path, name, content, texts):
    (tmp_path / name).write_bytes(content)
    assert embedded(command("embed", name)) == texts
    assert preloaded(tmp_path / name) == len(texts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "a\n".encode("utf-16"), "a.txt: is UTF-16, not UTF-8 text; convert it: iconv -f UTF-16 -t UTF-8"),
        ("a.txt", "a\n".encode("utf-32"), "a.txt: is UTF-32, not UTF-8 text; convert it: iconv -f UTF-32 -t UTF-8"),
        ("a.txt", "ab\n".encode("utf-16-le"), "a.txt:1: holds a NUL character, as texts in UTF-16 do; remove it"),
        ("a.txt", "ab\n".encode("utf-32-le"), "a.txt:1: holds a NUL character, as texts in UTF-32 do; remove it"),
        ("a.txt", b"a\n\xff\n", "a.txt:2: not UTF-8 text (invalid start byte)"),
        ("a.txt", b'\n{"text": "a"}\n', "a.txt: begins with JSON, and each line of it would be taken for a text"),
        ("a.json", b"[]", "a.json: each line of it would be taken for a text; write its texts as .jsonl, .csv or"),
        ("a.jsonl", b'"a"\n{"text": 1}\n', "a.jsonl:2: must be a text or an object with a text under 'text'"),
        ("a.jsonl", b'{"text": "a", "text": "b"}', "a.jsonl:1: is not JSON (the field 'text' stands twice"),
        ("a.jsonl", b'"\\udc00"\n', "a.jsonl:1: holds a lone surrogate (\\udc00), one half of a character"),
        ("a.csv", b"id;text\n1;a\n", "a.csv: no column 'text'; its columns: id;text; commas separate columns, not ';'"),
        ("a.csv", b"id, text\n1, a\n", "a.csv: no column 'text'; its columns: id,  text; remove the spaces around"),
        ("a.csv", b"id,text\n1,a\n2\n", "a.csv:3: has fewer fields than the header, and none in the column 'text'"),
        ("a.csv", b"text\na,b\n", "a.csv:2: has more fields than the header; a text with commas needs quotes"),
        ("a.csv", b'text\n"a\n', "a.csv, the row from line 2 on: a quote is not closed"),
    ],
)
def test_both_refuse_the_same_in_the_same_words(command, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for arguments in (("embed", name), ("rerank", "q", name), ("preload", name)):
        done = command(*arguments)
        assert done.code in (1, 2)
        assert f"Error: {message}" in done.err
    with pytest.raises(InputError) as refused:
        preloaded(name)
    assert str(refused.value).startswith(message)


def test_the_command_line_names_its_options(command, tmp_path):
    (tmp_path / "a.csv").write_text("id,body\n1,a\n")
    (tmp_path / "a.jsonl").write_text('{"body": "a"}\n')
    for name in ("a.csv", "a.jsonl"):
        assert "--column names another field" in command("embed", name).err
    assert "--text-field names another field" in command("index", "a.csv", "-c", "notes").err
    (tmp_path / "a.json").write_text('{"text": "a"}\n')
    assert "--format jsonl reads one object" in command("index", "a.json", "-c", "notes").err
    assert embedded(command("embed", "a.json", "--input-format", "jsonl")) == ["a"]


def test_a_row_without_a_text_is_a_document_that_failed(command, tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1\n2,b\n")
    done = command("index", "a.csv", "-c", "notes")
    assert (done.code, done.out[:30]) == (1, "1 indexed, 0 skipped, 1 failed")
    assert "a.csv:2: has fewer fields than the header" in done.err


@pytest.mark.parametrize("content", ["ab\nc\n", "\nab\n", "Āa\n", "a\n"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_the_remedy_names_the_order_of_bytes(tmp_path, encoding, content):
    """The other order would make other characters, which are valid in UTF-16."""
    file = tmp_path / "a.txt"
    file.write_bytes(content.encode(encoding))
    with pytest.raises(InputError) as refused:
        preloaded(file)
    assert f": iconv -f {encoding.upper().replace('-LE', 'LE').replace('-BE', 'BE')} -t UTF-8" in str(refused.value)


def test_preload_says_how_lines_of_json_are_texts(tmp_path):
    file = tmp_path / "a.log"
    file.write_text('["a"]\nb\n')
    with pytest.raises(InputError, match=r"; to take its lines as they are, give `preload` a list of them$"):
        preloaded(file)
    with tiny() as manager:
        assert manager.preload(file.read_text().splitlines(), SLOT, when="first_load").total == 2
