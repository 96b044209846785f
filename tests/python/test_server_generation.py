"""`/v1/chat/completions` and `/v1/completions`, through the openai SDK and by hand."""

from __future__ import annotations

import asyncio

import openai
import pytest
from generation_servers import ASK, TEXT, TURN
from generators import GPT2, GREEDY, SLOT, eventually, figures
from model_manager.server.routes.generation.schemas import ChatAnswer, CompletionAnswer
from servers import SECONDS, run_node
from tokenizers import Tokenizer

# --- The SDK -----------------------------------------------------------------------------------------------------


def test_a_chat(sdk, gpt2_server):
    answer = sdk.chat.completions.create(model=SLOT, **ASK)
    known = gpt2_server.manager.complete(TURN, **GREEDY, max_new_tokens=12)
    assert answer.choices[0].message.content == known["text"]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == known["finish_reason"]
    assert answer.usage.prompt_tokens == known["prompt_tokens"]
    assert answer.usage.completion_tokens == known["completion_tokens"] == 12
    assert answer.usage.total_tokens == known["prompt_tokens"] + 12
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == SLOT


def test_a_continuation(sdk, gpt2_server):
    answer = sdk.completions.create(model=SLOT, prompt=TEXT, temperature=0, max_tokens=9)
    known = gpt2_server.manager.complete(TEXT, **GREEDY, max_new_tokens=9)
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


def test_a_streamed_chat(sdk, gpt2_server):
    chunks = list(sdk.chat.completions.create(model=SLOT, stream=True, stream_options={"include_usage": True}, **ASK))
    *pieces, end, usage = chunks
    known = gpt2_server.manager.complete(TURN, **GREEDY, max_new_tokens=12)
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


async def test_asynchronous_clients(gpt2_server):
    async with openai.AsyncOpenAI(base_url=f"{gpt2_server.url}/v1", api_key="any", timeout=SECONDS) as client:

        async def one(number):
            messages = [{"role": "user", "content": f"{TEXT} {number}"}]
            stream = await client.chat.completions.create(
                model=SLOT, messages=messages, temperature=0, max_tokens=20, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        together = await asyncio.gather(*(one(number) for number in range(8)))
    assert together == [
        gpt2_server.manager.chat([{"role": "user", "content": f"{TEXT} {number}"}], **GREEDY, max_new_tokens=20)
        for number in range(8)
    ]


def test_langchain(gpt2_server):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=SLOT, base_url=f"{gpt2_server.url}/v1", api_key="any", temperature=0, max_tokens=12)
    known = gpt2_server.manager.chat(TURN, **GREEDY, max_new_tokens=12)
    answer = model.invoke(TEXT)
    assert answer.content == known
    assert answer.usage_metadata["output_tokens"] == 12
    pieces = [piece.content for piece in model.stream(TEXT)]
    assert "".join(pieces) == known
    assert len(pieces) > 5


def test_openai_for_javascript(gpt2_server):
    found = run_node("chat.mjs", gpt2_server.url, TEXT)
    known = gpt2_server.manager.complete(TURN, **GREEDY, max_new_tokens=12)
    assert found["whole"] == "".join(found["pieces"]) == known["text"]
    assert found["usage"]["completion_tokens"] == 12
    assert found["usage"]["prompt_tokens"] == known["prompt_tokens"]
    assert [error["name"] for error in found["refused"]] == ["BadRequestError"] * 2
    assert [error["param"] for error in found["refused"]] == ["n", "messages"]


def test_figures_for_prometheus(make_writer, serve):
    server = serve(make_writer())
    for _ in range(2):
        answer = server.client.post("/v1/completions", json={"prompt": TEXT, "max_tokens": 6, "min_tokens": 6}).json()
        server.client.post("/api/unload", json={"model": SLOT})
    prompt = answer["usage"]["prompt_tokens"]
    # The answer is on its way before its sequence has ended.
    eventually(lambda: figures(server.manager)["completed"] == 2)
    text = server.client.get("/metrics").text
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

    assert ask(5) == ask(5) != ask(-5) == ask(2**64 - 5)


