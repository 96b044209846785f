"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ENGLISH_MODEL, ROOT, TURKISH_MODEL, run_python, tiny
from embedding_server import WIDTH, EmbeddingServer, plain_vectors
from model_manager.cli import cli, run
from model_manager.cli.output import writing
from model_manager.integrations.qdrant import Backoff

COMMANDS = ["bench", "doctor", "embed", "index", "models", "search", "serve", "warmup"]
LINES = ["merhaba dünya", 'hello "world", again', "", "İstanbul"]


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """The tiny models, an empty folder, no Qdrant server."""
    for name, value in {
        "TURKISH_SENTENCE_MODEL": TURKISH_MODEL,
        "ENGLISH_FALLBACK_MODEL": ENGLISH_MODEL,
        "USE_HUGGINGFACE": "false",
        "MODEL_MANAGER_DTYPE": "float32",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("QDRANT_URL", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def command(capfdbinary, monkeypatch):
    """Runs a command here; its exit code, output and complaints."""

    def call(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = run([str(argument) for argument in arguments])
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return types.SimpleNamespace(code=code, out=out.decode(errors="replace"), err=err.decode(), bytes=out)

    return call


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
        "Koleksiyonun adı.",
    ):
        assert words in shown
    for words in ("Usage", "Show", "Options:", "Commands:"):
        assert words not in shown
    assert "Usage:" in run_python(code, LANGUAGE="", LC_ALL="C.UTF-8", LANG="tr_TR.UTF-8").stdout


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
        (["embed", "latin.txt"], 1, "latin.txt: not UTF-8 text"),
        (["embed", "-o", "vectors.txt"], 2, "vectors.txt: say with --format which of jsonl, csv, npy"),
        (["embed", "-o", "no/such/folder.npy"], 2, "there is no folder no/such"),
        (["embed", "-m", "no/such"], 1, '"no/such" was not found'),
        (["embed", "-d", "33"], 1, "the model has 32 dimensions"),
        (["embed", "-d", "0"], 2, "0 is not in the range"),
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
    again = json.loads(command("index", "docs.jsonl", "-c", "notes", "--recreate", "--json").out)
    assert (again["indexed"], again["skipped"]) == (3, 0)


def test_index_of_other_forms(command, tmp_path):
    (tmp_path / "t.csv").write_text('body,key,lang\n"a, b",x1,en\n"two\nlines",x2,tr\n', encoding="utf-8")
    (tmp_path / "lines.txt").write_text("first line\nsecond line\n", encoding="utf-8")
    fields = ("--text-field", "body", "--id-field", "key")
    assert command("index", "t.csv", "lines.txt", "-c", "notes", *fields).code == 0
    assert command("index", "-c", "notes", stdin="from standard input\n").code == 0
    found = json.loads(command("search", "a", "-c", "notes", "-s", "-1", "--json").out)
    assert {hit["id"]: (hit["text"], hit["metadata"]) for hit in found} == {
        "x1": ("a, b", {"lang": "en"}),
        "x2": ("two\nlines", {"lang": "tr"}),
        "lines.txt:1": ("first line", {}),
        "lines.txt:2": ("second line", {}),
        "-:1": ("from standard input", {}),
    }


def test_documents_that_fail_make_the_exit_code_1(command, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"id": 1, "text": "good"}\nnot json\n[1]\n{"id": 4, "text": " "}\n')
    done = command("index", "d.jsonl", "-c", "notes")
    assert done.code == 1
    assert done.out.startswith("1 indexed, 0 skipped, 3 failed in ")
    assert "document 1: d.jsonl:2 is not JSON" in done.err
    assert "document 2: d.jsonl:3 is no JSON object" in done.err
    assert "document 3 (id '4'): its text is empty" in done.err
    report = json.loads(command("index", "d.jsonl", "-c", "notes", "--json").out)
    assert (report["skipped"], [one["position"] for one in report["failures"]]) == (1, [1, 2, 3])
    stopped = command("index", "d.jsonl", "-c", "notes", "--fail-fast")
    assert stopped.code == 1
    assert "indexing was given up: document 1: d.jsonl:2 is not JSON" in stopped.err


def test_examples_of_the_readme(command, tmp_path):
    (tmp_path / "texts.txt").write_text("merhaba\nhello\n", encoding="utf-8")
    write_documents(tmp_path)
    section = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    block = section.split("```sh\n", 1)[1].split("```", 1)[0]
    lines = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert sorted({line[0] for line in lines}) == COMMANDS
    for line in lines:
        if line[0] != "serve":
            done = command(*line)
            assert done.code == 0, (line, done.err)
            assert done.out or "-o" in line, line


def test_models(command, tmp_path, monkeypatch):
    blobs = tmp_path / "cache" / "models--someone--small" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc").write_bytes(b"x" * 1000)
    (blobs.parent / "link").symlink_to(blobs / "abc")
    monkeypatch.setenv("MODEL_MANAGER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HUGGINGFACE_MODEL", "someone/small")
    monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", "pkg:json")
    done = command("models", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["cache"] == {"folder": str(tmp_path / "cache"), "models": [{"model": "someone/small", "bytes": 1000}]}
    slots = {one["slot"]: one for one in found["slots"]}
    assert set(slots) == {"turkish_sentence", "english_sentence", "text_generator"}
    assert slots["turkish_sentence"]["source"] == TURKISH_MODEL
    assert slots["turkish_sentence"]["bytes"] > 10_000
    assert slots["text_generator"]["bytes"] == 1000
    assert slots["english_sentence"]["bytes"] > 10_000, "the folder of that package"
    assert "someone/small" in command("models").out


def test_warmup(command):
    done = command("warmup")
    assert done.code == 0
    assert done.out.startswith("turkish_sentence: ")
    done = command("warmup", "english_sentence", "no/such", "--json")
    assert done.code == 1
    good, bad = json.loads(done.out)
    assert (good["slot"], good["loaded"], bad["slot"], bad["loaded"]) == ("english_sentence", True, "no/such", False)
    assert good["bytes"] > 0
    assert '"no/such" was not found' in bad["error"]
    assert done.err == ""


def test_doctor(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "secret-7")
    done = command("doctor", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["problems"] == []
    assert found["settings"]["HF_TOKEN"] == "(set)"
    assert found["settings"]["TURKISH_SENTENCE_MODEL"] == TURKISH_MODEL
    assert found["versions"]["numpy"] == np.__version__
    assert {one["slot"]: one["state"] for one in found["models"]} == {
        "turkish_sentence": "ok",
        "english_sentence": "ok",
    }
    assert "xlm-roberta, 32 dimensions, float32" in found["models"][0]["facts"]
    assert "models" not in json.loads(command("doctor", "--quick", "--json").out)
    shown = command("doctor")
    assert "Nothing is wrong." in shown.out
    assert "secret-7" not in shown.out + done.out

    monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", str(tmp_path))
    done = command("doctor")
    assert done.code == 1
    assert "Wrong: english_sentence: " in done.err


@pytest.mark.parametrize(("offline", "code", "state"), [("0", 0, "not downloaded"), ("1", 1, "wrong")])
def test_doctor_and_what_is_not_downloaded(command, monkeypatch, tmp_path, offline, code, state):
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("MODEL_MANAGER_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", "someone/absent")
    done = command("doctor", "--json")
    assert done.code == code
    assert [one["state"] for one in json.loads(done.out)["models"]] == ["ok", state]


def test_bench(command):
    done = command("bench", "--seconds", "0.01", "--json", "-m", "english_sentence")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["dtype"] == "float32"
    for name in ("one_text_p50_ms", "short_texts_per_second", "passage_tokens_per_second", "resident_bytes"):
        assert found[name] > 0
    assert "passages" in command("bench", "--seconds", "0.01").out


@pytest.fixture(params=["plain", "TLS"])
def server(request, authority):
    """Of models, with a certificate that is trusted where it needs one."""
    if request.param == "TLS":
        request.getfixturevalue("trusted")
    certificate = authority.issue_cert("127.0.0.1") if request.param == "TLS" else None
    with EmbeddingServer(certificate=certificate) as server:
        yield server


def test_a_servers_model(command, server, monkeypatch):
    """With every command that takes one."""
    done = command("embed", "-m", server.openai, "-f", "npy", stdin="one\ntwo words\n")
    assert done.code == 0, done.err
    vectors = plain_vectors(["one", "two words"])
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(io.BytesIO(done.bytes)), expected, atol=1e-6)

    done = command("index", "-m", server.ollama, "-c", "notes", stdin="one\ntwo words\n")
    assert (done.code, done.out[:9]) == (0, "2 indexed"), done.err
    found = command("search", "two words", "-m", server.ollama, "-c", "notes", "-n", "1", "--json")
    assert [hit["text"] for hit in json.loads(found.out)] == ["two words"]

    done = command("bench", "-m", server.ollama, "--seconds", "0.01", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["model"] == server.ollama
    assert found["passage_tokens_per_second"] > found["passage_texts_per_second"] > 0
    shown = command("bench", "-m", server.ollama, "--seconds", "0.01").out
    assert shown.startswith(f"{server.ollama}, by its server\n")

    done = command("warmup", server.ollama, server.openai)
    assert (done.code, done.err) == (0, "")
    assert [line.partition(": ")[0] for line in done.out.splitlines()] == [server.ollama, server.openai]

    monkeypatch.setenv("TURKISH_SENTENCE_MODEL", server.openai)
    done = command("doctor", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["models"][0]["facts"].startswith(f"openai, {WIDTH} dimensions, at http")
    assert found["settings"].get("SSL_CERT_FILE") == os.environ.get("SSL_CERT_FILE")
    done = command("models", "--json")
    assert (done.code, json.loads(done.out)["slots"][0]["source"]) == (0, server.openai)


@pytest.mark.parametrize("name", ["bench", "doctor", "embed", "index", "search", "warmup"])
def test_a_server_that_is_not_there(command, monkeypatch, name):
    with EmbeddingServer() as server:
        source = server.openai
    monkeypatch.setenv("TURKISH_SENTENCE_MODEL", source)
    arguments = {"index": ["-c", "notes"], "search": ["a question", "-c", "notes"]}.get(name, [])
    done = command(name, *arguments, stdin="a text\n")
    assert done.code == 1
    address = source.removeprefix("openai+").replace("org/model", "v1/embeddings")
    assert f"no vectors from {address}: " in done.err
    assert "Check that the server runs and can be reached from here" in done.err
    assert "Traceback" not in done.err


def test_a_server_that_fails_while_it_indexes(command, tmp_path, monkeypatch):
    """What was done is kept; the same call goes on there."""
    monkeypatch.setattr(
        "model_manager.integrations.qdrant.indexer.Backoff", functools.partial(Backoff, attempts=2, first=0)
    )
    with EmbeddingServer() as server:
        arguments = ("index", "lines.txt", "-m", server.openai, "-c", "notes", "-b", "10")
        (tmp_path / "lines.txt").write_text("".join(f"line {n}\n" for n in range(10)))
        assert command(*arguments).code == 0
        (tmp_path / "lines.txt").write_text("".join(f"line {n}\n" for n in range(30)))
        server.faults[:] = [None] + [401] * 100  # after the load's request
        done = command(*arguments)
        assert done.code == 1
        assert done.out.startswith("0 indexed, 10 skipped, 20 failed in ")
        assert "access was refused" in done.err
        server.faults.clear()
        assert command(*arguments).out.startswith("20 indexed, 10 skipped, 0 failed in ")


def test_doctor_tells_a_model_that_its_server_does_not_have_from_one_to_download(command, monkeypatch):
    with EmbeddingServer() as server:
        server.faults[:] = [404]
        monkeypatch.setenv("TURKISH_SENTENCE_MODEL", server.ollama)
        done = command("doctor")
    assert done.code == 1
    assert "Wrong: turkish_sentence: " in done.err
    assert "ollama pull org/model:1b" in done.err


def test_a_key_in_a_source_is_not_shown(command, monkeypatch):
    source = "openai+https://sk-secret@127.0.0.1:9/model"
    monkeypatch.setenv("TURKISH_SENTENCE_MODEL", source)
    monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", source.replace("sk-secret", "env:NO_SUCH_KEY"))
    monkeypatch.setenv("HTTPS_PROXY", "http://someone:pass-secret@127.0.0.1:9")
    for arguments in (["doctor"], ["doctor", "--json"], ["warmup", source], ["embed", "-m", source], ["models"]):
        done = command(*arguments, stdin="a text\n")
        assert "secret" not in done.out + done.err, arguments
        assert "***@127.0.0.1:9" in done.out + done.err, arguments
    assert "env:NO_SUCH_KEY@" in command("doctor").out


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


def start(*arguments, **options):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "model_manager", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        **options,
    )


def _points(storage):
    try:
        with contextlib.closing(sqlite3.connect(f"file:{storage}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT count(*) FROM points").fetchone()[0]
    except sqlite3.OperationalError:
        return 0  # not yet there


def test_ctrl_c(tmp_path):
    """While the input is still coming: exit code 130, and where it was."""
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
        told = process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, told
    assert "Indexing of 'notes' ended early: 20 indexed, 0 skipped, 0 failed in " in told
    assert "Interrupted." in told
    assert "Traceback" not in told


def test_output_that_nobody_reads(tmp_path):
    (tmp_path / "many.txt").write_text("a line\n" * 5000)
    process = start("embed", "many.txt", stdin=subprocess.DEVNULL)
    process.stdout.readline()
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=50) == 1
    assert told == ""


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
