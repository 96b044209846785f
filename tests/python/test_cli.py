"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from click.testing import CliRunner
from commands import COMMANDS, start
from conftest import ENGLISH_MODEL, FIXTURES, TURKISH_MODEL, run_python, tiny
from model_manager.cli import cli
from model_manager.cli.output import writing

pytestmark = pytest.mark.usefixtures("command_settings")
LINES = ["merhaba dünya", 'hello "world", again', "", "İstanbul"]


def expected(texts, **options):
    with tiny() as manager:
        return manager.embed(texts, "turkish_sentence", **options)


def test_every_command_has_help(command):
    assert sorted(cli.commands) == COMMANDS
    listed = command("--help")
    assert listed.code == 0
    assert "Exit codes: 0 done, 1 something failed, 2 wrong usage, 130 interrupted." in listed.out
    for name in COMMANDS:
        assert f"  {name} " in listed.out
        shown = command(name, "--help")
        assert shown.code == 0
        assert shown.out.startswith(f"Usage: model-manager {name} [OPTIONS]")
        assert "Show this and exit." in shown.out
    assert command("--version").out.startswith("model-manager, version ")


def test_help_in_turkish():
    code = "from model_manager.cli import run; run(['index', '--help']); run(['--help'])"
    shown = run_python(
        code, LANGUAGE="", LC_ALL="", LC_MESSAGES="", LANG="tr_TR.UTF-8", PYTHONIOENCODING="utf-8"
    ).stdout
    for words in (
        "Kullanım: model-manager index",
        "Seçenekler:",
        "Komutlar:",
        "Bunu göster ve çık.",
        "Koleksiyonun adı.  [gerekli]",
        "[varsayılan: 100; x>=1]",
    ):
        assert words in shown
    for words in ("Usage", "Show", "Options:", "Commands:", "[default", "required]"):
        assert words not in shown
    assert "Usage:" in run_python(code, LANGUAGE="", LC_ALL="C.UTF-8", LANG="tr_TR.UTF-8").stdout


def test_each_output_is_in_one_language(tmp_path):
    """Errors, warnings and what quotes them are English, as those of the core are."""
    code = """
import sys
from model_manager.cli import run
for arguments in ("embed --nope", "embed nothing.txt", "doctor --quick", "explain english_sentence"):
    run(arguments.split())
"""
    settings = {"LANGUAGE": "", "LC_ALL": "tr_TR.UTF-8", "PYTHONIOENCODING": "utf-8"}
    models = {"TURKISH_SENTENCE_MODEL": TURKISH_MODEL, "ENGLISH_FALLBACK_MODEL": ENGLISH_MODEL}
    done = run_python(code, **settings, **models)
    assert not set("çğışöüÇĞİŞÖÜ") & set(done.stdout + done.stderr)
    for words in ("Usage: model-manager embed", "Error: ", "Warning: turkish_sentence and"):
        assert words in done.stderr
    for words in ("Nothing is wrong.", "Profile: "):
        assert words in done.stdout
    code = "from model_manager.cli import run; run(['cache', 'info'])"
    done = run_python(code, **settings, **models, MODEL_MANAGER_CACHE_DISK=str(tmp_path))
    assert [cell.strip() for cell in done.stdout.splitlines()[2].strip("┃").split("┃")] == [
        "katman",
        "yer",
        "vektör",
        "boyut",
        "durum",
    ]


@pytest.mark.parametrize(
    ("encoding", "title"), [("ascii", "Anlamına göre yanıtlar"), ("koi8-r", r"Anlam\u0131na g\xf6re yan\u0131tlar")]
)
def test_output_without_turkish_letters(encoding, title):
    """ASCII is taken for a system without settings, and UTF-8 is written; others get an escape. JSON stays JSON."""
    code = f"""
import sys
from model_manager.cli import run
sys.exit(run(['demo', '--model', {ENGLISH_MODEL!r}]) or run(['doctor', '--quick', '--json']))
"""
    settings = {"LANGUAGE": "", "LC_ALL": "tr_TR.UTF-8", "PYTHONIOENCODING": encoding, "TURKISH_SENTENCE_MODEL": "ağ"}
    done = run_python(code, **settings)
    table, _, document = done.stdout.partition("\n{")
    assert title in table
    assert "When can I eat?" in table
    assert json.loads("{" + document)["settings"]["TURKISH_SENTENCE_MODEL"] == "ağ"