def test_stop_texts(sdk, gpt2_server):
    text = gpt2_server.manager.complete(TEXT, **GREEDY, max_new_tokens=30)["text"]
    stop = text[len(text) // 2 :][:3]
    for given in (stop, ["no such text", stop]):
        answer = sdk.completions.create(model=SLOT, prompt=TEXT, temperature=0, max_tokens=30, stop=given)
        assert answer.choices[0].text == text[: text.index(stop)]
        assert answer.choices[0].finish_reason == "stop"


def test_parts_and_roles(sdk, gpt2_server):
    turns = [
        {"role": "developer", "content": "Kısa."},
        {"role": "user", "content": [{"type": "text", "text": "Merhaba"}, {"type": "text", "text": "dünya"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "?", "name": "ayşe"},
    ]
    plain = [("system", "Kısa."), ("user", "Merhaba\ndünya"), ("assistant", ""), ("user", "?")]
    known = gpt2_server.manager.complete(
        [{"role": role, "content": text} for role, text in plain], **GREEDY, max_new_tokens=1
    )
    answer = sdk.chat.completions.create(
        model=SLOT, messages=turns, temperature=0, max_completion_tokens=1, max_tokens=2
    )
    assert answer.choices[0].message.content == known["text"]
    assert answer.usage.completion_tokens == 1


def test_more_parameters_than_openai_has(sdk, gpt2_server):
    more = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "top_k": 0, "min_tokens": 3, "keep_alive": "5m"}
    answer = sdk.completions.create(model=SLOT, prompt=TEXT, temperature=0, max_tokens=20, extra_body=more)
    known = gpt2_server.manager.generate(
        TEXT, do_sample=False, max_new_tokens=20, repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=3
    )
    assert answer.choices[0].text == known


@pytest.mark.parametrize("off", [{"top_k": -1}, {"top_k": 0}, {"top_p": 1}, {"stop": ""}, {"stop": []}, {"stop": [""]}])
def test_other_ways_to_write_that_something_is_off(gpt2_server, off):
    ask = {"prompt": TEXT, "temperature": 1.5, "seed": 3, "max_tokens": 12, "top_k": 0}
    found = gpt2_server.client.post("/v1/completions", json={**ask, **off})
    assert found.status_code == 200, found.text
    known = gpt2_server.client.post("/v1/completions", json=ask).json()
    assert found.json()["choices"] == known["choices"]


def test_a_top_p_of_0_takes_the_likeliest_token(gpt2_server):
    ask = {"prompt": TEXT, "max_tokens": 12}
    found = gpt2_server.client.post("/v1/completions", json={**ask, "temperature": 1.5, "seed": 3, "top_p": 0})
    assert found.status_code == 200, found.text
    known = gpt2_server.client.post("/v1/completions", json={**ask, "temperature": 0}).json()
    assert found.json()["choices"] == known["choices"]


# --- Several answers ---------------------------------------------------------------------------------------------

PROMPTS = [TEXT, "Bir", "İki üç"]


def test_several_prompts(sdk, gpt2_server):
    answer = sdk.completions.create(model=SLOT, prompt=PROMPTS, temperature=0, max_tokens=7)
    known = [gpt2_server.manager.complete(prompt, **GREEDY, max_new_tokens=7) for prompt in PROMPTS]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.text for choice in answer.choices] == [one["text"] for one in known]
    assert answer.usage.prompt_tokens == sum(one["prompt_tokens"] for one in known)
    assert answer.usage.completion_tokens == sum(one["completion_tokens"] for one in known)


def test_prompts_of_token_ids(sdk, gpt2_server):
    tokenizer = Tokenizer.from_file(f"{GPT2}/tokenizer.json")
    ids = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    known = [gpt2_server.manager.complete(prompt, **GREEDY, max_new_tokens=7)["text"] for prompt in PROMPTS]
    several = sdk.completions.create(model=SLOT, prompt=ids, temperature=0, max_tokens=7)
    assert [choice.text for choice in several.choices] == known
    one = sdk.completions.create(model=SLOT, prompt=ids[0], temperature=0, max_tokens=7)
    assert [choice.text for choice in one.choices] == known[:1]
    assert one.usage.prompt_tokens == len(ids[0])


def test_several_answers_to_one_prompt(sdk, gpt2_server):
    ask = {"model": SLOT, "messages": TURN, "temperature": 1.5, "max_tokens": 20, "seed": 5}
    answer = sdk.chat.completions.create(n=3, **ask)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts[1] == sdk.chat.completions.create(**{**ask, "seed": 6}).choices[0].message.content
    known = gpt2_server.manager.complete(TURN, **GREEDY, max_new_tokens=1)
    assert answer.usage.prompt_tokens == known["prompt_tokens"], "a prompt counts once"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    prompts = sdk.completions.create(
        model=SLOT, prompt=PROMPTS[:2], n=2, best_of=2, temperature=0, max_tokens=5
    ).choices
    assert [choice.index for choice in prompts] == [0, 1, 2, 3]
    assert prompts[0].text == prompts[1].text != prompts[2].text == prompts[3].text


@pytest.mark.parametrize("count", [1, 2])
def test_streams_of_several_answers(sdk, gpt2_server, count):
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
    known = [
        gpt2_server.manager.complete(prompt, **GREEDY, max_new_tokens=7) for prompt in PROMPTS for _ in range(count)
    ]
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


def test_langchain_batches(gpt2_server):
    from langchain_openai import OpenAI

    model = OpenAI(
        model=SLOT, base_url=f"{gpt2_server.url}/v1", api_key="any", temperature=0, max_tokens=7, n=2, best_of=2
    )
    found = model.generate(PROMPTS)
    known = [gpt2_server.manager.complete(prompt, **GREEDY, max_new_tokens=7)["text"] for prompt in PROMPTS]
    assert [[one.text for one in answers] for answers in found.generations] == [[text, text] for text in known]


def test_nulls_and_unused_fields(gpt2_server):
    nothing = dict.fromkeys(
        ["stream", "stream_options", "stop", "seed", "n", "top_p", "tools", "logprobs", "logit_bias", "user", "store"]
    )
    answer = gpt2_server.client.post("/v1/chat/completions", json={**nothing, **ASK, "metadata": {"a": 1}})
    assert answer.status_code == 200, answer.text
    ChatAnswer.model_validate(answer.json(), strict=True)
    answer = gpt2_server.client.post("/v1/completions", json={**nothing, "prompt": [TEXT], "max_tokens": 3.0})
    assert answer.status_code == 200, answer.text
    CompletionAnswer.model_validate(answer.json(), strict=True)
    assert answer.json()["usage"]["completion_tokens"] <= 3


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_clients_do_not_learn_of_each_others_prompts(make_writer, serve, path):
    server = serve(make_writer("llama"))
    text = TEXT * 3
    prompt = {"prompt": text} if path == "/v1/completions" else {"messages": [{"role": "user", "content": text}]}
    ask = {**prompt, "max_tokens": 1}

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


def test_the_last_message_is_continued(gpt2_server):
    begun = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "Selam "}]
    text = gpt2_server.manager.apply_chat_template(begun, continue_final_message=True)
    expected = gpt2_server.manager.generate(text, **GREEDY, max_new_tokens=8)
    body = {"messages": begun, "temperature": 0, "max_tokens": 8, "continue_final_message": True}
    for more in ({}, {"add_generation_prompt": False}):
        answer = gpt2_server.client.post("/v1/chat/completions", json={**body, **more}).json()
        assert answer["choices"][0]["message"]["content"] == expected
    for wrong in ({"add_generation_prompt": True}, {"continue_final_message": False, "add_generation_prompt": False}):
        refused = gpt2_server.client.post("/v1/chat/completions", json={**body, **wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "add_generation_prompt")
    for path in ("/v1/completions", "/v1/responses"):
        refused = gpt2_server.client.post(path, json={"prompt": TEXT, "input": TEXT, "continue_final_message": True})
        assert refused.status_code == 400
