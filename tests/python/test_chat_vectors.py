"""Texts that go through a model's chat template: the vectors of sentence-transformers, and refusals."""

from __future__ import annotations

import functools
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import FIXTURES
from model_manager.errors import InputError, ModelManagerError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

TOLERANCE = {"rtol": 0, "atol": 2e-5}
TURN = "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
CHATML = f"{{% for message in messages %}}{TURN}{{% endfor %}}"


@functools.cache
def made() -> dict[str, Any]:
    return json.loads((FIXTURES / "chat_vectors.json").read_text("utf-8"))


@functools.cache
def form(name: str) -> dict[str, Any]:
    return next(folder for folder in made()["folders"] if folder["name"] == name)


def written(found: dict[str, Any], folder: Path, **changes: dict[str, Any]) -> str:
    """The folder as sentence-transformers saved it, with changes of its JSON files by their name without the ending."""
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copy(FIXTURES / found["base"] / name, folder)
    for name, text in found["files"].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    for name, change in changes.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")
    return str(folder)


def with_arguments(found: dict[str, Any], folder: Path, **arguments: Any) -> str:
    return written(found, folder, sentence_bert_config={"processing_kwargs": {"chat_template": arguments}})


def embeds(manager, name: str, source: str, **options: Any) -> np.ndarray:
    manager.register(name, source, kind="embedding", dtype="float32", **options)
    return manager.embed(made()["texts"], name, normalize=False)


