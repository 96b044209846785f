"""`models`, `warmup`, `doctor` and `bench`, and every command with a server's model."""

from __future__ import annotations

import functools
import io
import json
import os
import sys

import numpy as np
import pytest
from conftest import TURKISH_MODEL, run_python
from embedding_server import WIDTH, EmbeddingServer, plain_vectors
from model_manager.integrations.qdrant import Backoff

pytestmark = pytest.mark.usefixtures("command_settings")


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


@pytest.mark.skipif(sys.platform == "win32", reason="needs the users of POSIX")
def test_a_user_without_a_home(command, monkeypatch):
    def no_user(*_arguments):
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("getpwuid", "getpwnam"):
        monkeypatch.setattr(f"pwd.{name}", no_user)
    for arguments in (("models",), ("models", "--json"), ("doctor", "--quick")):
        done = command(*arguments)
        assert (done.code, "home" in done.err) == (0, False), arguments
    done = command("demo", "--remove")
    assert done.code == 1
    assert "set HOME or XDG_CACHE_HOME" in done.err


def test_warmup(command, caplog):
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
    assert command("warmup", "reranker").out.startswith("reranker: ")
    assert command("warmup", "english2").code == 1
    assert "'english2', so it is taken for the source of a model; there is a slot 'english_sentence'" in caplog.text


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
    """A server of models, with TLS for one of the parameters."""
    if request.param == "TLS":
        request.getfixturevalue("trusted")
    certificate = authority.issue_cert("127.0.0.1") if request.param == "TLS" else None
    with EmbeddingServer(certificate=certificate) as server:
        yield server


def test_a_servers_model(command, server, monkeypatch):
    """Every command that takes a model accepts a server's."""
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
    arguments = {"index": ["-c", "notes"], "search": ["a question", "-c", "notes", "--path", ":memory:"]}.get(name, [])
    done = command(name, *arguments, stdin="a text\n")
    assert done.code == 1
    address = source.removeprefix("openai+").replace("org/model", "v1/embeddings")
    assert f"no vectors from {address}: " in done.err
    assert "Check that the server runs and can be reached from here" in done.err
    assert "Traceback" not in done.err


def test_a_server_that_fails_while_it_indexes(command, tmp_path, monkeypatch):
    """Written documents stay; the same call resumes the run."""
    monkeypatch.setattr(
        "model_manager.integrations.qdrant.indexer.Backoff", functools.partial(Backoff, attempts=2, first=0)
    )
    with EmbeddingServer() as server:
        arguments = ("index", "lines.txt", "-m", server.openai, "-c", "notes", "-b", "10")
        (tmp_path / "lines.txt").write_text("".join(f"line {n}\n" for n in range(10)))
        assert command(*arguments).code == 0
        (tmp_path / "lines.txt").write_text("".join(f"line {n}\n" for n in range(30)))
        server.faults[:] = [None, None] + [401] * 100  # after the requests of the load and of the probe
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


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("MODEL_MANAGER_CACHE_URL", "unix:///tmp/x.sock?pass=hunter2", "unix:///tmp/x.sock?***"),
        ("MODEL_MANAGER_CACHE_URL", "redis://h:1/?password=hunter2", "redis://h:1/?***"),
        ("MODEL_MANAGER_CACHE_URL", "redis://me:hunter2@h:1, redis://g:2/3", "redis://***@h:1, redis://g:2/3"),
        ("HTTPS_PROXY", "me:hunter2@proxy:3128", "***@proxy:3128"),
        ("https_proxy", "me:hun@hunter2@proxy:3128", "***@proxy:3128"),
        ("ALL_PROXY", "socks5://me:hun/hunter2@proxy:3128", "socks5://***@proxy:3128"),
        ("NO_PROXY", "localhost,.example.com", "localhost,.example.com"),
        ("QDRANT_URL", "http://host:6333", "http://host:6333"),
    ],
)
def test_doctor_hides_the_passwords_of_addresses(command, monkeypatch, name, value, shown):
    monkeypatch.setenv(name, value)
    done = command("doctor", "--quick", "--json")
    assert json.loads(done.out)["settings"][name] == shown
    assert "hunter2" not in done.out + done.err + command("doctor", "--quick").out


def test_a_slot_of_a_package_that_is_not_there(command, monkeypatch):
    monkeypatch.setenv("TURKISH_SENTENCE_MODEL", "pkg:no_such_package.sub/model")
    done = command("models", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["slots"][0]["bytes"] is None


def test_the_reason_of_a_refusal_is_a_sentence_of_its_own_in_turkish():
    code = "from model_manager.cli import run; run(['doctor', '/no/such/model'])"
    english = run_python(code, LANGUAGE="", LC_ALL="C.UTF-8").stderr
    turkish = run_python(code, LANGUAGE="", LC_ALL="tr_TR.UTF-8", PYTHONIOENCODING="utf-8").stderr
    reason = english.removeprefix("It does not run: ")
    assert reason != english
    assert turkish == f"Bu model çalışmaz. Çekirdeğin bildirdiği neden (İngilizce): {reason}"
