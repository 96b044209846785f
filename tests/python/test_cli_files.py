"""The files that commands read and write: what is no text is refused by its place, and nothing else is replaced."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click import ClickException
from conftest import FIXTURES, run_python, tiny
from model_manager.cli.lines import Line, naming
from model_manager.cli.output import writing
from model_manager.errors import InputError

pytestmark = pytest.mark.usefixtures("command_settings")
COMMAND = (sys.executable, "-m", "model_manager")
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files and signals")


def embedded(done):
    assert done.code == 0, done.err
    return [json.loads(line)["text"] for line in done.out.splitlines()]


def test_parquet_is_made_of_parquet_alone(command, tmp_path):
    (tmp_path / "a.txt").write_text("hello\n")
    pq.write_table(pa.table({"text": ["a"]}), "in.parquet")
    for arguments in (
        ("a.txt", "-o", "out.parquet"),
        ("a.txt", "-f", "parquet", "-o", "out.parquet"),
        ("in.parquet", "-f", "jsonl", "-o", "out.parquet"),
        ("in.parquet", "--input-format", "txt", "-o", "out.parquet"),
    ):
        done = command("embed", *arguments)
        assert (done.code, ".parquet" in done.err) == (2, True), done.err
        assert not (tmp_path / "out.parquet").exists()
    assert command("embed", "in.parquet", "-f", "parquet", "-o", "out.parquet").code == 0
    assert pq.read_table("out.parquet").column_names == ["text", "embedding"]


def test_parquet_without_rows_has_the_columns(command):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), "empty.parquet")
    pq.write_table(pa.table({"text": ["a", None]}), "in.parquet")
    done = command("embed", "empty.parquet", "-o", "out.parquet")
    assert done.code == 0, done.err
    made = pq.read_table("out.parquet")
    assert (made.num_rows, made.schema.field("embedding").type.list_size) == (0, 32)
    assert command("embed", "empty.parquet", "in.parquet", "empty.parquet", "-o", "out.parquet").code == 0
    # The column alone: before pyarrow 26 a vector that is null cannot be read.
    assert pq.read_table("out.parquet", columns=["text"]).column("text").to_pylist() == ["a", None]


@posix
def test_more_parquet_files_than_a_process_may_open():
    code = """
