"""Ollama's API with real clients: Ollama's package for Python, and LangChain."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from conftest import ENGLISH_TEXT, TURKISH_TEXT
from generation_servers import TEXT, TURN
from generators import GREEDY, SLOT
from servers import MODELS, SECONDS

ollama = pytest.importorskip("ollama")

TEXTS = [ENGLISH_TEXT, TURKISH_TEXT]
OPTIONS = {"temperature": 0, "num_predict": 12}


@pytest.fixture
def client(server):
    with ollama.Client(server.url, timeout=SECONDS) as found:
        yield found


@pytest.fixture
def writer_client(gpt2_server):
    with ollama.Client(gpt2_server.url, timeout=SECONDS) as found:
        yield found


def known(server, prompt):
    return server.manager.complete(prompt, **GREEDY, max_new_tokens=12)


def test_vectors(server, client):
    answer = client.embed("tiny", TEXTS, truncate=True, keep_alive="5m", options={"num_ctx": 2048})
    expected = server.manager.embed(TEXTS, "tiny")
    np.testing.assert_array_equal(np.array(answer.embeddings, np.float32), expected)
    assert answer.prompt_eval_count == sum(server.manager.count_tokens(TEXTS, "tiny"))
    assert answer.total_duration >= answer.load_duration >= 0
    assert len(client.embed("tiny", TEXTS[0], dimensions=8).embeddings[0]) == 8
    one = client.embeddings("tiny", TEXTS[1]).embedding
    np.testing.assert_array_equal(np.array(one, np.float32), expected[1])


def test_models(server, client):
    client.embed("tiny", "a")
    listed = {model.model: model for model in client.list().models}
    assert {f"{model.name}:latest" for model in MODELS} <= set(listed)
    running = {model.model: model for model in client.ps().models}
    assert running["tiny:latest"].digest == listed["tiny:latest"].digest
    assert running["tiny:latest"].size == listed["tiny:latest"].size > 0
    assert client.show("tiny").capabilities == ["embedding"]


def test_text(gpt2_server, writer_client):
    chat = writer_client.chat(SLOT, TURN, options=OPTIONS)
    expected = known(gpt2_server, TURN)
    assert (chat.message.role, chat.message.content) == ("assistant", expected["text"])
    assert (chat.done, chat.done_reason) == (True, expected["finish_reason"])
    assert (chat.prompt_eval_count, chat.eval_count) == (expected["prompt_tokens"], 12)
    assert writer_client.generate(SLOT, TEXT, options=OPTIONS).response == expected["text"]
    raw = writer_client.generate(SLOT, TEXT, raw=True, options=OPTIONS)
    assert raw.response == known(gpt2_server, TEXT)["text"]
    options = ollama.Options(temperature=0, num_predict=12, num_ctx=4096, num_gpu=0, repeat_penalty=1.0)
    assert writer_client.chat(SLOT, TURN, options=options).message.content == expected["text"]


def test_streams(gpt2_server, writer_client):
    expected = known(gpt2_server, TURN)["text"]
    *pieces, last = writer_client.chat(SLOT, TURN, stream=True, options=OPTIONS)
    assert len(pieces) > 5
    assert "".join(piece.message.content for piece in pieces) == expected
    assert (last.done, last.eval_count, last.message.content) == (True, 12, "")
    *pieces, last = writer_client.generate(SLOT, TEXT, stream=True, options=OPTIONS)
    assert "".join(piece.response for piece in pieces) == expected
    assert last.total_duration > 0


async def test_asynchronous_clients(gpt2_server, server):
    writer = ollama.AsyncClient(gpt2_server.url, timeout=SECONDS)
    reader = ollama.AsyncClient(server.url, timeout=SECONDS)

    async def streamed():
        stream = await writer.chat(SLOT, TURN, stream=True, options=OPTIONS)
        return "".join([piece.message.content async for piece in stream])

    assert set(await asyncio.gather(*(streamed() for _ in range(4)))) == {known(gpt2_server, TURN)["text"]}
    texts = [f"text {number}" for number in range(32)]
    answers = await asyncio.gather(*(reader.embeddings("tiny", text) for text in texts))
    found = np.array([answer.embedding for answer in answers], np.float32)
    np.testing.assert_array_equal(found, server.manager.embed(texts, "tiny"))
    await writer.close()
    await reader.close()


def test_errors(client, writer_client, serve):
    """The client reads the message from the body, and for 404 programs usually pull the model."""
    with pytest.raises(ollama.ResponseError, match="llama3") as caught:
        client.embed("llama3", "a")
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="settings") as caught:
        client.pull("llama3")
    assert caught.value.status_code == 403
    with pytest.raises(ollama.ResponseError, match="tools is not supported"):
        writer_client.chat(SLOT, TURN, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(ollama.ResponseError, match="context"):
        list(writer_client.generate(SLOT, TEXT, context=[1], stream=True))
    closed = serve(api_keys=["secret"])
    with ollama.Client(closed.url) as stranger, pytest.raises(ollama.ResponseError, match="API key"):
        stranger.list()
    with ollama.Client(closed.url, headers={"Authorization": "Bearer secret"}) as keyed:
        assert keyed.list().models


def test_langchain(server, gpt2_server):
    langchain = pytest.importorskip("langchain_ollama")
    for name in ("tiny", "tiny:latest", "text-embedding-3-small"):
        model = langchain.OllamaEmbeddings(model=name, base_url=server.url, validate_model_on_init=True)
        expected = server.manager.embed(TEXTS, "tiny")
        np.testing.assert_array_equal(np.array(model.embed_documents(TEXTS), np.float32), expected)
        np.testing.assert_array_equal(np.array(model.embed_query(TEXTS[0]), np.float32), expected[0])
        model._client.close()
    chat = langchain.ChatOllama(model=SLOT, base_url=gpt2_server.url, temperature=0, num_predict=12)
    answer = chat.invoke(TEXT)
    assert answer.content == known(gpt2_server, TURN)["text"]
    assert answer.usage_metadata["output_tokens"] == 12
    assert "".join(piece.content for piece in chat.stream(TEXT)) == answer.content
    chat._client.close()


async def test_langchain_for_asyncio(server):
    langchain = pytest.importorskip("langchain_ollama")
    model = langchain.OllamaEmbeddings(model="tiny", base_url=server.url)
    found = await model.aembed_documents(TEXTS)
    await model._async_client.close()
    np.testing.assert_array_equal(np.array(found, np.float32), server.manager.embed(TEXTS, "tiny"))
