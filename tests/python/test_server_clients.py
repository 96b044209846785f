"""Real clients: OpenAI's SDKs for Python and JavaScript, LangChain, and schemathesis on the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import numpy as np
import openai
import pytest
from conftest import DIMENSION, ENGLISH_TEXT, FIXTURES, TURKISH_TEXT
from langchain_openai import OpenAIEmbeddings
from servers import MODELS, run_node

TEXTS = [ENGLISH_TEXT, TURKISH_TEXT]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="anything", max_retries=0) as found:
        yield found


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_openai(server, client, options):
    # By default the SDK requests base64 and decodes it.
    answer = client.embeddings.create(input=TEXTS, model="tiny", **options)
    found = [item.embedding for item in answer.data]
    if options.get("encoding_format") == "base64":
        assert all(isinstance(vector, str) for vector in found)
    else:
        np.testing.assert_array_equal(np.array(found, np.float32), server.manager.embed(TEXTS, "tiny"))
    assert answer.usage.prompt_tokens == sum(server.manager.count_tokens(TEXTS, "tiny"))
    assert answer.model == "tiny"


def test_openai_options(server, client):
    answer = client.embeddings.create(input=TEXTS[0], model="tiny", dimensions=8, user="me")
    assert len(answer.data[0].embedding) == 8
    answer = client.embeddings.create(input=[5, 6, 7], model="tiny")
    assert answer.usage.total_tokens == 3
    extra = {"instruction": "Say it:"}
    dressed = client.embeddings.create(input=TEXTS[0], model="tiny", extra_body=extra).data[0].embedding
    expected = server.manager.embed(f"Say it:\n{TEXTS[0]}", "tiny")
    np.testing.assert_array_equal(np.array(dressed, np.float32), expected)


def test_openai_lists_models(client):
    assert client.models.list().data[0].id == "tiny"
    assert client.models.retrieve("tiny").owned_by == "model_manager"


def test_openai_errors(serve, client):
    with pytest.raises(openai.BadRequestError, match="blank") as caught:
        client.embeddings.create(input="", model="tiny")
    error = caught.value
    assert (error.param, error.type, error.code) == ("input", "invalid_request_error", "empty_input")
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        client.embeddings.create(input="a", model="gpt-5")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")
    closed = serve(api_keys=["secret"])
    with (
        openai.OpenAI(base_url=f"{closed.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.embeddings.create(input="a", model="tiny")
    closed.service.draining = True
    with (
        openai.OpenAI(base_url=f"{closed.url}/v1", api_key="secret", max_retries=0) as late,
        pytest.raises(openai.InternalServerError, match="shutting down"),
    ):
        late.embeddings.create(input="a", model="tiny")


async def test_openai_asynchronous(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="anything", max_retries=0) as client:
        answers = await asyncio.gather(
            *(client.embeddings.create(input=f"text {number}", model="tiny") for number in range(64))
        )
    found = np.array([answer.data[0].embedding for answer in answers], np.float32)
    expected = server.manager.embed([f"text {number}" for number in range(64)], "tiny")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dimensions", [None, DIMENSION])
def test_langchain(server, dimensions):
    model = OpenAIEmbeddings(
        model="tiny",
        base_url=f"{server.url}/v1",
        api_key="anything",
        dimensions=dimensions,
        # With the check LangChain sends token ids of OpenAI's vocabulary, which are not this model's.
        check_embedding_ctx_length=False,
    )
    np.testing.assert_allclose(model.embed_documents(TEXTS), server.manager.embed(TEXTS, "tiny"), atol=1e-6)
    np.testing.assert_allclose(model.embed_query(TEXTS[0]), server.manager.embed(TEXTS[0], "tiny"), atol=1e-6)


def test_openai_for_javascript(server):
    found = run_node("embeddings.mjs", server.url, json.dumps(TEXTS))
    expected = server.manager.embed(TEXTS, "tiny")
    np.testing.assert_array_equal(np.array(found["default"], np.float32), expected)
    np.testing.assert_array_equal(np.array(found["float"], np.float32), expected)
    assert np.array(found["short"]).shape == (2, 8)
    assert found["tokens"] == sum(server.manager.count_tokens(TEXTS, "tiny"))
    assert found["models"][0] == "tiny"
    assert found["empty"] == {"name": "BadRequestError", "status": 400, "param": "input", "code": "empty_input"}
    assert found["unknown"] == {"name": "NotFoundError", "status": 404, "param": "model", "code": "model_not_found"}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("key", [None, "secret"])
def test_schemathesis(serve, make_writer, tmp_path, key):
    """Valid and invalid requests from the document: no 5xx, and every answer matches its description."""
    manager = make_writer(reranker_model=str(FIXTURES / "rerank_bert"))
    server = serve(manager, models=MODELS[:1], api_keys=[] if key is None else [key])
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{server.url}/openapi.json",
        "--max-examples=20",
        "--generation-deterministic",
        "--no-color",
        # The document does not list a model's prompts and token ids, so valid requests may be refused.
        "--exclude-checks=positive_data_acceptance",
        *([] if key is None else ["--header", f"Authorization: Bearer {key}"]),
    ]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert process.returncode == 0, process.stdout
    assert " 0 generated" not in process.stdout
