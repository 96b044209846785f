"""`POST /v1/embeddings`: the manager's vectors in OpenAI's form, for all fields of a request."""

from __future__ import annotations

import base64
import json
import shutil

import numpy as np
import pytest
from conftest import DIMENSION, ENGLISH_MODEL, ENGLISH_TEXT, TURKISH_TEXT
from embedding_server import EmbeddingServer
from model_manager.server.routes.embeddings import INSTRUCTIONS
from servers import MODELS, PROMPTS_MODEL, ServedModel

TEXTS = [ENGLISH_TEXT, TURKISH_TEXT, "naïve café 🙂", "x"]


def vectors(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return np.array([item["embedding"] for item in data], np.float32)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_shape(server, path):
    response = server.client.post(path, json={"input": ENGLISH_TEXT, "model": "tiny"})
    body = response.json()
    tokens = server.manager.count_tokens(ENGLISH_TEXT, "tiny")
    assert list(body) == ["object", "data", "model", "usage"]
    assert body["object"] == "list"
    assert body["model"] == "tiny"
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert body["data"][0]["object"] == "embedding"
    assert len(body["data"][0]["embedding"]) == DIMENSION


def test_vectors_are_the_managers_own(server):
    expected = server.manager.embed(TEXTS, "tiny")
    np.testing.assert_array_equal(vectors(server.embed(input=TEXTS)), expected)
    np.testing.assert_array_equal(vectors(server.embed(input=TEXTS[1])), expected[1:2])


def test_base64_is_little_endian_float32(server):
    body = server.embed(input=TEXTS, encoding_format="base64").json()
    found = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in body["data"]]
    np.testing.assert_array_equal(found, server.manager.embed(TEXTS, "tiny"))