def refusal(manager, source: str, **options: Any) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        embeds(manager, "refused", source, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", [folder["name"] for folder in made()["folders"]])
def test_vectors_are_those_of_sentence_transformers(make_manager, tmp_path, name):
    found, texts = form(name), made()["texts"]
    manager = make_manager(cache_size=0)
    manager.register("m", written(found, tmp_path / "model"), kind="embedding", dtype="float32")
    described = manager.describe("m")
    assert (described["max_length"], described["chat_template"]) == (found["max_length"], True)
    assert manager.count_tokens(texts, "m") == found["tokens"]
    for case in found["cases"]:
        if "refused" in case:
            with pytest.raises(InputError, match=rf"{case['refused']}.* role system before it"):
                manager.embed(texts, "m", **case["call"])
            continue
        together = manager.embed(texts, "m", normalize=False, **case["call"])
        alone = [manager.embed(text, "m", normalize=False, **case["call"]) for text in texts]
        np.testing.assert_allclose(together, case["vectors"], **TOLERANCE)
        np.testing.assert_allclose(alone, case["vectors"], **TOLERANCE)


def test_sparse_vectors(make_manager, tmp_path):
    manager = make_manager(cache_size=0)
    manager.register("m", written(made()["sparse"], tmp_path / "model"), dtype="float32")
    for case in made()["sparse"]["cases"]:
        found = manager.embed_sparse(case["text"], "m", prompt="Kısa yanıt ver.")
        assert found.indices.tolist() == case["indices"]
        np.testing.assert_allclose(found.values, case["values"], **TOLERANCE)


def test_vectors_of_tokens_know_queries_from_documents(make_manager, tmp_path):
    found = made()["late"]
    manager = make_manager(cache_size=0)
    manager.register("m", written(found, tmp_path / "model"), dtype="float32")
    for kind in ("query", "document"):
        vectors = manager.embed_multi(found["texts"], "m", kind=kind)
        for mine, expected in zip(vectors, found[kind], strict=True):
            np.testing.assert_allclose(mine, expected, **TOLERANCE)


def test_texts_as_they_are(make_manager, tmp_path):
    """The vectors of a folder in which nothing speaks of messages."""
    found, manager = form("chatml"), make_manager()
    text = {"modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}}
    expected = embeds(manager, "text", written(found, tmp_path / "text", sentence_bert_config=text))
    chat = written(found, tmp_path / "chat")
    np.testing.assert_array_equal(embeds(manager, "plain", chat, chat_template=False), expected)
    own = embeds(manager, "own", chat)
    assert np.abs(own - expected).max() > 1e-2
    assert [manager.describe(name)["chat_template"] for name in ("text", "plain", "own")] == [False, False, True]
    # The other way around, the template of a folder that says nothing of messages.
    np.testing.assert_array_equal(embeds(manager, "asked", str(tmp_path / "text"), chat_template=True).shape, own.shape)
    assert manager.describe("asked")["chat_template"] is True


def test_a_changed_template_has_results_of_its_own(make_manager, tmp_path):
    """In the process and on disk."""
    found = form("chatml")
    changed = {**found, "files": {**found["files"], "chat_template.jinja": CHATML.replace("assistant", "model") + "."}}
    sources = [written(found, tmp_path / "one"), written(changed, tmp_path / "other")]
    for _ in range(2):
        manager = make_manager(cache_disk=str(tmp_path / "cache"))
        vectors = [embeds(manager, str(number), source) for number, source in enumerate(sources)]
        np.testing.assert_allclose(vectors[0], found["cases"][0]["vectors"], **TOLERANCE)
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
        bare = embeds(manager, "bare", sources[0], chat_template=False)
        assert np.abs(vectors[0] - bare).max() > 1e-3
        manager.close()
    template = tmp_path / "one" / "chat_template.jinja"
    template.write_text(changed["files"]["chat_template.jinja"], "utf-8")
    manager = make_manager(cache_disk=str(tmp_path / "cache"))
    np.testing.assert_array_equal(embeds(manager, "again", sources[0]), vectors[1])


def test_long_texts(make_manager, tmp_path):
    found, manager = form("chatml, flat, mean, short"), make_manager()
    vectors = embeds(manager, "m", written(found, tmp_path / "model"))
    assert manager.stats()["slots"]["m"]["truncated"] == sum(count > 24 for count in found["tokens"])
    fits = [text for text, count in zip(made()["texts"], found["tokens"], strict=True) if count <= 24]
    np.testing.assert_array_equal(
        manager.embed(fits, "m", normalize=False, truncate=False),
        [vectors[made()["texts"].index(text)] for text in fits],
    )
    with pytest.raises(InputError, match="38 tokens"):
        manager.embed(made()["texts"][2], "m", truncate=False)
    text = "Merhaba dünya. " * 20
    chunks = manager.chunk(text, "m", max_tokens=22)
    assert max(chunk.tokens for chunk in chunks) <= 22
    assert [manager.count_tokens(text[chunk.start : chunk.end], "m") for chunk in chunks] == [c.tokens for c in chunks]
    with pytest.raises(ModelManagerError, match="embed the chunks one by one"):
        manager.embed_chunks(text, "m", max_tokens=22)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ bos_token }}", ["does not show a message of the user", '"structured"']),
        ("{{ raise_exception('tools, please') }}", ["tools, please", "chat_template=False"]),
        ("{% for m in messages %}", ["does not parse", "chat_template=False"]),
        (CHATML + "{{ strftime_now('%d %b %Y') }}", ["today's date", "date_string"]),
        (
            "{% for m in messages %}{{ m.content if m.role == 'user' else strftime_now('%d') }}{% endfor %}",
            ["today's date"],
        ),
        (CHATML + "{{ task }}", ['"task"', "vectors of tokens alone"]),
    ],
)
def test_templates_that_are_refused(make_manager, tmp_path, template, words):
    found = form("bare")
    source = written({**found, "files": {**found["files"], "chat_template.jinja": template}}, tmp_path / "model")
    manager = make_manager()
    reason = refusal(manager, source)
    assert [word for word in [source, *words] if word not in reason] == []
    assert embeds(manager, "plain", source, chat_template=False).shape == (len(made()["texts"]), 32)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_length": 3},
        {"truncation": False},
        {"tools": [{"name": "a"}]},
        {"chat_template": "rag"},
        {"continue_final_message": True},
        {"add_generation_prompt": "yes"},
        {"restore_suffix": None},
        {"order": {"a": 1, "b": 2}},
    ],
)
def test_arguments_that_are_refused(make_manager, tmp_path, arguments):
    source = with_arguments(form("mistral"), tmp_path / "model", **arguments)
    assert f'"{next(iter(arguments))}"' in refusal(make_manager(), source)