def test_an_interrupt_of_the_imports_is_one_too():
    code = """
import sys
from model_manager.__main__ import main
class Interrupted:
    def find_spec(self, name, *_):
        if name == "model_manager.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
print(main())
"""
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("130\n", "Interrupted.\n")


def test_a_file_that_cannot_be_written_is_named_as_the_user_named_it(tmp_path):
    (tmp_path / "file").write_text("no folder")
    target = tmp_path / "file" / "v.npy"
    with pytest.raises(OSError) as caught, writing(target):  # noqa: PT011  each system has its own subclass
        pass
    assert caught.value.filename == str(target)


def test_embed_from_standard_input(command):
    done = command("embed", stdin="\n".join(LINES) + "\n")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["text"] for row in rows] == LINES
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], np.float32), expected(LINES))


def test_embed_files(command, tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffmerhaba dünya\r\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(LINES[1:]), encoding="utf-8")
    for name in ("v.npy", "v.csv", "v.jsonl"):
        done = command("embed", "a.txt", "b.txt", "-o", name)
        assert (done.code, done.out) == (0, ""), done.err
    vectors = expected(LINES)
    np.testing.assert_array_equal(np.load("v.npy"), vectors)
    rows = list(csv.reader(io.StringIO((tmp_path / "v.csv").read_bytes().decode(), newline="")))
    assert [row[0] for row in rows] == LINES
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], np.float32), vectors)
    assert len((tmp_path / "v.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt", "v.csv", "v.jsonl", "v.npy"]


def test_embed_reads_the_texts_of_json_lines_and_tables(command, tmp_path):
    first, second, *_ = LINES
    rows = [json.dumps({"text": first, "id": 1}), "", json.dumps(second)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    with (tmp_path / "b.csv").open("w", encoding="utf-8", newline="") as table:
        csv.writer(table).writerows([["id", "text"], ["1", first], ["2", f"{second}\nand more"]])
    done = command("embed", "a.jsonl", "b.csv")
    assert done.code == 0, done.err
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [row["text"] for row in found] == [first, second, first, f"{second}\nand more"]
    np.testing.assert_array_equal(np.array([row["embedding"] for row in found[:2]], np.float32), expected(LINES)[:2])
    (tmp_path / "c.jsonl").write_text('{"body": "a"}\n{"text": "b"}\n', encoding="utf-8")
    ids = command("embed", "b.csv", "--column", "id").out.splitlines()
    assert [json.loads(row)["text"] for row in ids] == ["1", "2"]
    for arguments in (["embed", "c.jsonl"], ["rerank", "q", "c.jsonl"]):
        done = command(*arguments)
        assert (done.code, "c.jsonl:1: must be a text or an object with a text under 'text'" in done.err) == (1, True)
    assert "c.jsonl:2: must be" in command("embed", "c.jsonl", "--column", "body").err
    (tmp_path / "d.jsonl").write_text('"a"\nplain\n', encoding="utf-8")
    assert "d.jsonl:2: is not JSON" in command("embed", "d.jsonl").err
    (tmp_path / "e.jsonl").write_text('{"text": "a", "text": "b"}\n', encoding="utf-8")
    assert "e.jsonl:1: is not JSON (the field 'text' stands twice in an object)" in command("embed", "e.jsonl").err
    (tmp_path / "mark.txt").write_bytes(b"\xef\xbb\xbf")
    assert command("embed", "mark.txt").out == command("embed", os.devnull).out
    assert "b.csv: no column 'body'; its columns: id, text" in command("embed", "b.csv", "--column", "body").err


def test_embed_options(command, tmp_path):
    done = command("embed", "-f", "npy", "-m", ENGLISH_MODEL, "--query", "-d", "8", stdin="a\nb\n")
    with tiny() as manager:
        wanted = manager.embed(["a", "b"], "english_sentence", prompt_name="query", truncate_dim=8)
    np.testing.assert_array_equal(np.load(io.BytesIO(done.bytes)), wanted)
    assert command("embed", "-o", "none.npy", stdin="").code == 0
    assert np.load("none.npy").shape == (0, 32)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["embed", "missing.txt"], 1, "Error: missing.txt: No such file or directory"),
        (["embed", "latin.txt"], 1, "latin.txt:1: not UTF-8 text"),
        (["embed", "-o", "vectors.txt"], 2, "vectors.txt: say with --format which of jsonl, csv, npy"),
        (["embed", "-o", "no/such/folder.npy"], 2, "there is no folder no/such"),
        (["embed", "-m", "no/such"], 1, '"no/such" was not found'),
        (["embed", "-d", "33"], 1, "the model has 32 dimensions"),
        (["embed", "-d", "0"], 2, "0 is not in the range"),
        (["bench", "--seconds", "nan"], 2, "'nan' is not a finite number"),
        (["bench", "--seconds", "inf"], 2, "'inf' is not a finite number"),
        (["bench", "--seconds", "0"], 2, "0.0 is not in the range"),
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["index", "-c", "c", "missing.jsonl"], 2, "there is no file missing.jsonl"),
        (["index", "-c", "c", "table.csv"], 1, "table.csv: no column 'text'; its columns: a, b"),
        (["index", "a.txt"], 2, "Missing option '-c'"),
        (["search", "-c", "c", "question"], 1, "collection 'c' does not exist"),
        (["search", "-c", "c", "question", "-w", "year"], 2, "must look like field=value"),
        (["search", "-c", "c", "question", "--path", "a", "--url", "http://b"], 1, "give either the path"),
        (["search", "-c", "c", " "], 1, "the query is empty"),
    ],
)
def test_errors_are_one_line(command, tmp_path, arguments, code, message):
    (tmp_path / "latin.txt").write_bytes("dünya".encode("latin-1"))
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    done = command(*arguments, stdin="text\n")
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_wrong_setting_is_named(command, monkeypatch):
    monkeypatch.setenv("MODEL_MANAGER_THREADS", "many")
    done = command("embed", stdin="a\n")
    assert done.code == 1
    assert "MODEL_MANAGER_THREADS" in done.err
    done = command("doctor")
    assert done.code == 1
    assert "Wrong: " in done.err
    assert "MODEL_MANAGER_THREADS" in done.err


