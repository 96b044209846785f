"""`submit_response`: OpenAI's embeddings body, its vectors and its token counts."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import threading
import time

import numpy as np
import pytest
from conftest import DIMENSION, FIXTURES, TURKISH_TEXT, reference, run_python
from model_manager._async import aresponse
from model_manager.errors import InputError, ModelManagerError, UnknownModelError

SLOT = "english_sentence"
TEXTS = [f"text number {n} {'with more words ' * (n % 7)}" for n in range(40)]
LONG = "many more words than the twenty-four tokens that this small model reads at once can ever hold, and then more"


def respond(manager, inputs, model=SLOT, **options):
    """The parsed body and the reported tokens."""
    done, reported = threading.Event(), []

    def on_done(*result):
        reported.append(result)
        done.set()

    manager.submit_response(inputs, on_done, model, **{"served_model": "public-name", **options})
    assert done.wait(30)
    assert len(reported) == 1
    body, tokens, error = reported[0]
    if error is not None:
        assert (body, tokens) == (None, 0)
        raise error
    assert type(body) is bytes
    body = json.loads(body)
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    return body, tokens


def vectors(body):
    rows = [item["embedding"] for item in body["data"]]
    if isinstance(rows[0], str):
        return np.array([np.frombuffer(base64.b64decode(row, validate=True), "<f4") for row in rows])
    return np.array(rows, dtype=np.float32)


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_the_vectors_are_those_of_embed(make_manager, encoding_format):
    manager = make_manager(cache_size=0)
    body, _ = respond(manager, TEXTS, encoding_format=encoding_format)
    np.testing.assert_array_equal(vectors(body), manager.embed(TEXTS, SLOT))
    body, _ = respond(manager, TEXTS, encoding_format=encoding_format, truncate_dim=8, prompt="query: ")
    np.testing.assert_array_equal(vectors(body), manager.embed(TEXTS, SLOT, truncate_dim=8, prompt="query: "))


def test_the_shape_of_the_body(shared):
    body, tokens = respond(shared, ["one", "two"], served_model='a "name"\n\u2028 ğ😀')
    assert list(body) == ["object", "data", "model", "usage"]
    assert body["object"] == "list"
    assert body["model"] == 'a "name"\n\u2028 ğ😀'
    assert [list(item) for item in body["data"]] == [["object", "index", "embedding"]] * 2
    assert [item["index"] for item in body["data"]] == [0, 1]
    assert {item["object"] for item in body["data"]} == {"embedding"}
    assert tokens == sum(shared.count_tokens(["one", "two"], SLOT))


def test_one_input_is_one_item(shared):
    for inputs in ("a text", ["a text"], [2, 17, 3], [[2, 17, 3]]):
        body, _ = respond(shared, inputs)
        assert vectors(body).shape == (1, DIMENSION)
    assert respond(shared, [])[0]["data"] == []


def test_without_a_model_each_text_goes_its_way(shared):
    body, tokens = respond(shared, [TURKISH_TEXT, "an English text"], None)
    np.testing.assert_array_equal(vectors(body), shared.embed([TURKISH_TEXT, "an English text"]))
    assert tokens == sum(min(24, count) for count in shared.count_tokens([TURKISH_TEXT, "an English text"]))


def test_tokens_are_those_that_the_model_read(make_manager):
    manager = make_manager(cache_size=0)
    cases = reference("bert_wordpiece")["cases"]
    _, tokens = respond(manager, [case["text"] for case in cases])
    assert tokens == sum(len(case["ids"]) for case in cases)
    assert respond(manager, ["the same"] * 5)[1] == 5 * manager.count_tokens("the same", SLOT)
    assert respond(manager, "a text", truncate_dim=4)[1] == manager.count_tokens("a text", SLOT)
    assert respond(manager, "a text", prompt="query: ")[1] == manager.count_tokens("query: a text", SLOT)
    assert manager.count_tokens(LONG, SLOT) > 24
    assert respond(manager, [LONG, LONG + LONG])[1] == 48
    assert respond(manager, [[2, 17, 3], list(range(100))])[1] == 3 + 24


def test_tokens_of_the_models_default_prompt_count(manager):
    manager.register("prompted", str(FIXTURES / "bert_prompts"), dtype="float32")
    prompt = manager.describe("prompted")["prompts"]["query"]
    assert respond(manager, "a text", "prompted")[1] == manager.count_tokens(prompt + "a text", "prompted")
    assert respond(manager, "a text", "prompted", prompt="")[1] == manager.count_tokens("a text", "prompted")


def test_the_cache_knows_the_tokens_and_loads_nothing(manager):
    inputs = ["one", "another text", LONG, "one"]
    first = respond(manager, inputs)
    single = respond(manager, "one")
    manager.unload(SLOT)
    reported = []
    ticket = manager.submit_response(inputs, lambda *result: reported.append(result), SLOT, served_model="public-name")
    assert ticket.done
    (body, tokens, error) = reported[0]
    assert error is None
    assert (json.loads(body), tokens) == first
    assert respond(manager, "one") == single
    assert not manager.is_loaded(SLOT)
    # Also for vectors that `embed` cached, and in calls with some cached inputs.
    manager.embed("by embed", SLOT)
    manager.embed(["by embed too", "and this"], SLOT)
    expected = manager.count_tokens(["one", "by embed", "by embed too", "a new text"], SLOT)
    assert respond(manager, ["one", "by embed", "by embed too", "a new text"])[1] == sum(expected)


def test_without_truncation_a_long_input_is_refused(manager):
    count = manager.count_tokens("query: " + LONG, SLOT)
    message = rf"texts\[1\] has {count} tokens.* 24.*truncate=True"
    with pytest.raises(InputError, match=message):
        respond(manager, ["short", LONG, "short too"], prompt="query: ", truncate=False)
    # The cached vector of the cut text is not an answer either.
    respond(manager, LONG, prompt="query: ")
    with pytest.raises(InputError, match=rf"texts\[0\] has {count} tokens"):
        respond(manager, LONG, prompt="query: ", truncate=False)
    with pytest.raises(InputError, match=r"texts\[0\] has 25 tokens"):
        respond(manager, list(range(25)), truncate=False)
    exact = list(range(24))
    assert respond(manager, exact, truncate=False) == respond(manager, exact, truncate=False) == respond(manager, exact)
    assert respond(manager, "short", truncate=False) == respond(manager, "short")


def test_failures_reach_the_callback(manager):
    manager.register("broken", "/no/such/model")
    with pytest.raises(FileNotFoundError):
        respond(manager, "a text", "broken")
    with pytest.raises(InputError, match="vocabulary"):
        respond(manager, [2, 9999])
    with pytest.raises(InputError, match="truncate_dim"):
        respond(manager, "a text", truncate_dim=DIMENSION + 1)


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("a text",), {"encoding_format": "int8"}, InputError),
        (("a text", "no_such"), {}, UnknownModelError),
        (("lone \ud800",), {}, InputError),
        (("a text",), {"normalize": True}, TypeError),
        ((["a text", 7],), {}, TypeError),
        (([2, 3],), {"prompt": "query: "}, InputError),
        (("a text",), {"timeout": -1}, InputError),
    ],
)
def test_wrong_arguments_raise_at_once(shared, arguments, options, error):
    inputs, *model = arguments
    with pytest.raises(error):
        shared.submit_response(inputs, pytest.fail, *(model or [SLOT]), served_model="m", **options)


def test_the_name_of_the_model_is_needed(shared):
    with pytest.raises(TypeError, match="served_model"):
        shared.submit_response("a text", pytest.fail, SLOT)


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_a_body_is_written_without_the_gil(make_manager, encoding_format):
    """Another thread runs during a call that only writes a body from the cache."""
    manager = make_manager(cache_size=100_000)
    texts = [f"text {n}" for n in range(2000)]
    manager.embed(texts, SLOT)
    calling, stop, seen, reported = threading.Event(), threading.Event(), threading.Event(), []

    def watch():
        while not stop.is_set():
            if calling.is_set():
                seen.set()
            time.sleep(0)

    interval = sys.getswitchinterval()
    # The interpreter does not switch threads by itself here: the other thread runs only while the GIL is released.
    sys.setswitchinterval(1000)
    thread = threading.Thread(target=watch)
    try:
        thread.start()
        while not seen.is_set() and len(reported) < 500:
            calling.set()
            manager.submit_response(
                texts, lambda *result: reported.append(result), SLOT, served_model="m", encoding_format=encoding_format
            )
            calling.clear()
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join(20)
    assert all(error is None for _, _, error in reported)
    assert seen.is_set()


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_a_long_body_is_written_in_pieces_elsewhere(make_manager, encoding_format):
    manager = make_manager(cache_size=100_000)
    texts = [f"text {n}" for n in range(5000)]
    rows = manager.embed(texts, SLOT)
    done, threads = threading.Event(), []

    def on_done(*_):
        threads.append(threading.get_ident())
        done.set()

    manager.submit_response(texts, on_done, SLOT, served_model="m", encoding_format=encoding_format)
    assert done.wait(20)
    assert threads != [threading.get_ident()]
    body, tokens = respond(manager, texts, encoding_format=encoding_format)
    np.testing.assert_array_equal(vectors(body), rows)
    assert [item["index"] for item in body["data"]] == list(range(5000))
    assert tokens == sum(manager.count_tokens(texts, SLOT))


async def test_aresponse(make_manager):
    manager = make_manager()
    body, tokens = await aresponse(manager, TEXTS, SLOT, served_model="m", encoding_format="base64")
    np.testing.assert_array_equal(vectors(json.loads(body)), manager.embed(TEXTS, SLOT))
    assert tokens == sum(min(24, count) for count in manager.count_tokens(TEXTS, SLOT))
    assert await aresponse(manager, TEXTS, SLOT, served_model="m", encoding_format="base64") == (body, tokens)
    answers = await asyncio.gather(*(aresponse(manager, f"text {n}", SLOT, served_model="m") for n in range(200)))
    assert len(answers) == 200
    for wrong in ({"truncate": False, "inputs": LONG}, {"inputs": "lone \ud800"}):
        with pytest.raises(InputError):
            await aresponse(manager, wrong.pop("inputs"), SLOT, served_model="m", **wrong)
    with pytest.raises(ModelManagerError):
        await aresponse(manager, "a text", "no_such", served_model="m")


async def test_a_cancelled_task_withdraws_its_inputs(make_manager):
    manager = make_manager(cache_size=0)
    manager.load(SLOT)
    texts = [f"{n} " + "many words " * 30 for n in range(20_000)]
    task = asyncio.create_task(aresponse(manager, texts, SLOT, served_model="m"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    body, _ = await aresponse(manager, "still alive", SLOT, served_model="m")
    assert vectors(json.loads(body)).shape == (1, DIMENSION)
    stats = manager.stats()["queue"]
    assert stats["texts"] < 20_000
    assert stats["queued"] == 0


def test_in_a_forked_child():
    process = run_python(
        """
import os, warnings
from test_response import SLOT, respond
from conftest import tiny
manager = tiny()
mine = respond(manager, ["one", "two"])
warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: that is the point
pid = os.fork()
if pid == 0:
    same = respond(manager, ["one", "two"]) == mine and manager.is_loaded(SLOT)
    os._exit(0 if same else 1)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert respond(manager, ["one", "two", "three"])[1] > mine[1]
"""
    )
    assert process.stderr == ""
