"""A model of an Ollama or OpenAI-compatible server behind a slot: the same calls, cache, routing and statistics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import DIMENSION, ENGLISH_MODEL, ENGLISH_TEXT, TURKISH_TEXT, run_python
from embedding_server import WIDTH, EmbeddingServer, plain_vectors
from model_manager.errors import (
    ConfigError,
    InputError,
    ModelManagerError,
    ModelNotFoundError,
    NotFiniteError,
    RemoteError,
    RemoteRefusedError,
    WaitTimeoutError,
)

FIRST_PAUSE = 5
"""Seconds in which a server that has failed five times in a row gets no requests. The next pauses are longer."""


@pytest.fixture
def server():
    with EmbeddingServer() as server:
        yield server


@pytest.fixture
def remote(server, make_manager):
    """A manager whose loaded slot ``remote`` is the server's model."""
    manager = make_manager()
    manager.register("remote", server.ollama)
    manager.load("remote")
    server.asked.clear()
    return manager


def nowhere() -> str:
    """A source without a server."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"ollama://127.0.0.1:{taken.getsockname()[1]}/model"


def normalized(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@contextmanager
def occupied(server, manager):
    """Keep all four connections busy; yield the results of their callers. The server continues at the end."""
    server.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        try:
            results = []
            for n in range(4):
                # One by one, because waiting texts would share a request.
                results.append(pool.submit(manager.embed, f"busy {n}", "remote"))
                wait_for(lambda n=n: server.busy == n + 1)
            yield results
        finally:
            server.gate.set()


# --- The same vectors, through every call -----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["ollama", "openai"])
def test_vectors_are_those_of_the_server(make_manager, protocol):
    local = make_manager()
    texts = [f"{'word ' * (n % 50)}number {n}" for n in range(150)]

    def vectors(texts):
        return local.embed(texts, "english_sentence", normalize=False)

    with EmbeddingServer(vectors) as server:
        manager = make_manager()
        manager.register("remote", getattr(server, protocol))
        expected = local.embed(texts, "english_sentence")
        np.testing.assert_allclose(manager.embed(texts, "remote"), expected, atol=1e-6)
        np.testing.assert_allclose(
            manager.embed(texts[:3], "remote", truncate_dim=8),
            local.embed(texts[:3], "english_sentence", truncate_dim=8),
            atol=1e-6,
        )
        raw = manager.embed(texts[:3], "remote", normalize=False)
        np.testing.assert_allclose(raw, vectors(texts[:3]), atol=1e-6)


def test_every_way_to_ask_gives_the_same(remote):
    one = remote.embed("one text", "remote")
    np.testing.assert_allclose(one, normalized(plain_vectors(["one text"]))[0], atol=1e-6)
    np.testing.assert_array_equal(asyncio.run(remote.aembed(["one text"], "remote"))[0], one)
    done = threading.Event()
    answers = []
    remote.submit("one text", lambda array, error: (answers.append((array, error)), done.set()), "remote")
    assert done.wait(30)
    np.testing.assert_array_equal(answers[0][0], one)
    np.testing.assert_array_equal(remote.get("remote").encode("one text", normalize_embeddings=True), one)
    assert remote.embed([], "remote").shape == (0, WIDTH)


def test_many_texts_are_few_requests_in_parallel(server, remote):
    server.gate.clear()
    texts = [f"text {n}" for n in range(1000)]
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(remote.embed, texts, "remote")
        wait_for(lambda: server.busy == 4)
        server.gate.set()
        np.testing.assert_allclose(result.result(), normalized(plain_vectors(texts)), atol=1e-6)
    assert server.most_busy == 4
    assert len(server.asked) == 16  # of 64 texts at most
    assert remote.stats()["queue"]["batches"] == 16


def test_callers_of_single_texts_share_requests(server, remote):
    texts = [f"text {n}" for n in range(100)]

    async def several():
        tasks = [asyncio.create_task(remote.aembed(text, "remote")) for text in texts]
        await asyncio.sleep(0.1)
        server.gate.set()
        return await asyncio.gather(*tasks)

    with occupied(server, remote):
        rows = asyncio.run(several())
    np.testing.assert_allclose(rows, normalized(plain_vectors(texts)), atol=1e-6)
    assert len(server.asked) < 4 + 50


def test_connections_are_kept(server, remote):
    for n in range(20):
        remote.embed(f"text {n}", "remote")
    assert len(server.asked) == 20
    assert server.connections == 1


def test_a_prompt_comes_first(server, make_manager):
    manager = make_manager()
    manager.register("remote", server.openai, prompts={"query": "query: "})
    manager.embed("a", "remote", prompt_name="query")
    manager.embed("a", "remote", prompt="passage: ")
    assert server.texts()[-2:] == [["query: a"], ["passage: a"]]
    with pytest.raises(InputError, match="query"):
        manager.embed("a", "remote", prompt_name="no_such")


# --- Cache, routing, statistics, lifecycle ----------------------------------------------------------------------------


def test_the_cache_answers_with_the_model_unloaded_and_the_server_gone(make_manager):
    manager = make_manager()
    with EmbeddingServer() as server:
        manager.register("remote", server.ollama)
        first = manager.embed(["one text", "two"], "remote")
        assert manager.unload("remote")
    np.testing.assert_array_equal(manager.embed(["one text", "two"], "remote"), first)
    assert not manager.is_loaded("remote")


def test_texts_are_routed_to_it_by_language(server, make_manager):
    manager = make_manager(turkish_model=server.ollama, cache_size=0)
    server.vectors = lambda texts: np.ones((len(texts), DIMENSION), np.float32)
    vectors = manager.embed([TURKISH_TEXT, ENGLISH_TEXT])
    np.testing.assert_allclose(vectors[0], np.full(DIMENSION, DIMENSION**-0.5), atol=1e-6)
    np.testing.assert_array_equal(vectors[1], manager.embed(ENGLISH_TEXT, "english_sentence"))
    assert server.texts()[1:] == [[TURKISH_TEXT]]
    assert len(manager.generate_embedding("Bugün hava çok güzel")) == DIMENSION


def test_what_is_known_of_it(server, remote):
    remote.embed(["a", "b"], "remote")
    description = remote.describe("remote")
    assert description == {
        **description,
        "source": server.ollama,
        "path": f"http://127.0.0.1:{server.port}/api/embed",
        "architecture": "ollama",
        "engine": "server",
        "dimension": WIDTH,
        "max_length": None,
        "pooling": None,
        "normalizes": False,
        "similarity": "cosine",
        "dtype": "float32",
    }
    stats = remote.stats()
    assert stats["slots"]["remote"]["remote"] == {
        "requests": 2,
        "retries": 0,
        "errors": 0,
        "circuit": "closed",
        "retry_seconds": None,
    }
    assert stats["slots"]["english_sentence"]["remote"] is None
    assert stats["memory"]["models"] < 10_000
    json.dumps(stats)
    json.dumps(remote.get_model_info())
    model = remote.get("remote")
    assert (model.max_seq_length, model.get_sentence_embedding_dimension()) == (None, WIDTH)
    assert "server" in model._repr_html_()
    with pytest.raises(InputError, match="server"):
        remote.count_tokens("a text", "remote")


def test_unloading_and_idleness_ask_nothing_of_the_server(server, make_manager):
    manager = make_manager(cache_size=0)
    manager.register("remote", server.ollama)
    manager.embed("a", "remote", keep_alive=0)
    wait_for(lambda: not manager.is_loaded("remote"))
    assert len(server.asked) == 2  # the load's and the text's
    manager.embed("a", "remote")
    assert manager.unload("remote")
    assert len(server.asked) == 4
    assert all("keep_alive" not in body for _, body, _ in server.asked)


def test_two_names_of_one_model_share_its_queue(server, make_manager):
    manager = make_manager()
    manager.register("one", server.openai)
    manager.register("two", server.openai.replace("/org", "/v1/org"))
    first = manager.embed("a text", "one")
    np.testing.assert_array_equal(manager.embed("a text", "two"), first)
    assert manager.stats()["slots"]["one"]["remote"] == manager.stats()["slots"]["two"]["remote"]


def test_a_manager_travels_with_it(server, remote):
    vector = remote.embed("a text", "remote")
    with pickle.loads(pickle.dumps(remote)) as copy:
        np.testing.assert_array_equal(copy.embed("a text", "remote"), vector)


def test_a_child_process_connects_anew():
    run_python(
        """
