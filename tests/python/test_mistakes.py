"""The commonest mistakes of new users: each error names the thing and the remedy in a line or two."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
from conftest import ENGLISH_MODEL, FIXTURES
from model_manager import Config, CrossEncoder, ModelManager, errors
from model_manager._embedder import Embedder, reranker_for
from model_manager.semantic import BM25Index, IntentClassifier

RERANKER = str(FIXTURES / "rerank_bert")
GENERATOR = str(FIXTURES / "llama")


def frame(*columns):
    return pd.DataFrame({column: ["a", "b"] for column in columns})


@pytest.fixture(scope="module")
def models():
    from conftest import tiny

    with tiny(reranker_model=RERANKER, generator_model=GENERATOR, generator_dtype="float32") as manager:
        manager.register("missing", "/no/such/folder")
        manager.register("hub", "someone/some-model")
        manager.register("package", "pkg:no_such_package/model")
        manager.register("file", f"{ENGLISH_MODEL}/config.json")
        manager.register("own", loader=object)
        manager.register("plain", str(FIXTURES / "bert_plain"))
        manager.register("embeds, is no reranker", str(FIXTURES / "bert_dense"), kind="reranker")
        manager.register("writes, is no reranker", GENERATOR, kind="reranker")
        manager.register("sparse, is no embedding", str(FIXTURES / "splade_bert"), kind="embedding")
        manager.register("scores, is no generator", RERANKER, kind="generator")
        yield manager


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda _: CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2"),
            TypeError,
            r"^manager must be a ModelManager, not str; .*register\(name, source\), then give manager and name",
        ),
        (
            lambda m: m.embed("a", "english_sentense"),
            KeyError,
            r'"english_sentense"; did you mean "english_sentence"\?',
        ),
        (
            lambda m: m.embed("a", "text"),
            KeyError,
            r'"text"; known names: .*english_sentence.*register\("text", source=',
        ),
        (
            lambda m: m.register("new", "m", pinned=True, keep_alive="5m"),
            errors.ArgumentError,
            r"keep_alive is for a slot that is not pinned: .* leave one of both out",
        ),
        (lambda m: m.unload("text-generatr"), KeyError, r'"text-generatr"; did you mean "text_generator"\?'),
        (lambda m: m.embed("a", prompt_name="qurey"), errors.ArgumentError, r'no prompt "qurey"; did you mean "query"'),
        (
            lambda m: m.embed("a", "plain", prompt_name="query"),
            errors.ArgumentError,
            r'no prompt "query"; it has no prompts',
        ),
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
        (
            lambda m: m.chat(MappingProxyType({"role": "user"})),
            TypeError,
            r"messages must be a list .*, not mappingproxy",
        ),
        (lambda m: m.chat([{"rol": "user"}]), errors.ArgumentError, r"messages\[0\] has no role: it must be"),
        (lambda m: m.chat([{"role": "user"}]), errors.ArgumentError, r"messages\[0\] has no content: it must be"),
        (lambda m: m.rerank("a", "b"), TypeError, r"documents must be several texts, not str"),
        (lambda m: m.rerank("a", {"text": "b"}), TypeError, r"documents must be several texts, not dict"),
        (lambda m: m.classify({"a": "b"}), TypeError, r"texts must be a str, or .*not dict"),
        (lambda m: m.rerank(["a"], ["b"]), TypeError, r"query must be a str, not list"),
        (lambda m: CrossEncoder(m).predict("a"), TypeError, r"pairs \[\(query, text\), ...\], not str"),
        # Of a mapping and a frame one would get keys and names of columns: a pair of texts, here.
        (lambda m: CrossEncoder(m).predict({"query": 1, "text": 2}), TypeError, r"pairs .*, not dict; .*values\(\)"),
        (lambda m: CrossEncoder(m).predict(frame("query", "text")), TypeError, r"pairs .*, not DataFrame; .*columns"),
        (lambda m: m.rerank("a", frame("text")), TypeError, r"documents .*, not DataFrame; give one of its columns"),
        (lambda m: m.classify(frame("text")), TypeError, r"texts must .*, not DataFrame; give one of its columns"),
        (lambda m: m.english_sentence_model.encode(frame("a")), TypeError, r"sentences must .*, not DataFrame; give"),
        (lambda m: m.preload(frame("text")), TypeError, r"texts must be texts, .*, not DataFrame; give one of its"),
        (lambda m: m.preload({"a": 1}), TypeError, r"texts must be texts, .*, not dict; put a single one into a list"),
        (lambda m: BM25Index({"a": 1}), TypeError, r"texts must be an iterable of str, not dict; put a single one"),
        (lambda m: Embedder(m, "plain").documents("a"), TypeError, r"texts must be several texts, not str; put a"),
        (lambda m: Embedder(m, "plain").documents([[5, 7], [9]]), TypeError, r"texts\[0\] must be a str, not list"),
        (lambda m: Embedder(m, "plain").queries([("a", "b")]), TypeError, r"texts\[0\] must be a str, not tuple"),
        (lambda m: reranker_for("plain", None), TypeError, r"manager must be a ModelManager, not str"),
        (
            lambda m: CrossEncoder(m).predict([("a",)]),
            TypeError,
            r"sentences\[0\] must be a pair of str, not tuple of \(str\)$",
        ),
        (
            lambda m: CrossEncoder(m).rank("a", ["b"], activation_fn=7),
            TypeError,
            r"activation_fn must be a function or a str, not int",
        ),
        (
            lambda m: IntentClassifier({"greeting": ["hello", 7]}, m),
            TypeError,
            r"examples\['greeting'\]\[1\] must be a str, not int",
        ),
        (lambda m: m.embed("a", "reranker"), errors.TaskError, r'"reranker" gives no vectors .*it gives scores'),
        (lambda m: m.rerank("a", ["b"], "english_sentence"), errors.TaskError, r"gives no scores .*it gives vectors"),
        (
            lambda m: m.generate("a", "english_sentence"),
            errors.NoGeneratorError,
            r'"english_sentence" gives vectors of texts \(embed\).*kind="generator"',
        ),
        (
            lambda m: m.generate("a", "reranker"),
            errors.NoGeneratorError,
            r'"reranker" gives scores of texts and pairs \(rerank, classify\); .*kind="generator"',
        ),
        (
            lambda m: m.generate("a", "own"),
            errors.NoGeneratorError,
            r'"own" has a loader of its own; get\("own"\) returns',
        ),
        (
            lambda m: m.embed("a", "text_generator"),
            errors.TaskError,
            r'"text_generator" gives no vectors of texts \(embed\); it gives text .* with kind="embedding"',
        ),
        (
            lambda m: m.describe("text_generator"),
            errors.TaskError,
            r'"text_generator" gives no vectors .*; it gives text .*; describe_generator describes it',
        ),
        (
            lambda m: m.rerank("a", ["b"], "text_generator"),
            errors.TaskError,
            r'"text_generator" gives no scores .*\(rerank, classify\); it gives text .* with kind="reranker"',
        ),
        (
            lambda m: m.embed_sparse("a", "text_generator"),
            errors.TaskError,
            r'"text_generator" gives no sparse vectors .*; it gives text .* with kind="sparse"',
        ),
        (
            lambda m: m.rerank("a", ["b"], "own"),
            errors.TaskError,
            r'"own" gives no scores .*a loader of its own: get\("own"\)',
        ),
        (lambda m: m.get("embeds, is no reranker"), errors.UnsupportedModelError, r'embedding model.*kind="embedding"'),
        (lambda m: m.get("writes, is no reranker"), errors.UnsupportedModelError, r'text generator.*kind="generator"'),
        (lambda m: m.get("sparse, is no embedding"), errors.UnsupportedModelError, r'sparse vectors.*kind="sparse"'),
        (lambda m: m.get("scores, is no generator"), errors.UnsupportedModelError, r'scores texts.*kind="reranker"'),
        (
            lambda m: m.apply_chat_template({"role": "user"}),
            TypeError,
            r'messages must be a list of {"role": .*, not dict',
        ),
        (lambda m: m.apply_chat_template("a"), TypeError, r'messages must be a list of {"role": .*, not str'),
        (lambda m: m.apply_chat_template(["a"]), TypeError, r'messages\[0\] must be {"role": ..., .*}, not str'),
        (lambda m: m.apply_chat_template([]), errors.ArgumentError, r"messages must not be empty"),
        (lambda m: m.generate([]), errors.ArgumentError, r"prompt must not be an empty list"),
        (lambda m: m.generate("a", do_sample=1), TypeError, r"do_sample must be True or False, not int"),
        (lambda m: m.register("s", 5), TypeError, r"source must be a str or a path, not int"),
        (lambda m: m.register("s", b"/a"), TypeError, r"source must be a str or a path, not bytes"),
        (lambda m: m.generate({"role": "user"}), TypeError, r'a list of messages {"role": .*}, not dict'),
    ],
)
def test_in_python(models, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(models)
    assert "\n" not in str(caught.value)
    # The list of all families is the longest part.
    assert len(str(caught.value)) < 800 + 2 * len(str(FIXTURES))
    param = getattr(caught.value, "param", None)
    if error is TypeError:
        assert str(caught.value).startswith((f"{param} ", f"{param}["))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cache_sise", r'there is no setting "cache_sise"; did you mean cache_size\? Config.fields\(\) lists all'),
        ("max_idletime", r"did you mean max_idle_time\?"),
        ("CACHE_SIZE", r"did you mean cache_size\?"),
        ("flavour", r'there is no setting "flavour"; there are lazy_loading, auto_cleanup, '),
        ("x" * 100_000, r"there are lazy_loading, auto_cleanup, "),
    ],
)
def test_a_misspelt_setting(setting, message):
    for make in (Config, ModelManager):
        with pytest.raises(TypeError, match=message) as caught:
            make(**{setting: 1})
        assert len(str(caught.value)) < 1200


HALF = "half \ud800"
"""No UTF-8 text can hold the half of a pair that stands alone."""


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.embed(HALF),
        lambda m: m.embed(["a", HALF]),
        lambda m: m.embed("a", HALF),
        lambda m: m.embed("a", user=HALF),
        lambda m: m.embed("a", prompt=HALF),
        lambda m: m.embed("a", prompt_name=HALF),
        lambda m: m.embed("a", keep_alive=HALF),
        lambda m: m.submit("a", print, user=HALF),
        lambda m: m.rerank(HALF, ["a"]),
        lambda m: m.rerank("a", [HALF]),
        lambda m: m.rerank("a", ["b"], prompt=HALF),
        lambda m: m.embed_sparse("a", HALF),
        lambda m: m.count_tokens("a", HALF),
        lambda m: m.chunk("a", prompt=HALF),
        lambda m: m.generate(HALF),
        lambda m: m.generate("a", HALF),
        lambda m: m.generate("a", user=HALF),
        lambda m: m.generate("a", stop=[HALF]),
        lambda m: m.chat([{"role": "user", "content": HALF}]),
        lambda m: m.apply_chat_template([{"role": "user", "content": "a"}], HALF),
        lambda m: m.apply_chat_template([{"role": "user", "content": "a"}], **{HALF: 1}),
        lambda m: m.register(HALF, ENGLISH_MODEL),
        lambda m: m.register("half", HALF),
        lambda m: m.register("half", ENGLISH_MODEL, prompts={"a": HALF}),
        lambda m: m.register("half", ENGLISH_MODEL, fallback=[HALF]),
        lambda m: m.register("half", ENGLISH_MODEL, kind=HALF),
        lambda m: m.register("half", ENGLISH_MODEL, cache={"policy": HALF}),
        lambda m: m.register("half", ENGLISH_MODEL, cache={"tiers": [HALF]}),
        lambda m: m.load(HALF),
        lambda m: m.get(HALF),
        lambda m: m.peek(HALF),
        lambda m: m.unload(HALF),
        lambda m: m.describe(HALF),
        lambda m: m.warmup([HALF]),
        lambda m: m.explain(HALF),
        lambda m: m.hint(HALF),
        lambda m: m.hint("english_sentence", user=HALF),
        lambda m: m.preload(["a", HALF], when="now"),
        lambda m: m.preload(["a"], HALF, when="now"),
        lambda m: Config(turkish_model=HALF),
        lambda m: Config(**{HALF: 1}),
    ],
)
def test_half_a_character(models, call):
    with pytest.raises(errors.InputError, match=r"holds a lone surrogate, .* text.encode\('utf-8', 'replace'\)"):
        call(models)


def test_a_download_without_a_server():
    """What the system says is put into words, without its error numbers."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, _, lines = command(
        "embed", "-m", "someone/some-model", __file__, HF_HUB_OFFLINE="0", HF_ENDPOINT=f"http://127.0.0.1:{port}"
    )
    assert code == 1
    assert f"127.0.0.1:{port} failed: the connection was refused: no server listens there" in re.sub(
        r"(:\d+)/\S+", r"\1", lines[-1]
    )
    assert "os error" not in lines[-1]
    assert "io: " not in lines[-1]