def _write_half(target):
    with writing(target) as file:
        file.write(b"half")
        raise ValueError("and not the rest")


def test_a_file_is_there_when_it_is_complete(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(ValueError, match="not the rest"):
        _write_half(target)
    assert target.read_text() == "old"
    with writing(target) as file:
        file.write(b"new")
        assert target.read_text() == "old"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_serve_hands_its_options_over(command, monkeypatch):
    started = []

    class Config:
        def __init__(self, **settings):
            self.settings = settings

    package, main = types.ModuleType("model_manager.server"), types.ModuleType("model_manager.server.main")
    package.ServerConfig = Config
    main.run = started.append
    monkeypatch.setitem(sys.modules, "model_manager.server", package)
    monkeypatch.setitem(sys.modules, "model_manager.server.main", main)
    monkeypatch.setitem(sys.modules, "model_manager.server.config", types.ModuleType("model_manager.server.config"))
    sys.modules["model_manager.server.config"].default_models = tuple
    assert command("serve", "--port", "0", "--host", "127.0.0.1").code == 0
    assert started[0].settings == {"port": 0, "host": "127.0.0.1"}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("someone/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("./models/my model/", "my model"),
        ("C:\\models\\e5", "e5"),
        ("a/bge-m3.gguf", "bge-m3"),
        ("pkg:package/model", "model"),
        ("ollama://box:11434/qwen3-embedding:0.6b", "qwen3-embedding:0.6b"),
        ("openai+https://key@host/v1/small", "small"),
        (".", None),
        ("english_sentence", None),
    ],
)
def test_serve_names_a_model_by_its_source(monkeypatch, source, name):
    started = []
    monkeypatch.setattr("model_manager.server.main.run", started.append)
    for variable, expected in (("", name or "qwen3-embedding"), ("given", "given")):
        monkeypatch.setenv("OLLAMA_MODEL_NAME", variable)
        cli.main(["serve", "--model", source], standalone_mode=False)
        (served,) = started.pop().models
        assert (served.name, served.key, served.source) == (expected, expected, source)