def test_arguments_that_change_nothing(make_manager, tmp_path):
    found, manager = form("mistral"), make_manager()
    expected = found["cases"][0]["vectors"]
    unset = {
        "continue_final_message": False,
        "tools": None,
        "max_length": None,
        "add_generation_prompt": None,
        "other": {},
    }
    source = with_arguments(found, tmp_path / "model", **unset)
    np.testing.assert_allclose(embeds(manager, "m", source), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ({"method": "get_text_features"}, "modality_config"),
        ({"method_output_name": "pooler_output"}, "last_hidden_state"),
        ({"format": "parts"}, '"format"'),
    ],
)
def test_messages_that_are_refused(make_manager, tmp_path, message, word):
    computed = {"method": "forward", "method_output_name": "last_hidden_state", **message}
    source = written(form("mistral"), tmp_path / "m", sentence_bert_config={"modality_config": {"message": computed}})
    assert word in refusal(make_manager(), source)


def test_no_template(make_manager, tmp_path):
    found = form("mistral")
    files = {name: text for name, text in found["files"].items() if name != "chat_template.jinja"}
    source = written({**found, "files": files}, tmp_path / "model")
    manager = make_manager()
    assert "copy chat_template.jinja" in refusal(manager, source)
    assert len(embeds(manager, "plain", source, chat_template=False)) == len(made()["texts"])


def test_a_template_is_for_texts_of_folders(make_manager):
    manager = make_manager()
    manager.register("scores", str(FIXTURES / "rerank_bert"), chat_template=True)
    with pytest.raises(ModelManagerError, match="prompt of a pair"):
        manager.load("scores")
    assert "has none" in refusal(manager, str(FIXTURES / "bert_plain"), chat_template=True)
    manager.register("static", str(FIXTURES / "model2vec"), chat_template=True)
    with pytest.raises(ModelManagerError, match="static model"):
        manager.load("static")
    with pytest.raises(TypeError, match="chat_template must be True or False"):
        manager.register("text", str(FIXTURES / "bert_plain"), chat_template="default")


def test_an_empty_prompt_is_refused(make_manager, tmp_path):
    found = form("bare")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    source = written({**found, "files": {**found["files"], "chat_template.jinja": template}}, tmp_path / "model")
    manager = make_manager()
    assert len(embeds(manager, "m", source)) == len(made()["texts"])
    with pytest.raises(InputError, match="empty prompt"):
        manager.embed("", "m")


@pytest.mark.parametrize(
    ("name", "template", "words"),
    [
        ("qwen3-vl-embedding", None, []),
        ("mistral", CHATML + "{{ messages[0].content[0].text }}", []),
        ("list in the prompt", None, ["the list of a message's parts"]),
        ("bare", "{{ messages[-1].content }}", ["leaves out messages of the system"]),
    ],
)
def test_what_is_hardly_meant_is_logged(make_manager, tmp_path, caplog, name, template, words):
    found = form(name)
    files = {**found["files"], **({"chat_template.jinja": template} if template else {})}
    source = written({**found, "files": files}, tmp_path / "model")
    manager = make_manager()
    manager.register("m", source, kind="embedding")
    if template and name == "mistral":
        assert "str" in refusal(manager, source)  # a text and a list have no sum
        return
    manager.load("m")
    said = [record.getMessage() for record in caplog.records if "chat template" in record.getMessage()]
    assert len(said) == len(words)
    assert [word for word, line in zip(words, said, strict=True) if word not in line] == []