def test_a_source_that_does_not_embed(models, caplog):
    """Integrations and commands take a source without a kind: its files say what it is for."""
    for name in ("rerank_bert", "splade_bert"):
        with pytest.raises(errors.TaskError, match=rf"{name}\" gives no vectors of texts \(embed\); it gives"):
            Embedder(models, str(FIXTURES / name)).documents(["a text"])
    assert caplog.records == []
    assert Embedder(models, GENERATOR).documents(["a text"]).shape == (1, 32)
    (record,) = caplog.records
    assert f'the files of "{GENERATOR}" are those of a text generator' in record.getMessage()
    assert Embedder(models, GENERATOR).documents(["a text"]).shape == (1, 32)
    assert len(caplog.records) == 1


def test_a_path_is_a_source(models):
    models.register("path", FIXTURES / "bert_plain")
    models.register("text", str(FIXTURES / "bert_plain"))
    assert (models.embed("a", "path") == models.embed("a", "text")).all()


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
        (
            ["embed", "-m", "someone/some-model", __file__],
            1,
            "MODEL_MANAGER_OFFLINE) forbids to download it; unset that",
        ),
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
    assert code == 1
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
    assert code == 1
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
    assert code == 2
    assert lines == [f"Error: {message}"]


def test_a_missing_extra():
    """Of click, which the command line needs, and of the server's packages."""
    code = """
import sys
from types import MappingProxyType
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