import resource
import pyarrow as pa, pyarrow.parquet as pq
from model_manager.cli import run
for number in range(80):
    pq.write_table(pa.table({"text": [f"text {number}"]}), f"{number:02}.parquet")
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
code = run(["embed", *(f"{number:02}.parquet" for number in range(80)), "-o", "out.parquet"])
print(code, pq.read_table("out.parquet").num_rows)
"""
    assert run_python(code).stdout == "0 80\n"


def test_the_field_of_vectors(command, tmp_path):
    done = command("embed", "--vector-column", "v", stdin="hello\n")
    assert list(json.loads(done.out)) == ["text", "v"]
    (tmp_path / "a.txt").write_text("hello\n")
    for form in ("csv", "npy"):
        done = command("embed", "a.txt", "--vector-column", "v", "-o", f"out.{form}")
        assert (done.code, f"{form} has no names" in done.err) == (2, True)
    assert command("embed", "--vector-column", "text", stdin="hello\n").code == 2
    pq.write_table(pa.table({"text": ["a"], "id": [1]}), "in.parquet")
    done = command("embed", "in.parquet", "-o", "out.parquet", "--vector-column", "text")
    assert (done.code, "would replace the texts" in done.err) == (2, True)
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, names=["text", "v", "v"]), "twice.parquet")
    done = command("embed", "twice.parquet", "-o", "out.parquet", "--vector-column", "v")
    assert (done.code, "it has several columns 'v'" in done.err) == (1, True)


def test_a_column_that_holds_no_vectors_is_replaced_by_name_only(command):
    pq.write_table(pa.table({"embedding": [7], "text": ["a"]}), "in.parquet")
    done = command("embed", "in.parquet", "-o", "out.parquet")
    assert (done.code, "its column 'embedding' (int64) holds no vectors and would be replaced" in done.err) == (1, True)
    for name, source in (("named.parquet", "in.parquet"), ("again.parquet", "named.parquet")):
        extra = ("--vector-column", "embedding") if source == "in.parquet" else ()
        assert command("embed", source, "-o", name, *extra).code == 0
        assert pq.read_schema(name).names == ["embedding", "text"]
        assert pq.read_table(name)["embedding"].to_pylist()[0] != 7


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"text": ["b"]}, "there is no 'x'"),
        ({"text": ["b"], "x": [1], "y": [1]}, "'y' is only there"),
        ({"text": ["b"], "x": [0.5]}, "'x' is double, not int64"),
        ({"x": [1], "text": ["b"]}, "'x' comes before 'text'"),
    ],
)
def test_columns_that_differ_are_named_before_anything_is_computed(command, monkeypatch, other, message):
    pq.write_table(pa.table({"text": ["a"], "x": [1]}), "one.parquet")
    pq.write_table(pa.table(other), "other.parquet")
    monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", "/no/such/folder")
    monkeypatch.setenv("TURKISH_SENTENCE_MODEL", "/no/such/folder")
    done = command("embed", "one.parquet", "other.parquet", "-o", "out.parquet")
    assert (done.code, done.err) == (
        1,
        f"Error: other.parquet: its columns differ from those of one.parquet: {message}\n",
    )


VECTORS = pa.array([[0.5]])


@pytest.mark.parametrize(
    ("first", "other", "message"),
    [
        ("text embedding x x", "text embedding x", "the number of columns 'x' is 1, not 2"),
        ("text x", "text x x", "the number of columns 'x' is 2, not 1"),
        ("text x x", "text x", "the number of columns 'x' is 1, not 2"),
        ("embedding text", "text", "there is no 'embedding'"),
        ("text x", "text embedding x", "'embedding' is only there"),
        ("text embedding x", "text x y", "'y' is only there"),
        ("text embedding x", "text x embedding", "'x' comes before 'embedding'"),
    ],
)
def test_columns_of_one_name_and_of_vectors_are_compared(command, first, other, message):
    for file, names in (("one.parquet", first.split()), ("other.parquet", other.split())):
        columns = [VECTORS if name == "embedding" else pa.array(["a"]) for name in names]
        pq.write_table(pa.Table.from_arrays(columns, names=names), file)
    done = command("embed", "one.parquet", "other.parquet", "-o", "out.parquet")
    assert (done.code, done.err) == (
        1,
        f"Error: other.parquet: its columns differ from those of one.parquet: {message}\n",
    )


def test_a_column_without_texts_is_named_with_its_file(command):
    pq.write_table(pa.table({"body": [1, 2]}), "in.parquet")
    done = command("embed", "in.parquet", "--column", "body", "-o", "out.parquet")
    assert done.code == 1
    assert done.err.startswith("Error: in.parquet: the column 'body': the Arrow data is a column of Int64; ")


@posix
def test_names_of_files_need_not_be_utf_8(command, tmp_path):
    names = [os.fsdecode(name) for name in (b"\xff.txt", b"\xff.parquet", b"o\xff.parquet")]
    (tmp_path / names[0]).write_text("a\n")
    with (tmp_path / names[1]).open("wb") as file:
        pq.write_table(pa.table({"text": ["a"]}), file)
    assert embedded(command("embed", names[0])) == ["a"]
    assert command("embed", names[1], "-o", names[2]).code == 0
    with (tmp_path / names[2]).open("rb") as file:
        assert pq.read_table(file).column_names == ["text", "embedding"]
    assert command("index", names[0], "-c", "notes").code == 0
    (hit,) = json.loads(command("search", "a", "-c", "notes", "-s", "-1", "--json").out)
    assert hit["id"] == "\\xff.txt:1"
    for name, message in ((os.fsdecode(b"v\xff"), "b'v\\xff' is not UTF-8"), ("", "is empty")):
        done = command("embed", names[0], "--vector-column", name)
        assert (done.code, message in done.err) == (2, True), done.err


def test_a_name_may_be_as_long_as_the_system_allows(command, tmp_path):
    name = "x" * 249 + ".jsonl"
    assert command("embed", "-o", name, stdin="a\n").code == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    done = command("embed", "-o", f"x{name}", stdin="a\n")
    assert (done.code, done.err) == (1, f"Error: x{name}: {os.strerror(errno.ENAMETOOLONG)}\n")


def test_a_folder_that_cannot_be_written_is_named(command, tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied", "x")

    (tmp_path / "out.jsonl").write_text("earlier")
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    done = command("embed", "-o", "out.jsonl", stdin="a\n")
    assert done.code == 1
    assert f"out.jsonl: cannot be written, because the folder {tmp_path} cannot" in done.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('id,text\n1,ok\n2,"abc\n3,def\n', "t.csv, the row from line 3 on: a quote is not closed"),
        ("id,text\n1,ok\n2,hello, world\n", "t.csv:3: has more fields than the header"),
        ("text,id,text\nfirst,1,second\n", "t.csv: it has several columns 'text'"),
        ('id,text\n1,"a"b\n', "t.csv, the row from line 2 on: "),
    ],
)
def test_rows_of_tables_that_are_not_whole(command, tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content, encoding="utf-8")
    for arguments in (("embed", "t.csv"), ("rerank", "q", "t.csv"), ("preload", "t.csv")):
        done = command(*arguments)
        assert (done.code, message in done.err) == (1, True), (arguments, done.err)


def test_other_columns_may_share_a_name_unless_they_are_stored(command, tmp_path):
    (tmp_path / "t.csv").write_text("text,note,note\nhello,1,2\n", encoding="utf-8")
    assert embedded(command("embed", "t.csv")) == ["hello"]
    done = command("index", "t.csv", "-c", "notes")
    assert (done.code, "it has several columns 'note'" in done.err) == (1, True)


def test_a_row_with_surplus_fields_is_a_document_that_failed(command, tmp_path):
    (tmp_path / "t.csv").write_text("id,text\n1,hello, world\n2,whole\n", encoding="utf-8")
    done = command("index", "t.csv", "-c", "notes")
    assert (done.code, done.out[:30]) == (1, "1 indexed, 0 skipped, 1 failed")
    assert "t.csv:2: has more fields than the header" in done.err


def test_line_breaks_inside_of_fields_stay(command, tmp_path):
    (tmp_path / "t.csv").write_bytes(b'id,text\r\nx,"a\r\nb\rc\n"\r\n')
    assert embedded(command("embed", "t.csv")) == ["a\r\nb\rc\n"]
    assert command("index", "t.csv", "-c", "notes").code == 0
    (hit,) = json.loads(command("search", "a", "-c", "notes", "-s", "-1", "--json").out)
    assert (hit["id"], hit["text"]) == ("x", "a\r\nb\rc\n")


@pytest.mark.parametrize("ending", ["json", "tsv", "xlsx", "arrow", "feather", "JSON"])
def test_files_that_are_no_lines_are_refused(command, tmp_path, ending):
    name = f"rows.{ending}"
    (tmp_path / name).write_text("text\nhello\n")
    for arguments in (("embed", name), ("rerank", "q", name), ("preload", name), ("index", name, "-c", "notes")):
        done = command(*arguments)
        assert (done.code, f"{name}: each line of it would be taken for a text" in done.err) == (2, True), arguments
    assert embedded(command("embed", name, "--input-format", "txt")) == ["text", "hello"]


def test_the_format_of_files_and_of_standard_input(command, tmp_path, monkeypatch):
    rows = '{"text": "a"}\n\n{"text": "b"}\n'
    (tmp_path / "x.ndjson").write_text(rows)
    (tmp_path / "X.JSONL").write_text(rows)
    for name in ("x.ndjson", "X.JSONL"):
        assert embedded(command("embed", name)) == ["a", "b"]
    assert embedded(command("embed", "--input-format", "jsonl", stdin=rows)) == ["a", "b"]
    assert embedded(command("embed", "--input-format", "csv", stdin="id,text\n1,a\n")) == ["a"]
    done = command("rerank", "q", "-m", FIXTURES / "rerank_bert", "--input-format", "jsonl", "--json", stdin=rows)
    assert {(one["file"], one["line"], one["text"]) for one in json.loads(done.out)} == {("-", 1, "a"), ("-", 3, "b")}
    assert command("index", "x.ndjson", "-c", "notes").out.startswith("2 indexed, ")
    monkeypatch.setenv("MODEL_MANAGER_CACHE_DISK", str(tmp_path / "disk"))
    for arguments in (("X.JSONL",), ("x.ndjson",), ("x.ndjson", "--input-format", "jsonl")):
        assert command("preload", *arguments, "-m", "english_sentence").out == "2 texts are stored.\n"
    with tiny(cache_disk=str(tmp_path / "disk")) as manager:
        for name in ("X.JSONL", "x.ndjson"):
            assert manager.preload(name, "english_sentence", when="first_load").total == 2
        manager.embed(["a", "b"], "english_sentence")
        assert not manager.is_loaded("english_sentence")


@pytest.mark.parametrize(
    "rows",
    ['{"text": "a"}\n', '\n {"text": "a"}\r\nb\n', '["a", "b"]\n', '[{"text": "a"}]', "[\n", '{\n  "text": "a"\n}\n'],
)
def test_json_is_not_taken_for_lines_of_text(command, tmp_path, rows):
    """Standard input has no name that says what it holds."""
    (tmp_path / "rows").write_text(rows, newline="")
    for arguments in (("embed",), ("embed", "rows"), ("rerank", "q"), ("preload", "rows"), ("index", "-c", "notes")):
        done = command(*arguments, stdin=rows)
        how = "--format" if arguments[0] == "index" else "--input-format"
        assert done.code == 2, arguments
        assert "begins with JSON, and each line of it would be taken for a text" in done.err
        assert f"{how} jsonl reads one object" in done.err
        assert done.out == ""
    lines = [line.strip(" ") for line in rows.replace("\r\n", "\n").removesuffix("\n").split("\n")]
    found = [text.strip(" ") for text in embedded(command("embed", "--input-format", "txt", stdin=rows))]
    assert found == lines


@pytest.mark.parametrize("text", ['"quoted"', "[1]", "[1, 2] a note", "{curly} words", "12", "null", "a\n{}", "[]"])
def test_texts_that_only_resemble_json_are_texts(command, text):
    assert embedded(command("embed", stdin=f"{text}\n")) == text.split("\n")


@pytest.mark.parametrize(
    "words", [("embed",), ("rerank", "query"), ("index", "-c", "notes"), ("doctor",), ("warmup",), ("preload",)]
)
def test_names_of_files_are_completed(words):
    from click.shell_completion import ShellComplete
    from model_manager.cli import cli

    (found,) = ShellComplete(cli, {}, "model-manager", "_X").get_completions(list(words), "a")
    assert found.type == "file"


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (("embed", "-m"), "file english_sentence"),
        (("rerank", "q", "-m"), "file english_sentence"),
        (("search", "-c", "notes", "-m"), "file english_sentence"),
        (("search", "-c", "notes", "--rerank"), "file english_sentence"),
        (("preload", "a.txt", "-m"), "file english_sentence"),
        (("doctor",), "file english_sentence"),
        (("warmup", "reranker"), "file english_sentence"),
        (("explain",), "english_sentence"),
        (("index", "-c", "notes", "--sparse"), "file"),
        (("demo", "-m"), "file"),
        (("serve", "-m"), "file"),
    ],
)
def test_names_of_slots_are_completed_where_they_are_taken(words, kinds):
    from click.shell_completion import ShellComplete
    from model_manager.cli import cli

    found = ShellComplete(cli, {}, "model-manager", "_X").get_completions(list(words), "en")
    assert [one.value if one.type == "plain" else one.type for one in found] == kinds.split()


def test_a_source_is_preloaded(command, tmp_path):
    (tmp_path / "a.txt").write_text("hello\n")
    done = command("preload", "a.txt", "-m", FIXTURES / "bert_plain")
    assert (done.code, done.out) == (0, "1 texts are stored.\n"), done.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello\n" * 3000 + b"\xff\n", "bad.txt:3001: not UTF-8 text (invalid start byte)"),
        ("hello\n".encode("utf-16"), "bad.txt: is UTF-16, not UTF-8 text; convert it: iconv -f UTF-16 -t UTF-8"),
        (b"fine\n" + "hello\n".encode("utf-16-le"), "bad.txt:2: holds a NUL character, as texts in UTF-16 do"),
    ],
)
def test_other_encodings_are_named_by_their_line(command, tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    for arguments in (("embed", "bad.txt"), ("rerank", "q", "bad.txt"), ("index", "bad.txt", "-c", "notes")):
        done = command(*arguments)
        assert (done.code, message in done.err) == (1, True), (arguments, done.err)


def test_a_text_that_fails_is_named_by_its_line(command, tmp_path):
    (tmp_path / "a.jsonl").write_text('"ok"\n' * 600 + '"\\ud800"\n')
    done = command("embed", "a.jsonl", "-o", "out.npy")
    assert (done.code, "a.jsonl:601: holds a lone surrogate (\\ud800)" in done.err) == (1, True), done.err
    lines = [Line("a.txt", 3, "ok"), Line("b.txt", 7, "\ud800")]
    texts = [line.text for line in lines]
    with tiny() as manager:
        manager.register("rerank", str(FIXTURES / "rerank_bert"), dtype="auto")
        for call in (lambda: manager.embed(texts), lambda: manager.rerank("q", texts, "rerank")):
            with pytest.raises(ClickException, match=r"^b\.txt:7 holds a lone surrogate"), naming(lines):
                call()
        with pytest.raises(InputError, match="query is blank"), naming(lines):
            manager.rerank(" ", ["a"], "rerank")


def test_a_single_carriage_return_ends_a_line(command, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\rb\r\nc")
    assert embedded(command("embed", "a.txt")) == ["a", "b", "c"]


def test_blank_lines_are_no_documents(command, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n \n')
    (tmp_path / "a.txt").write_text("two\n\nthree\n\n")
    done = command("index", "a.jsonl", "a.txt", "-c", "notes", "--fail-fast")
    assert (done.code, done.out[:30]) == (0, "3 indexed, 0 skipped, 0 failed"), done.err
    found = json.loads(command("search", "one", "-c", "notes", "-s", "-1", "--json").out)
    assert {hit["id"] for hit in found} == {"a.jsonl:1", "a.txt:1", "a.txt:3"}


def test_a_deeply_nested_line_is_a_document_that_failed(command, tmp_path):
    deep = '{"text":' + "[" * 200_000 + "]" * 200_000 + "}"
    (tmp_path / "a.jsonl").write_text(f'{{"text": "one"}}\n{deep}\n{{"text": "two"}}\n')
    done = command("index", "a.jsonl", "-c", "notes")
    assert (done.code, done.out[:30]) == (1, "2 indexed, 0 skipped, 1 failed")
    assert "a.jsonl:2: is not JSON" in done.err


@posix
def test_pipes_are_read_and_written(command, tmp_path):
    os.mkfifo("in")
    writer = threading.Thread(target=(tmp_path / "in").write_text, args=('{"text": "hello"}\n',))
    writer.start()
    done = command("index", "in", "-c", "notes", "--format", "jsonl")
    writer.join()
    assert (done.code, done.out[:9]) == (0, "1 indexed"), done.err
    assert command("index", ".", "-c", "notes").code == 2

    os.mkfifo("out")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "out").read_bytes()))
    reader.start()
    done = command("embed", "-f", "npy", "-o", "out", stdin="hello\n")
    reader.join()
    assert done.code == 0, done.err
    assert stat.S_ISFIFO((tmp_path / "out").stat().st_mode)
    assert got[0].startswith(b"\x93NUMPY")


@posix
def test_standard_output_by_name_is_added_to(command_settings, tmp_path):
    (tmp_path / "a.txt").write_text("hello\n")
    for name in ("-", "/dev/stdout", "/dev/fd/1"):
        with (tmp_path / "all.jsonl").open("wb") as file:
            file.write(b"earlier\n")
            file.flush()
            subprocess.run([*COMMAND, "embed", "a.txt", "-f", "jsonl", "-o", name], stdout=file, timeout=60, check=True)
        first, second = (tmp_path / "all.jsonl").read_text().splitlines()
        assert (first, json.loads(second)["text"]) == ("earlier", "hello")
    assert not (tmp_path / "-").exists()


@posix
def test_a_file_is_not_both_input_and_output(command_settings, tmp_path):
    (tmp_path / "a.txt").write_text("hello\n")
    for arguments, given in ((("embed", "a.txt"), None), (("embed",), "a.txt")):
        with (tmp_path / "a.txt").open("ab") as file, (tmp_path / (given or "none")).open("a+b") as stdin:
            command = [*COMMAND, *arguments]
            done = subprocess.run(command, stdin=stdin, stdout=file, stderr=subprocess.PIPE, timeout=60, check=False)
        assert done.returncode == 2
        assert b"is both input and output" in done.stderr
        assert (tmp_path / "a.txt").read_text() == "hello\n"


@posix
def test_links_stay_and_files_keep_their_permissions(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("new")
    for name in ("link", "dangling"):
        with writing(tmp_path / name) as file:
            file.write(b"content")
        assert (tmp_path / name).is_symlink()
    assert [(tmp_path / name).read_bytes() for name in ("real", "new")] == [b"content"] * 2
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "link", "new", "real"]
    with writing(tmp_path / os.devnull) as file:
        file.write(b"content")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_leave_no_part_of_a_file(tmp_path, name):
    code = """
