"""`/v1/chat/completions` and `/v1/completions`, through the openai SDK and by hand: whole, streamed, refused, left."""

from __future__ import annotations

import asyncio
import json
import socket

import httpx
import openai
import orjson
import pytest
from conftest import ENGLISH_MODEL
from generators import GPT2, GREEDY, SLOT, WITHOUT_END, eventually, figures, writer
from model_manager.errors import NotFiniteError
from model_manager.server import ServerConfig, create_app
from model_manager.server.routes.generation.request import LONGEST_STOP, MOST_STOPS, parameters
from model_manager.server.routes.generation.schemas import ChatAnswer, CompletionAnswer
from servers import SECONDS, run_node, running
from tokenizers import Tokenizer

TURN = [{"role": "user", "content": "Merhaba dünya"}]
TEXT = "Merhaba dünya"
ASK = {"messages": TURN, "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def gpt2():
    """A server with a text generator, for tests that do not look at its state."""
    with writer() as manager, running(create_app(ServerConfig(), manager)) as found:
        yield found


@pytest.fixture
def endless_server(endless, serve):
    return serve(endless)


@pytest.fixture
def sdk(gpt2):
    with openai.OpenAI(base_url=f"{gpt2.url}/v1", api_key="any", max_retries=0, timeout=SECONDS) as client:
        yield client


def events(response):
    """What the lines of a stream hold."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.content.split(b"\n\n")
    assert blocks.pop() == b""
    assert all(block.startswith(b"data: ") and b"\n" not in block for block in blocks)
    return [block.removeprefix(b"data: ") for block in blocks]


# --- The SDK -----------------------------------------------------------------------------------------------------


def test_a_chat(sdk, gpt2):
    answer = sdk.chat.completions.create(model=SLOT, **ASK)
    known = gpt2.manager.complete(TURN, **GREEDY, max_new_tokens=12)
    assert answer.choices[0].message.content == known["text"]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == known["finish_reason"]
    assert answer.usage.prompt_tokens == known["prompt_tokens"]
    assert answer.usage.completion_tokens == known["completion_tokens"] == 12
    assert answer.usage.total_tokens == known["prompt_tokens"] + 12
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == SLOT


def test_a_continuation(sdk, gpt2):
    answer = sdk.completions.create(model=SLOT, prompt=TEXT, temperature=0, max_tokens=9)
    known = gpt2.manager.complete(TEXT, **GREEDY, max_new_tokens=9)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == known["text"]
    assert answer.usage.prompt_tokens == known["prompt_tokens"]
    assert (
        "".join(
            chunk.choices[0].text
            for chunk in sdk.completions.create(model=SLOT, prompt=TEXT, temperature=0, max_tokens=9, stream=True)
        )
        == known["text"]
    )


def test_a_streamed_chat(sdk, gpt2):
    chunks = list(sdk.chat.completions.create(model=SLOT, stream=True, stream_options={"include_usage": True}, **ASK))
    *pieces, end, usage = chunks
    known = gpt2.manager.complete(TURN, **GREEDY, max_new_tokens=12)
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [piece.choices[0].delta.role for piece in pieces[1:]] == [None] * (len(pieces) - 1)
    assert "".join(piece.choices[0].delta.content for piece in pieces) == known["text"]
    assert len(pieces) > 5
    assert end.choices[0].finish_reason == known["finish_reason"]
    assert {piece.choices[0].finish_reason for piece in pieces} == {None}
    assert usage.choices == []
    assert usage.usage.completion_tokens == 12
    assert usage.usage.prompt_tokens == known["prompt_tokens"]
    assert {piece.usage for piece in [*pieces, end]} == {None}
    assert len({(chunk.id, chunk.model, chunk.created) for chunk in chunks}) == 1


async def test_asynchronous_clients(gpt2):
    async with openai.AsyncOpenAI(base_url=f"{gpt2.url}/v1", api_key="any", timeout=SECONDS) as client:

        async def one(number):
            messages = [{"role": "user", "content": f"{TEXT} {number}"}]
            stream = await client.chat.completions.create(
                model=SLOT, messages=messages, temperature=0, max_tokens=20, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        together = await asyncio.gather(*(one(number) for number in range(8)))
    assert together == [
        gpt2.manager.chat([{"role": "user", "content": f"{TEXT} {number}"}], **GREEDY, max_new_tokens=20)
        for number in range(8)
    ]


def test_langchain(gpt2):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=SLOT, base_url=f"{gpt2.url}/v1", api_key="any", temperature=0, max_tokens=12)
    known = gpt2.manager.chat(TURN, **GREEDY, max_new_tokens=12)
    answer = model.invoke(TEXT)
    assert answer.content == known
    assert answer.usage_metadata["output_tokens"] == 12
    pieces = [piece.content for piece in model.stream(TEXT)]
    assert "".join(pieces) == known
    assert len(pieces) > 5


def test_openai_for_javascript(gpt2):
    found = run_node("chat.mjs", gpt2.url, TEXT)
    known = gpt2.manager.complete(TURN, **GREEDY, max_new_tokens=12)
    assert found["whole"] == "".join(found["pieces"]) == known["text"]
    assert found["usage"]["completion_tokens"] == 12
    assert found["usage"]["prompt_tokens"] == known["prompt_tokens"]
    assert [error["name"] for error in found["refused"]] == ["BadRequestError"] * 2
    assert [error["param"] for error in found["refused"]] == ["n", "messages"]


def test_figures_for_prometheus(make_writer, serve):
    server = serve(make_writer())
    for _ in range(2):
        answer = server.client.post("/v1/completions", json={"prompt": TEXT, "max_tokens": 6, "min_tokens": 6}).json()
        # Unloading sets the generator's own counts to zero.
        text = server.client.get("/metrics").text
        server.client.post("/api/unload", json={"model": SLOT})
    prompt = answer["usage"]["prompt_tokens"]
    for line in (
        f'model_manager_generated_tokens_total{{slot="{SLOT}"}} 12.0',
        f'model_manager_generation_prompt_tokens_total{{slot="{SLOT}"}} {2 * prompt}.0',
        f'model_manager_generation_requests_total{{slot="{SLOT}"}} 2.0',
        f'model_manager_generation_active{{slot="{SLOT}"}} 0.0',
    ):
        assert line in text


def test_seeds_repeat_an_answer(sdk):
    def ask(seed):
        answer = sdk.chat.completions.create(model=SLOT, messages=TURN, temperature=1.5, max_tokens=30, seed=seed)
        return answer.choices[0].message.content

    assert ask(5) == ask(5) != ask(-5) == ask(-5)


def test_stop_texts(sdk, gpt2):
    text = gpt2.manager.complete(TEXT, **GREEDY, max_new_tokens=30)["text"]
    stop = text[len(text) // 2 :][:3]
    for given in (stop, ["no such text", stop]):
        answer = sdk.completions.create(model=SLOT, prompt=TEXT, temperature=0, max_tokens=30, stop=given)
        assert answer.choices[0].text == text[: text.index(stop)]
        assert answer.choices[0].finish_reason == "stop"


def test_parts_and_roles(sdk, gpt2):
    turns = [
        {"role": "developer", "content": "Kısa."},
        {"role": "user", "content": [{"type": "text", "text": "Merhaba"}, {"type": "text", "text": "dünya"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "?", "name": "ayşe"},
    ]
    plain = [("system", "Kısa."), ("user", "Merhaba\ndünya"), ("assistant", ""), ("user", "?")]
    known = gpt2.manager.complete([{"role": role, "content": text} for role, text in plain], **GREEDY, max_new_tokens=1)
    answer = sdk.chat.completions.create(
        model=SLOT, messages=turns, temperature=0, max_completion_tokens=1, max_tokens=2
    )
    assert answer.choices[0].message.content == known["text"]
    assert answer.usage.completion_tokens == 1


def test_more_parameters_than_openai_has(sdk, gpt2):
    more = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "top_k": 0, "min_tokens": 3, "keep_alive": "5m"}
    answer = sdk.completions.create(model=SLOT, prompt=TEXT, temperature=0, max_tokens=20, extra_body=more)
    known = gpt2.manager.generate(
        TEXT, do_sample=False, max_new_tokens=20, repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=3
    )
    assert answer.choices[0].text == known


@pytest.mark.parametrize("off", [{"top_k": -1}, {"top_k": 0}, {"top_p": 0}, {"stop": ""}, {"stop": []}, {"stop": [""]}])
def test_other_ways_to_write_that_something_is_off(gpt2, off):
    ask = {"prompt": TEXT, "temperature": 1.5, "seed": 3, "max_tokens": 12, "top_k": 0}
    found = gpt2.client.post("/v1/completions", json={**ask, **off})
    assert found.status_code == 200, found.text
    known = gpt2.client.post("/v1/completions", json=ask).json()
    assert found.json()["choices"] == known["choices"]


# --- Several answers ---------------------------------------------------------------------------------------------

PROMPTS = [TEXT, "Bir", "İki üç"]


def test_several_prompts(sdk, gpt2):
    answer = sdk.completions.create(model=SLOT, prompt=PROMPTS, temperature=0, max_tokens=7)
    known = [gpt2.manager.complete(prompt, **GREEDY, max_new_tokens=7) for prompt in PROMPTS]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.text for choice in answer.choices] == [one["text"] for one in known]
    assert answer.usage.prompt_tokens == sum(one["prompt_tokens"] for one in known)
    assert answer.usage.completion_tokens == sum(one["completion_tokens"] for one in known)


def test_prompts_of_token_ids(sdk, gpt2):
    tokenizer = Tokenizer.from_file(f"{GPT2}/tokenizer.json")
    ids = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    known = [gpt2.manager.complete(prompt, **GREEDY, max_new_tokens=7)["text"] for prompt in PROMPTS]
    several = sdk.completions.create(model=SLOT, prompt=ids, temperature=0, max_tokens=7)
    assert [choice.text for choice in several.choices] == known
    one = sdk.completions.create(model=SLOT, prompt=ids[0], temperature=0, max_tokens=7)
    assert [choice.text for choice in one.choices] == known[:1]
    assert one.usage.prompt_tokens == len(ids[0])


def test_several_answers_to_one_prompt(sdk, gpt2):
    ask = {"model": SLOT, "messages": TURN, "temperature": 1.5, "max_tokens": 20, "seed": 5}
    answer = sdk.chat.completions.create(n=3, **ask)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts[1] == sdk.chat.completions.create(**{**ask, "seed": 6}).choices[0].message.content
    known = gpt2.manager.complete(TURN, **GREEDY, max_new_tokens=1)
    assert answer.usage.prompt_tokens == known["prompt_tokens"], "a prompt counts once"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    prompts = sdk.completions.create(
        model=SLOT, prompt=PROMPTS[:2], n=2, best_of=2, temperature=0, max_tokens=5
    ).choices
    assert [choice.index for choice in prompts] == [0, 1, 2, 3]
    assert prompts[0].text == prompts[1].text != prompts[2].text == prompts[3].text


@pytest.mark.parametrize("count", [1, 2])
def test_streams_of_several_answers(sdk, gpt2, count):
    chunks = list(
        sdk.completions.create(
            model=SLOT,
            prompt=PROMPTS,
            n=count,
            temperature=0,
            max_tokens=7,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, usage = chunks
    known = [gpt2.manager.complete(prompt, **GREEDY, max_new_tokens=7) for prompt in PROMPTS for _ in range(count)]
    texts, ends = [""] * len(known), [None] * len(known)
    for chunk in pieces:
        (choice,) = chunk.choices
        assert ends[choice.index] is None
        texts[choice.index] += choice.text
        ends[choice.index] = choice.finish_reason
    assert texts == [one["text"] for one in known]
    assert ends == [one["finish_reason"] for one in known]
    assert usage.usage.completion_tokens == sum(one["completion_tokens"] for one in known)
    assert usage.usage.prompt_tokens == sum(one["prompt_tokens"] for one in known[::count])
    chat = list(sdk.chat.completions.create(model=SLOT, n=count, stream=True, **ASK))
    assert [chunk.choices[0].delta.role for chunk in chat[:count]] == ["assistant"] * count
    assert {chunk.choices[0].index for chunk in chat} == set(range(count))


def test_langchain_batches(gpt2):
    from langchain_openai import OpenAI

    model = OpenAI(model=SLOT, base_url=f"{gpt2.url}/v1", api_key="any", temperature=0, max_tokens=7, n=2, best_of=2)
    found = model.generate(PROMPTS)
    known = [gpt2.manager.complete(prompt, **GREEDY, max_new_tokens=7)["text"] for prompt in PROMPTS]
    assert [[one.text for one in answers] for answers in found.generations] == [[text, text] for text in known]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_all_its_answers(endless_server, stream):
    manager = endless_server.manager
    body = {"prompt": [TEXT, "Bir"], "n": 2, "max_tokens": 50_000, "min_tokens": 50_000, "stream": stream}
    after = (
        (lambda connection: connection.recv(1))
        if stream
        else (lambda _: eventually(lambda: figures(manager)["active"] == 4))
    )
    leave(endless_server, "/v1/completions", body, after)
    eventually(lambda: figures(manager)["cancelled"] == 4)
    eventually(lambda: endless_server.service.in_flight == 0)


def test_nulls_and_unknown_fields(gpt2):
    nothing = dict.fromkeys(
        ["stream", "stream_options", "stop", "seed", "n", "top_p", "tools", "logprobs", "logit_bias", "user", "store"]
    )
    answer = gpt2.client.post("/v1/chat/completions", json={**nothing, **ASK, "of_tomorrow": {"a": 1}})
    assert answer.status_code == 200, answer.text
    ChatAnswer.model_validate(answer.json(), strict=True)
    answer = gpt2.client.post("/v1/completions", json={**nothing, "prompt": [TEXT], "max_tokens": 3.0})
    assert answer.status_code == 200, answer.text
    CompletionAnswer.model_validate(answer.json(), strict=True)
    assert answer.json()["usage"]["completion_tokens"] <= 3


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_clients_do_not_learn_of_each_others_prompts(make_writer, serve, path):
    server = serve(make_writer("llama"))
    ask = {"prompt": TEXT * 3, "messages": [{"role": "user", "content": TEXT * 3}], "max_tokens": 1}

    def cached(key, user):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        answer = server.client.post(path, json={**ask, "user": user}, headers=headers).json()
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    others = [("a", None), ("b", None), ("a", "me"), (None, "me"), (None, None)]
    for key, user in others[:4]:
        assert cached(key, user) == 0
    for key, user in others[:4]:
        assert cached(key, user) > 0
    assert cached(*others[4]) == 0
    assert server.client.post(path, json={**ask, "user": 5}).json()["error"]["param"] == "user"


# --- Streams -----------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_stream(gpt2):
    answer = gpt2.client.post("/v1/chat/completions", json={**ASK, "stream": True})
    *chunks, end = events(answer)
    assert end == b"[DONE]"
    first, *_, last = map(json.loads, chunks)
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] in {"stop", "length"}
    assert all("usage" not in json.loads(chunk) for chunk in chunks)
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("text", ["Çığ, göl, şiş: İıĞğÜüÖö", "👩‍👩‍👧‍👦 🇹🇷 👍🏽 e\u0301", "日本語"])
def test_no_character_is_split(make_writer, serve, text):
    """The tiny models write the bytes of a character as several tokens; every chunk is whole text all the same."""
    server = serve(make_writer("qwen3"))
    body = {"prompt": text, "temperature": 1.8, "top_k": 0, "max_tokens": 40}
    beyond_ascii = set()
    for seed in range(8):
        whole = server.client.post("/v1/completions", json={**body, "seed": seed}).json()["choices"][0]["text"]
        *chunks, _ = events(server.client.post("/v1/completions", json={**body, "seed": seed, "stream": True}))
        # The half of a character would be a replacement character that the whole does not have.
        assert "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks) == whole
        beyond_ascii.update(character for character in whole if "\x7f" < character != "\ufffd")
    assert beyond_ascii


def test_pieces_come_while_the_answer_is_written(endless_server):
    body = {"prompt": TEXT, "max_tokens": 50_000, "min_tokens": 50_000, "stream": True}
    with endless_server.client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
        assert figures(endless_server.manager)["completed"] == 0


def test_an_error_in_the_middle_of_a_stream(gpt2, monkeypatch):
    """It comes as an event, which the SDK raises."""
    from model_manager.server.routes.generation import endpoints

    class Failing(endpoints.AsyncTextStream):
        async def __anext__(self):
            if self.given:
                raise NotFiniteError("NaN in the middle")
            self.given = True
            return "a piece"

        given = False

    monkeypatch.setattr(endpoints, "AsyncTextStream", Failing)
    *_, piece, last = events(gpt2.client.post("/v1/chat/completions", json={**ASK, "stream": True}))
    assert b"a piece" in piece
    assert json.loads(last)["error"]["type"] == "server_error"
    with openai.OpenAI(base_url=f"{gpt2.url}/v1", api_key="any", max_retries=0) as client:
        stream = client.chat.completions.create(model=SLOT, stream=True, **ASK)
        with pytest.raises(openai.APIError):
            list(stream)


# --- Clients that leave ------------------------------------------------------------------------------------------


def leave(server, path, body, after):
    """Send a request by hand and close the connection when `after(socket)` is done."""
    content = orjson.dumps(body)
    host = server.url.removeprefix("http://")
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(content)}\r\n\r\n"
    with socket.create_connection(tuple(host.split(":")), timeout=SECONDS) as connection:
        connection.sendall(head.encode() + content)
        after(connection)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer(endless_server, stream):
    manager = endless_server.manager
    body = {"prompt": TEXT, "max_tokens": 50_000, "min_tokens": 50_000, "stream": stream}
    after = (
        (lambda connection: connection.recv(1))
        if stream
        else (lambda _: eventually(lambda: figures(manager)["active"] == 1))
    )
    leave(endless_server, "/v1/completions", body, after)
    eventually(lambda: figures(manager)["cancelled"] == 1)
    assert figures(manager)["generated_tokens"] < 50_000
    eventually(lambda: endless_server.service.in_flight == 0)
    assert endless_server.client.post("/v1/completions", json={"prompt": TEXT, "max_tokens": 2}).status_code == 200


def test_a_client_that_leaves_the_queue(endless_server):
    """Its answer never begins."""
    manager = endless_server.manager
    busy = [manager.stream(TEXT, **WITHOUT_END) for _ in range(16)]
    eventually(lambda: figures(manager)["active"] == 16)
    leave(
        endless_server,
        "/v1/completions",
        {"prompt": TEXT, "stream": True},
        lambda _: eventually(lambda: figures(manager)["waiting"] == 1),
    )
    eventually(lambda: figures(manager)["waiting"] == 0 and figures(manager)["cancelled"] == 1)
    for stream in busy:
        stream.cancel()


SERVE = """
from model_manager import ModelManager
from model_manager.server import ServerConfig
from model_manager.server.main import run
run(ServerConfig(port=0), ModelManager(generator_model=MODEL, generator_dtype="float32"))
"""


def test_a_stream_under_way_is_finished_before_the_server_ends(process, endless_model):
    server = process("-c", SERVE.replace("MODEL", repr(str(endless_model))))
    body = {"prompt": TEXT, "max_tokens": 4000, "min_tokens": 4000, "stream": True}
    with httpx.stream("POST", f"{server.url()}/v1/completions", json=body, timeout=SECONDS) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.popen.terminate()
        *_, end, last = filter(None, lines)
    assert json.loads(end.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert last == "data: [DONE]"
    server.popen.wait(SECONDS)
    assert "Traceback" not in server.text()


# --- Refusals ----------------------------------------------------------------------------------------------------

CHAT = [
    ({}, "messages"),
    ({"messages": "Merhaba"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["Merhaba"]}, "messages"),
    ({"messages": [{"content": "a"}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": "kelime " * 200}]}, "messages"),
    ({**ASK, "tools": [{"type": "function"}]}, "tools"),
    ({**ASK, "response_format": {"type": "json_object"}}, "response_format"),
    ({**ASK, "response_format": "text"}, "response_format"),
    ({**ASK, "logprobs": True}, "logprobs"),
    ({**ASK, "top_logprobs": 3}, "logprobs"),
]
COMPLETION = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": ["a", "kelime " * 200]}, "prompt"),
    ({"prompt": ["a", [1]]}, "prompt"),
    ({"prompt": [[1], "a"]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [2**32]}, "prompt"),
    ({"prompt": [2**31]}, "prompt"),
    ({"prompt": ["a"] * 65}, "prompt"),
    ({"prompt": ["a", "b"], "n": 33}, "n"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": "kelime " * 200}, "prompt"),
    ({"prompt": "a", "echo": True}, "echo"),
    ({"prompt": "a", "suffix": "z"}, "suffix"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "logprobs": 0}, "logprobs"),
]
BOTH = [
    ({"model": 5}, "model"),
    ({"n": 65}, "n"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"n": "1"}, "n"),
    ({"n": 1.5}, "n"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty"),
    ({"logit_bias": {"50256": -100}}, "logit_bias"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": False}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": True}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
    ({"seed": 1.5}, "seed"),
    ({"seed": "7"}, "seed"),
    ({"stop": 5}, "stop"),
    ({"stop": [5]}, "stop"),
    ({"stop": [None]}, "stop"),
    ({"stop": ["x"] * (MOST_STOPS + 1)}, "stop"),
    ({"stop": "x" * (LONGEST_STOP + 1)}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options"),
    ({"keep_alive": "soon"}, "keep_alive"),
]
REFUSED = [
    *(("/v1/chat/completions", body, param) for body, param in CHAT),
    *(("/v1/completions", body, param) for body, param in COMPLETION),
    *(("/v1/chat/completions", {**ASK, **body}, param) for body, param in BOTH),
    *(("/v1/completions", {"prompt": TEXT, **body}, param) for body, param in BOTH),
]


@pytest.mark.parametrize(("path", "body", "param"), REFUSED)
def test_refused(gpt2, path, body, param):
    answer = gpt2.client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param in error["message"] or error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("extra", [{"max_tokens": 10**18}, {"seed": -(2**63)}, {"seed": 2**63 - 1}, {"stop": []}])
def test_extremes_are_answered(gpt2, extra):
    assert gpt2.client.post("/v1/completions", json={"prompt": TEXT, **extra}).status_code == 200


def test_a_stream_that_cannot_begin_has_a_status(gpt2):
    body = {"prompt": "kelime " * 200, "stream": True}
    answer = gpt2.client.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_an_unknown_model(gpt2, sdk):
    with pytest.raises(openai.NotFoundError, match="gpt-5") as raised:
        sdk.chat.completions.create(model="gpt-5", **ASK)
    assert raised.value.code == "model_not_found"
    assert SLOT in str(raised.value)


def test_models_by_name_source_or_not_at_all(gpt2):
    source = gpt2.manager.stats()["slots"][SLOT]["source"]
    for name in (SLOT, f"{SLOT}:latest", source, None, ""):
        answer = gpt2.client.post("/v1/chat/completions", json={**ASK, "model": name})
        assert answer.status_code == 200
        assert answer.json()["model"] == SLOT


@pytest.mark.parametrize("slots", [(), ("no_such",)])
def test_a_server_without_a_generator(make_manager, serve, slots):
    answer = serve(make_manager(), generators=slots).client.post("/v1/chat/completions", json=ASK)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "no_generator"
    for slot in slots:
        assert slot in answer.json()["error"]["message"]


def test_a_slot_that_is_no_generator(make_writer, serve):
    manager = make_writer()
    manager.register("vectors", ENGLISH_MODEL)
    server = serve(manager, generators=(SLOT, "vectors"))
    assert server.client.post("/v1/completions", json={"prompt": TEXT, "model": "vectors"}).status_code == 404


def test_several_generators(make_writer, serve):
    manager = make_writer("gpt2")
    manager.register("second", manager.stats()["slots"][SLOT]["source"].replace("gpt2", "llama"), kind="generator")
    server = serve(manager, generators=("second", SLOT))
    answer = server.client.post("/v1/chat/completions", json=ASK)
    assert answer.json()["model"] == "second"
    assert server.client.post("/v1/chat/completions", json={**ASK, "model": SLOT}).json()["model"] == SLOT


def test_a_model_that_cannot_be_loaded(make_writer, serve):
    server = serve(make_writer(generator_model="/no/such/model"))
    for stream in (False, True):
        answer = server.client.post("/v1/chat/completions", json={**ASK, "stream": stream})
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "service_unavailable"
        assert "/no/such/model" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_overload(endless_server, stream):
    """256 requests wait; the next is told to come back."""
    manager = endless_server.manager
    under_way = [manager.stream(TEXT, **WITHOUT_END) for _ in range(16)]
    eventually(lambda: figures(manager)["active"] == 16)
    under_way += [manager.stream(TEXT) for _ in range(256)]
    answer = endless_server.client.post("/v1/chat/completions", json={"messages": TURN, "stream": stream})
    assert answer.status_code == 429
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert int(answer.headers["retry-after"]) >= 1
    for one in under_way:
        one.cancel()


def test_parameters_become_the_cores():
    body = {"max_tokens": 5, "max_completion_tokens": 7, "seed": -1, "top_p": 0.5, "stop": ["a"], "temperature": None}
    assert parameters(body) == {"max_new_tokens": 7, "seed": 2**64 - 1, "top_p": 0.5, "stop": ["a"]}