import os
from conftest import tiny
from embedding_server import EmbeddingServer
with EmbeddingServer() as server:
    manager = tiny(cache_size=0)
    manager.register("remote", server.ollama)
    before = manager.embed(["a", "b"], "remote")
    child = os.fork()
    if child == 0:
        same = (manager.embed(["a", "b"], "remote") == before).all()
        os._exit(0 if same else 1)
    assert (manager.embed(["a", "b"], "remote") == before).all()
    assert os.waitpid(child, 0)[1] == 0
    manager.close()
"""
    )


def test_the_interpreter_ends_while_a_request_is_out():
    process = run_python(
        """
import sys, threading, time
from conftest import tiny
from embedding_server import EmbeddingServer
server = EmbeddingServer().__enter__()
manager = tiny()
manager.register("remote", server.ollama)
manager.load("remote")
server.gate.clear()
threading.Thread(target=manager.embed, args=("a", "remote"), daemon=True).start()
while not server.busy:
    time.sleep(0.002)
""",
        timeout=30,
    )
    assert process.stderr == ""


# --- Keys -------------------------------------------------------------------------------------------------------------


def test_a_key_comes_from_the_environment(server, make_manager, monkeypatch):
    monkeypatch.setenv("MODEL_MANAGER_REMOTE_KEY", "sk-usual")
    monkeypatch.setenv("OWN_KEY", "sk-own")
    manager = make_manager()
    for name, source in {
        "usual": server.openai,
        "own": server.openai.replace("://", "://env:OWN_KEY@"),
        "none": server.ollama,
    }.items():
        manager.register(name, source)
        manager.load(name)
    keys = [headers.get("authorization") for _, _, headers in server.asked]
    assert keys == ["Bearer sk-usual", "Bearer sk-own", None]
    assert "sk-" not in repr(manager.stats())


def test_a_key_in_the_source_is_refused_and_hidden(make_manager, caplog):
    manager = make_manager()
    manager.register("remote", "openai+https://sk-secret@example.invalid/v1/model")
    with pytest.raises(ModelNotFoundError, match="environment variable") as caught:
        manager.load("remote")
    assert "sk-secret" not in str(caught.value) + caplog.text + repr(manager.stats())
    manager.register("unset", "openai+https://env:NO_SUCH_KEY@example.invalid/v1/model")
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        manager.load("unset")


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_what_passes_is_tried_again(server, remote):
    server.faults[:] = [503, 500]
    np.testing.assert_allclose(remote.embed("a", "remote"), normalized(plain_vectors(["a"]))[0], atol=1e-6)
    assert remote.stats()["slots"]["remote"]["remote"]["retries"] == 2


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (400, InputError, "does not take the text.*fault 400"),
        (401, RemoteRefusedError, "access was refused"),
        (404, FileNotFoundError, "ollama pull org/model:1b"),
        (302, RemoteRefusedError, "redirects"),
        (b"<html>", RemoteError, "not what it should be"),
        (b'{"embeddings": []}', RemoteError, "0 vectors for 1 texts"),
        (b'{"embeddings": [[1, 2]]}', RemoteRefusedError, "2 dimensions now, not 4"),
        (b'{"embeddings": [["1", 2, 3, 4]]}', RemoteError, "not what it should be"),
        (b'{"embeddings": [[1, 2, null, 4]]}', NotFiniteError, "not finite"),
        (b'{"embeddings": [[1, 2, NaN, 4]]}', NotFiniteError, "not finite"),
        (b'{"embeddings": [[1, 2, 3, 1e60]]}', NotFiniteError, "not finite"),
    ],
)
def test_what_lasts_is_told_at_once(server, remote, fault, error, words):
    server.faults[:] = [fault]
    with pytest.raises(error, match=words) as caught:
        remote.embed("a", "remote")
    assert isinstance(caught.value, ModelManagerError)
    assert len(server.asked) == 1
    assert remote.embed("a", "remote").shape == (WIDTH,)


def test_a_refusal_names_no_text_by_a_number_of_the_request(server, remote):
    """A request has the texts in an order of its own, so that a number in the server's words is not the call's."""
    server.faults[:] = [400]
    with pytest.raises(InputError, match=r"one of 3 texts, which the request has in another order.*fault 400"):
        remote.embed(["a long text", "b", "c"], "remote")


def test_a_failed_request_fails_its_own_callers_only(server, remote):
    server.faults[:] = [b"{}"]
    with occupied(server, remote) as results:
        pass
    failures = [result.exception() for result in results]
    assert [type(failure) for failure in failures] == [RemoteError, type(None), type(None), type(None)]


def test_a_server_that_dies_is_left_alone(make_manager):
    manager = make_manager(cache_size=0)
    with EmbeddingServer() as server:
        manager.register("remote", server.ollama)
        manager.load("remote")
        server.faults[:] = [500] * 100
        with pytest.raises(RemoteError, match="4 times in a row"):
            manager.embed("a", "remote")
        began = time.monotonic()
        with pytest.raises(ConnectionError, match="tried again in"):
            manager.embed("a", "remote")
        asked = len(server.asked)
        for _ in range(10):
            with pytest.raises(RemoteError, match="tried again in"):
                manager.embed("a", "remote")
        report = manager.stats()["slots"]["remote"]["remote"]
        # Another load keeps the figures, and sends nothing either.
        manager.unload("remote")
        # A thread of the last call may still hold the model on a busy machine; the load then takes it back, without a
        # request.
        with contextlib.suppress(RemoteError):
            manager.load("remote")
        # A busy machine may need longer than the first pause, which is the shortest. After each pause one request goes
        # through, and another one asks whether the server fails at this text alone.
        pauses = (time.monotonic() - began) // FIRST_PAUSE
        assert len(server.asked) - asked <= 2 * pauses
        if not pauses:
            assert report["circuit"] == "open"
            assert 0 < report["retry_seconds"] <= FIRST_PAUSE


def test_a_call_may_give_up_earlier(server, remote):
    server.gate.clear()
    with pytest.raises(WaitTimeoutError):
        remote.embed("a", "remote", timeout=0.05)
    server.gate.set()
    assert remote.embed("a", "remote").shape == (WIDTH,)


def test_cancelled_texts_are_not_sent(server, remote):
    async def several():
        unwanted = [asyncio.create_task(remote.aembed(f"unwanted {n}", "remote")) for n in range(50)]
        wanted = asyncio.create_task(remote.aembed("wanted", "remote"))
        await asyncio.sleep(0)
        for task in unwanted:
            task.cancel()
        await asyncio.gather(*unwanted, return_exceptions=True)
        server.gate.set()
        return await wanted

    with occupied(server, remote):
        asyncio.run(several())
    assert not [text for texts in server.texts() for text in texts if "unwanted" in text]


def test_token_counts_are_the_servers(server, remote):
    """Exact for a single text; for several texts, shares that add up to the count of the request."""

    def tokens(inputs, **options):
        answers = []
        done = threading.Event()
        remote.submit_response(
            inputs, lambda *result: (answers.append(result), done.set()), "remote", served_model="public", **options
        )
        assert done.wait(30)
        body, count, error = answers[0]
        assert error is None
        answer = json.loads(body)
        assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
        assert answer["model"] == "public"
        return count

    assert tokens("one two three") == 3
    assert tokens(["one", "two words", "three more words"]) == 6
    asked = len(server.asked)
    assert tokens(["three more words", "two words", "one"]) == 6, "from the cache"
    assert len(server.asked) == asked


def test_what_only_a_local_model_can_do_is_refused(remote):
    with pytest.raises(InputError, match="takes texts"):
        remote.embed([[1, 2]], "remote")
    done = threading.Event()
    reported = []
    remote.submit_response(
        "a", lambda *answer: (reported.append(answer), done.set()), "remote", served_model="m", truncate=False
    )
    assert done.wait(30)
    assert isinstance(reported[0][2], InputError)
    assert "truncate" in str(reported[0][2])


def test_wrong_sources_say_what_is_wrong(make_manager):
    manager = make_manager()
    for number, (source, words) in enumerate(
        {
            "http://127.0.0.1/model": "openai\\+http://",
            "ollama://127.0.0.1": "names no model",
            "ollama://127.0.0.1/a?b": "does not belong",
        }.items()
    ):
        manager.register(f"slot {number}", source)
        with pytest.raises(ModelNotFoundError, match=words):
            manager.load(f"slot {number}")
    manager.register("writer", "ollama://127.0.0.1/model", kind="generator")
    with pytest.raises(NotImplementedError, match="embeddings"):
        manager.load("writer")


# --- Fallback ---------------------------------------------------------------------------------------------------------


def test_a_local_model_stands_in_for_a_server(make_manager):
    manager = make_manager()
    manager.register("search", nowhere(), fallback=[ENGLISH_MODEL])
    np.testing.assert_array_equal(
        manager.embed(ENGLISH_TEXT, "search"), manager.embed(ENGLISH_TEXT, "english_sentence")
    )
    assert manager.stats()["slots"]["search"]["source"] == ENGLISH_MODEL


def test_a_server_stands_in_for_a_local_model(server, make_manager):
    manager = make_manager()
    manager.register("search", "/no/such/model", fallback=[nowhere(), server.openai])
    assert manager.embed(ENGLISH_TEXT, "search").shape == (WIDTH,)
    assert manager.stats()["slots"]["search"]["source"] == server.openai