import os, signal
from pathlib import Path
from model_manager.cli.output import writing
signal.signal(getattr(signal, os.environ["SIGNAL"]), signal.SIG_DFL)  # under nohup it is ignored
with writing(Path(os.environ["TARGET"])) as file:
    file.write(b"a part")
    os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
    signal.pause()
"""
    target = tmp_path / "out.jsonl"
    target.write_text("earlier")
    done = run_python(code, check=False, TARGET=str(target), SIGNAL=name)
    assert done.returncode == 128 + getattr(signal, name)
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert target.read_text() == "earlier"


def test_closed_streams_are_an_error(command, monkeypatch, tmp_path):
    (tmp_path / "a.txt").write_text("hello\n")
    assert command("index", "a.txt", "-c", "notes").code == 0
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", None)
        from model_manager.cli import run

        for arguments in (["embed", "a.txt"], ["rerank", "q", "a.txt"], ["models"], ["models", "--json"]):
            assert run(arguments) == 1, arguments
        assert run(["search", "hello", "-c", "notes"]) == 1
        assert run(["embed", "a.txt", "-o", "out.npy"]) == 0
    monkeypatch.setattr(sys, "stdin", None)
    assert run(["embed"]) == 1
    assert np.load("out.npy").shape == (1, 32)


def test_rerank_prints_one_line_a_text(command, tmp_path):
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as table:
        csv.writer(table).writerows([["text"], ["one\r\ntwo"], ["three"]])
    done = command("rerank", "q", "a.csv", "-m", FIXTURES / "rerank_bert")
    assert sorted(line.split("\t")[1] for line in done.out.splitlines()) == ["one two", "three"]


def test_control_characters_of_a_text_are_printed_as_escapes(command, tmp_path):
    (tmp_path / "a.txt").write_text("one\x1b[31m\n")
    done = command("rerank", "q", "a.txt", "-m", FIXTURES / "rerank_bert")
    assert done.out.endswith("\tone\\x1b[31m\n")
    (found,) = json.loads(command("rerank", "q", "a.txt", "-m", FIXTURES / "rerank_bert", "--json").out)
    assert found["text"] == "one\x1b[31m"


def test_a_terminal_without_a_width_gets_a_table(command, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for columns, width in (("0", 80), ("60", 60)):
        monkeypatch.setenv("COLUMNS", columns)
        lines = command("models").out.splitlines()
        assert "Slots" in lines[0]
        assert len(lines[1]) == width


def test_an_export_replaces_an_earlier_one(command, tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_MANAGER_CACHE_DISK", str(tmp_path / "disk"))
    (tmp_path / "export").write_text("earlier")
    (tmp_path / "a.txt").write_text("hello\n")
    assert command("preload", "a.txt", "-m", "english_sentence").code == 0

    (tmp_path / "link").symlink_to("export")
    done = command("cache", "export", "none/export")
    assert (done.code, "none/export" in done.err) == (1, True)
    assert command("cache", "export", "link").code == 0
    assert (tmp_path / "link").is_symlink()
    assert b"earlier" not in (tmp_path / "export").read_bytes()
    assert command("cache", "export", "new").code == 0
    if sys.platform != "win32":
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    assert command("cache", "import", "new").code == 0