def test_a_closed_output(tmp_path):
    (tmp_path / "many.txt").write_text("a line\n" * 5000)
    process = start("embed", "many.txt", stdin=subprocess.DEVNULL)
    process.stdout.readline()
    process.stdout.close()
    messages = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=50) == 1
    assert messages == ""


def test_without_the_extra():
    code = """
import sys
sys.modules["click"] = None
from model_manager.__main__ import main
sys.exit(main())
"""
    done = run_python(code, check=False)
    assert done.returncode == 2
    assert done.stderr == "this part of model_manager needs click: pip install 'model-manager-rs[cli]'\n"


@pytest.mark.parametrize(
    ("package", "arguments", "name"),
    [("qdrant_client", ["search", "a", "-c", "c"], "qdrant"), ("fastapi", ["serve"], "server")],
)
def test_without_the_extra_of_a_command(package, arguments, name):
    code = f"import sys; sys.modules[{package!r}] = None\nfrom model_manager.cli import run; sys.exit(run({arguments}))"
    done = run_python(code, check=False)
    assert done.returncode == 1
    assert f"needs {package}: pip install 'model-manager-rs[{name}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_click_can_run_it_too():
    assert CliRunner().invoke(cli, ["--version"]).exit_code == 0


def test_rerank(command, tmp_path):
    source = str(FIXTURES / "rerank_bert")
    lines = ["Kargonuz yolda.", "", "The fox jumps."]
    (tmp_path / "notes.txt").write_text("\n".join(lines), encoding="utf-8")
    with tiny() as manager:
        manager.register("rerank", source, dtype="auto")
        wanted = manager.rerank("parcel?", [lines[0], lines[2]], "rerank")
    done = command("rerank", "parcel?", "notes.txt", "-m", source)
    assert done.code == 0, done.err
    assert [line.split("\t")[1] for line in done.out.splitlines()] == [one.document for one in wanted]
    done = command("rerank", "parcel?", "-m", source, "-n", "1", "--json", stdin="\n".join(lines))
    assert [(one["line"], one["text"]) for one in json.loads(done.out)] == [
        ({0: 1, 1: 3}[wanted[0].index], wanted[0].document)
    ]
    assert command("rerank", " ", "notes.txt", "-m", source).code == 1


def test_rerank_reads_the_texts_of_json_lines_and_tables(command, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "Kargonuz yolda."}\n\n"The fox jumps."\n', encoding="utf-8")
    (tmp_path / "b.csv").write_text("text,id\nA parcel,7\n", encoding="utf-8")
    done = command("rerank", "parcel?", "a.jsonl", "b.csv", "-m", str(FIXTURES / "rerank_bert"), "--json")
    assert done.code == 0, done.err
    assert {(one["line"], one["text"]) for one in json.loads(done.out)} == {
        (1, "Kargonuz yolda."),
        (3, "The fox jumps."),
        (2, "A parcel"),
    }
    done = command("rerank", "parcel?", "c.parquet")
    assert (done.code, "c.parquet: each line of it would be taken for a text" in done.err) == (2, True)