@pytest.mark.parametrize("dimensions", [1, 7, DIMENSION, 8.0])
def test_dimensions(server, dimensions):
    found = vectors(server.embed(input=TEXTS, dimensions=dimensions))
    np.testing.assert_array_equal(found, server.manager.embed(TEXTS, "tiny", truncate_dim=int(dimensions)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_dimensions_of_the_settings(serve):
    one = ServedModel("short", source=MODELS[0].source, dimensions=8)
    server = serve(models=[one, ServedModel("wrong", source=MODELS[0].source, dimensions=1024)])
    assert vectors(server.embed(input="a text")).shape == (1, 8)
    assert vectors(server.embed(input="a text", dimensions=4)).shape == (1, 4)
    # A mistake in the server's settings, not in the request.
    response = server.embed(input="a text", model="wrong")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "misconfigured"
    assert "1024" in response.json()["error"]["message"]


@pytest.mark.parametrize("name", [None, "tiny", "text-embedding-3-small", "tiny:latest", MODELS[0].source])
def test_names_of_the_default_model(server, name):
    response = server.embed(input="a text", model=name)
    np.testing.assert_array_equal(vectors(response)[0], server.manager.embed("a text", "tiny"))
    assert response.json()["model"] == "tiny"


def test_the_first_word_of_a_name_is_an_alias(serve):
    def named(name, **options):
        return ServedModel(name, source=MODELS[0].source, **options)

    models = [named("qwen3-embedding"), named("bge-m3"), named("bge-small", aliases=("small",)), named("org/e5_x.y")]
    server = serve(models=models)
    for asked, found in {
        "qwen3": "qwen3-embedding",
        "qwen3:latest": "qwen3-embedding",
        "small": "bge-small",
        "bge-m3": "bge-m3",
        "e5": "org/e5_x.y",
    }.items():
        response = server.embed(input="a text", model=asked)
        assert response.status_code == 200, response.text
        assert response.json()["model"] == found
        assert server.client.get(f"/v1/models/{asked}").json()["id"] == found
    for unknown in ("bge", "qwen", "Qwen3", "org"):
        assert server.embed(input="a text", model=unknown).status_code == 404, unknown
    names = [model["id"] for model in server.client.get("/v1/models").json()["data"]]
    assert names[:4] == [model.name for model in models]
    assert "qwen3" not in names


def test_token_ids_are_warned_about_once(serve, caplog):
    server = serve()
    for _ in range(2):
        assert server.embed(input=[5, 6, 7]).status_code == 200
    warnings = [record.message for record in caplog.records if "check_embedding_ctx_length=False" in record.message]
    assert len(warnings) == 1


def test_token_ids_can_be_refused(serve):
    server = serve(token_ids="refuse")
    for ids in ([5, 6, 7], [[5, 6, 7], [8]]):
        response = server.embed(input=ids)
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["code"]) == ("input", "token_ids_refused")
        assert "check_embedding_ctx_length=False" in error["message"]
    response = server.client.post("/v1/completions", json={"prompt": [5, 6]})
    assert response.json()["error"]["code"] == "token_ids_refused"
    assert server.embed(input="a text").status_code == 200


def test_slots_of_the_manager_are_served_by_name_and_source(server):
    by_slot = server.embed(input=TURKISH_TEXT, model="turkish_sentence")
    np.testing.assert_array_equal(vectors(by_slot)[0], server.manager.embed(TURKISH_TEXT, "turkish_sentence"))
    assert by_slot.json()["model"] == "turkish_sentence"


def embedded(server, text, model="instructed", **options):
    return server.manager.embed(text, model, prompt="", **options)


@pytest.mark.parametrize("task", [*INSTRUCTIONS, "no such task", None])
def test_tasks_of_a_model_that_takes_instructions(server, task):
    instruction = INSTRUCTIONS.get(task) or INSTRUCTIONS["text_search"]
    expected = embedded(server, f"{instruction}\n{TURKISH_TEXT}")
    np.testing.assert_array_equal(vectors(server.embed(input=TURKISH_TEXT, model="instructed", task=task))[0], expected)


@pytest.mark.parametrize("model", ["instructed", "tiny"])
def test_an_instruction_of_the_request_beats_its_task(server, model):
    found = server.embed(input=TEXTS, model=model, instruction="Say it:", task="clustering")
    np.testing.assert_array_equal(vectors(found), embedded(server, [f"Say it:\n{text}" for text in TEXTS], model))


def test_other_models_ignore_tasks(server):
    found = server.embed(input=ENGLISH_TEXT, task="clustering")
    np.testing.assert_array_equal(vectors(found)[0], server.manager.embed(ENGLISH_TEXT, "tiny"))


def test_prompts_of_the_model(server):
    found = server.embed(input=ENGLISH_TEXT, model="prompted", prompt_name="passage")
    expected = server.manager.embed(ENGLISH_TEXT, "prompted", prompt_name="passage")
    np.testing.assert_array_equal(vectors(found)[0], expected)


def test_instructions_are_recognized_by_the_models_prompts(serve, make_manager):
    manager = make_manager()
    prompts = {"query": "Instruct: Find it\nQuery:", "document": ""}
    manager.register("likes", MODELS[0].source, prompts=prompts)
    server = serve(manager, models=[ServedModel("likes"), ServedModel("never", slot="likes", instructions="off")])
    expected = manager.embed(f"{INSTRUCTIONS['code_search']}\nx = 1", "likes", prompt="")
    np.testing.assert_array_equal(vectors(server.embed(input="x = 1", task="code_search"))[0], expected)
    assert server.client.get("/v1/models/likes").json()["capabilities"]["instructions"] is True
    bare = manager.embed("x = 1", "likes")
    np.testing.assert_array_equal(vectors(server.embed(input="x = 1", model="never"))[0], bare)
    np.testing.assert_array_equal(vectors(server.embed(input="x = 1", prompt_name="document"))[0], bare)


def test_qwen3_embedding_takes_instructions_by_its_name(serve, tmp_path):
    (tmp_path / "Qwen3-Embedding-tiny").symlink_to(MODELS[0].source)
    server = serve(models=[ServedModel("any", source=str(tmp_path / "Qwen3-Embedding-tiny"))])
    assert server.client.get("/v1/models/any").json()["capabilities"]["instructions"] is True
    expected = server.manager.embed(f"{INSTRUCTIONS['text_search']}\n{ENGLISH_TEXT}", "any", prompt="")
    np.testing.assert_array_equal(vectors(server.embed(input=ENGLISH_TEXT))[0], expected)


@pytest.fixture
def instructed(tmp_path) -> str:
    """The folder of a model whose own prompts make it take instructions."""
    folder = tmp_path / "takes-instructions"
    shutil.copytree(PROMPTS_MODEL, folder)
    prompts = {"prompts": {"query": "Instruct: Find it\nQuery:"}, "similarity_fn_name": "cosine"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return str(folder)


def test_instructions_of_a_model_that_never_stays(serve, make_manager, instructed):
    manager = make_manager(cache_size=0)
    manager.register("leaves", instructed, keep_alive=0)
    server = serve(manager, models=[ServedModel("leaves")])
    expected = manager.embed(f"{INSTRUCTIONS['text_search']}\n{ENGLISH_TEXT}", "leaves", prompt="")
    for _ in range(3):
        np.testing.assert_array_equal(vectors(server.embed(input=ENGLISH_TEXT))[0], expected)


@pytest.mark.parametrize("first", [True, False])
def test_instructions_of_a_slot_that_gets_another_model(serve, make_manager, instructed, first):
    manager = make_manager(cache_size=0)
    sources = {True: instructed, False: PROMPTS_MODEL}
    manager.register("one", sources[first], kind="embedding")
    server = serve(manager, models=[ServedModel("one")])
    for takes in (first, not first):
        manager.register("one", sources[takes], kind="embedding", replace=True)
        found = vectors(server.embed(input="x = 1"))[0]
        prompt = {"prompt": f"{INSTRUCTIONS['text_search']}\n"} if takes else {}
        np.testing.assert_array_equal(found, manager.embed("x = 1", "one", **prompt))
        assert server.client.get("/v1/models/one").json()["capabilities"]["instructions"] is takes


@pytest.mark.parametrize("served", [[ServedModel("q")], MODELS])
def test_qwen3_embedding_of_another_server_takes_instructions_in_every_slot(serve, make_manager, served):
    with EmbeddingServer() as remote:
        manager = make_manager(cache_size=0)
        manager.register("q", f"ollama://127.0.0.1:{remote.port}/qwen3-embedding", kind="embedding")
        server = serve(manager, models=served)
        assert server.embed(input="x = 1", model="q").status_code == 200
        assert remote.texts()[-1] == [f"{INSTRUCTIONS['text_search']}\nx = 1"]


def test_all_names_of_a_slot_mean_its_served_model(serve, make_manager):
    served = ServedModel("english", slot="english_sentence", dimensions=8, instructions="on")
    server = serve(make_manager(), models=[served, ServedModel("bare", slot="english_sentence")])
    text = f"{INSTRUCTIONS['text_search']}\n{ENGLISH_TEXT}"
    expected = server.manager.embed(text, "english_sentence", prompt="", truncate_dim=8)
    for name in (None, "english", "english_sentence", "english_sentence:latest", ENGLISH_MODEL):
        found = server.embed(input=ENGLISH_TEXT, model=name)
        np.testing.assert_array_equal(vectors(found)[0], expected)
        assert found.json()["model"] == "english"
    bare = server.embed(input=ENGLISH_TEXT, model="bare")
    np.testing.assert_array_equal(vectors(bare)[0], server.manager.embed(ENGLISH_TEXT, "english_sentence"))


def test_token_ids(server):
    # Ids of the model's own vocabulary, read as they are.
    one, several = [5, 6, 7], [[5, 6, 7], [8, 9]]
    response = server.embed(input=one)
    assert response.json()["usage"]["prompt_tokens"] == 3
    np.testing.assert_array_equal(vectors(response)[0], server.manager.embed(one, "tiny"))
    response = server.embed(input=several)
    assert response.json()["usage"]["prompt_tokens"] == 5
    np.testing.assert_array_equal(vectors(response), server.manager.embed(several, "tiny"))
    # Ids get no instruction.
    np.testing.assert_array_equal(
        vectors(server.embed(input=one, model="instructed"))[0], server.manager.embed(one, "instructed")
    )


def test_usage_is_exact_computed_and_cached(serve):
    server = serve()
    expected = sum(server.manager.count_tokens(TEXTS, "tiny"))
    for _ in range(2):
        assert server.embed(input=TEXTS).json()["usage"]["total_tokens"] == expected
    assert server.manager.cache_info()["hits"] == len(TEXTS)
    # The tokens include the instruction.
    dressed = f"Say it:\n{ENGLISH_TEXT}"
    usage = server.embed(input=ENGLISH_TEXT, instruction="Say it:").json()["usage"]
    assert usage["prompt_tokens"] == server.manager.count_tokens(dressed, "tiny")


def test_truncate(server):
    longest = server.manager.describe("tiny")["max_length"]
    text = "word " * (2 * longest)
    assert server.embed(input=text).json()["usage"]["prompt_tokens"] == longest
    refused = server.embed(input=["short", text], truncate=False)
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert "1" in message
    assert str(longest) in message
    assert server.embed(input="short", truncate=False).status_code == 200


def test_keep_alive(serve):
    server = serve()
    assert server.embed(input="a text", keep_alive=0).status_code == 200
    assert server.embed(input="another", keep_alive="5m").status_code == 200
    assert server.manager.is_loaded("tiny")


def test_nulls_and_unknown_fields(server):
    names = ["model", "encoding_format", "dimensions", "instruction", "task", "prompt_name", "truncate", "keep_alive"]
    plain = server.embed(input="a text").content
    assert server.embed(input="a text", user=None, **dict.fromkeys(names)).content == plain
    assert server.embed(input="a text", user="someone", store=True, metadata={"a": [1]}).content == plain
    assert server.embed(input="a text", no_such_field="anything", priority_class=5).content == plain


def test_as_many_inputs_as_are_allowed(server):
    texts = [f"text {number}" for number in range(2048)]
    found = vectors(server.embed(input=texts, encoding_format="float"))
    assert found.shape == (2048, DIMENSION)
    np.testing.assert_array_equal(
        found[[0, 1000, 2047]], server.manager.embed([texts[n] for n in (0, 1000, 2047)], "tiny")
    )


def test_the_cache_answers_without_the_model(serve):
    server = serve()
    first = server.embed(input=ENGLISH_TEXT)
    server.manager.unload("tiny")
    again = server.embed(input=ENGLISH_TEXT)
    assert again.content == first.content
    assert not server.manager.is_loaded("tiny")


def test_a_server_behind_the_server(server, serve):
    source = f"openai+{server.url}/v1/tiny"
    front = serve(
        models=[ServedModel("behind", source=source), ServedModel("gone", source="ollama://127.0.0.1:9/none")]
    )
    answer = front.embed(input=TEXTS)
    np.testing.assert_allclose(vectors(answer), server.manager.embed(TEXTS, "tiny"), atol=1e-6)
    assert answer.json()["model"] == "behind"
    assert vectors(front.embed(input=TEXTS[0], dimensions=8)).shape == (1, 8)
    assert front.client.get("/v1/models/behind").json()["capabilities"]["dimensions"] == DIMENSION
    refused = front.embed(input="a text", model="gone")
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "model_unavailable"
