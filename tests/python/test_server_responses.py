"""`/v1/responses` through the openai SDK and by hand: OpenAI's Responses API, without stored responses."""

from __future__ import annotations

import asyncio
import json
import threading

import openai
import pydantic
import pytest
from generation_servers import ASK, TEXT, TURN, leave
from generators import SLOT, eventually, figures
from model_manager.errors import NotFiniteError, OverloadedError
from model_manager.server.routes.generation import answers
from responses_api import AFTER, BEFORE, EVENTS, GREEDY, PATH, lasting, refused, respond, stream, text_of
from servers import SECONDS, run_node

TURKISH = "Iğdır'ın öğlesi: çağrı, şüphe"


# --- Answers ---------------------------------------------------------------------------------------------------------


def test_an_answer(gpt2_server):
    known = gpt2_server.manager.complete(TURN, do_sample=False, max_new_tokens=12)
    found = respond(gpt2_server, model=SLOT)
    assert found.pop("id").startswith("resp_")
    assert found["output"][0].pop("id").startswith("msg_")
    assert found.pop("created_at") > 0
    part = {"type": "output_text", "text": known["text"], "annotations": [], "logprobs": []}
    cached = found["usage"]["input_tokens_details"].pop("cached_tokens")
    assert cached >= 0
    assert found == {
        "object": "response",
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "completed_at": None,
        "error": None,
        "model": SLOT,
        "output": [{"type": "message", "role": "assistant", "status": "incomplete", "content": [part]}],
        "usage": {
            "input_tokens": known["prompt_tokens"],
            "input_tokens_details": {"cache_write_tokens": 0},
            "output_tokens": 12,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": known["prompt_tokens"] + 12,
        },
        "background": False,
        "instructions": None,
        "max_output_tokens": 12,
        "max_tool_calls": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": 0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
    }


def test_an_answer_that_ends_by_itself(gpt2_server):
    whole = text_of(respond(gpt2_server))
    stop = whole[len(whole) // 2 :][:3]
    found = respond(gpt2_server, stop=stop)
    assert (found["status"], found["output"][0]["status"]) == ("completed", "completed")
    assert found["incomplete_details"] is None
    assert found["completed_at"] >= found["created_at"]
    assert text_of(found) == whole[: whole.index(stop)]
    assert [event["type"] for event in stream(gpt2_server, stop=stop)][-1] == "response.completed"


def test_an_answer_without_text(gpt2_server):
    stop = text_of(respond(gpt2_server))[:1]
    assert text_of(respond(gpt2_server, stop=stop)) == ""
    found = stream(gpt2_server, stop=stop)
    assert [event["type"] for event in found] == [*BEFORE, *AFTER, "response.completed"]
    assert text_of(found[-1]["response"]) == ""


def test_the_sdk(sdk, gpt2_server):
    known = gpt2_server.manager.complete(TURN, do_sample=False, max_new_tokens=12)
    answer = sdk.responses.create(model=SLOT, input=TEXT, **GREEDY)
    assert answer.output_text == known["text"]
    assert answer.status == "incomplete"
    assert answer.usage.output_tokens == 12
    assert answer.error is None


def test_what_the_answer_repeats(gpt2_server):
    fields = {
        "instructions": "Çığ",
        "metadata": {"konu": TURKISH},
        "temperature": 0.5,
        "top_p": 0.25,
        "user": "ayşe",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "reasoning": {"effort": "none"},
    }
    found = respond(gpt2_server, **fields)
    assert {name: found[name] for name in fields} == {**fields, "reasoning": {"effort": "none", "summary": None}}
    assert stream(gpt2_server, **fields)[0]["response"]["metadata"] == fields["metadata"]
    assert respond(gpt2_server, temperature=None)["temperature"] == gpt2_server.manager.config.temperature


CONVERSATION = [
    {"role": "developer", "content": "Kısa."},
    {"role": "user", "content": TURKISH},
    {"role": "assistant", "content": "Olur."},
    {"role": "user", "content": "Ne?\nNasıl?"},
]


def parts(kind, *texts):
    return [{"type": kind, "text": text} for text in texts]


@pytest.mark.parametrize(
    "fields",
    [
        {"input": CONVERSATION},
        {"input": [{**turn, "type": "message", "id": "msg_1", "status": "completed"} for turn in CONVERSATION]},
        {"instructions": "Kısa.", "input": CONVERSATION[1:]},
        {
            "input": [
                {"role": "system", "content": parts("input_text", "Kısa.")},
                {"role": "user", "content": parts("input_text", TURKISH)},
                {
                    "id": "msg_2",
                    "type": "message",
                    "role": "assistant",
                    "status": "completed",
                    "phase": "final_answer",
                    "content": [{**parts("output_text", "Olur.")[0], "annotations": [], "logprobs": []}],
                },
                {"role": "user", "content": parts("input_text", "Ne?", "Nasıl?")},
            ]
        },
    ],
    ids=["plain", "items", "instructions", "parts"],
)
def test_a_conversation_is_that_of_a_chat(endless_server, fields):
    server = endless_server
    chat = server.client.post("/v1/chat/completions", json={**ASK, "max_tokens": 4, "messages": CONVERSATION}).json()
    found = respond(server, **fields, max_output_tokens=4)
    assert text_of(found) == chat["choices"][0]["message"]["content"]
    for ours, theirs in (("input", "prompt"), ("output", "completion"), ("total", "total")):
        assert found["usage"][f"{ours}_tokens"] == chat["usage"][f"{theirs}_tokens"]
    assert found["usage"]["input_tokens_details"]["cached_tokens"] > 0


def test_earlier_outputs_are_sent_back(sdk, gpt2_server):
    """As OpenAI's guide shows it: the items of the answer follow the input."""
    first = sdk.responses.create(model=SLOT, input=TEXT, temperature=0, max_output_tokens=3)
    items = [{"role": "user", "content": TEXT}, *first.output, {"role": "user", "content": "?"}]
    found = sdk.responses.create(model=SLOT, input=items, temperature=0, max_output_tokens=3)
    turns = [*TURN, {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "?"}]
    assert found.output_text == gpt2_server.manager.chat(turns, do_sample=False, max_new_tokens=3)
    dumped = [TURN[0], *(item.model_dump() for item in first.output), {"role": "user", "content": "?"}]
    again = sdk.responses.create(model=SLOT, input=dumped, temperature=0, max_output_tokens=3)
    assert again.output_text == found.output_text


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "max_tool_calls": 5},
        {"reasoning": {"effort": None}},
        {"reasoning": {"effort": "none", "summary": None, "context": "auto", "mode": "standard"}},
        {"reasoning": {}, "text": {}, "metadata": {}, "include": [], "stream_options": None},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}},
        {"include": ["reasoning.encrypted_content", "web_search_call.action.sources"]},
        {"service_tier": "auto", "truncation": "disabled", "store": False, "background": False},
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h"},
        {"previous_response_id": None, "conversation": None, "prompt": None, "top_logprobs": 0},
        {"prompt_cache_options": {"ttl": "30m"}, "context_management": [], "moderation": None},
        {"n": 1, "presence_penalty": 0, "response_format": {"type": "text"}, "seed": 5, "min_tokens": 1},
    ],
)
def test_what_changes_nothing_is_accepted(gpt2_server, fields):
    assert text_of(respond(gpt2_server, **fields)) == text_of(respond(gpt2_server))


def test_more_parameters_than_openai_has(gpt2_server):
    more = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_tokens": 3, "top_k": 0, "keep_alive": "5m"}
    chat = gpt2_server.client.post("/v1/chat/completions", json={**ASK, **more}).json()
    assert text_of(respond(gpt2_server, **more)) == chat["choices"][0]["message"]["content"]


# --- Refused ---------------------------------------------------------------------------------------------------------

KEEPS_NONE = "this server keeps no responses"
ONLY_TEXT = "only text is"
FORM = "ask for the form of the answer in the prompt"
JSON_SCHEMA = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", KEEPS_NONE),
        ({"conversation": "conv_1"}, "conversation", KEEPS_NONE),
        ({"conversation": {"id": "conv_1"}}, "conversation", KEEPS_NONE),
        ({"store": True}, "store", KEEPS_NONE),
        ({"background": True}, "background", "stream: true"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "instructions"),
        ({"truncation": "auto"}, "truncation", "shorter"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, "tools", "leave it out"),
        ({"tool_choice": "required"}, "tool_choice", "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text", FORM),
        ({"text": {"format": JSON_SCHEMA}}, "text", FORM),
        ({"text": {"verbosity": "low"}}, "text", "text.verbosity"),
        ({"text": {"fromat": {"type": "text"}}}, "text.fromat", "did you mean 'format'?"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "chat template"),
        ({"reasoning": {"summary": "auto"}}, "reasoning", "reasoning.summary"),
        ({"include": ["message.output_text.logprobs"]}, "include", "logprobs"),
        ({"include": ["everything"]}, "include", "'everything'"),
        ({"top_logprobs": 3}, "top_logprobs", "leave it out"),
        ({"max_tokens": 5}, "max_tokens", "use max_output_tokens"),
        ({"max_output_tokens": 2**70}, "max_output_tokens", "at most 9223372036854775807"),
        ({"max_tool_calls": 1e300}, "max_tool_calls", "at most 9223372036854775807"),
        ({"messages": TURN}, "messages", "use input"),
        ({"n": 2}, "n", "a request for each"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options", "stream: true"),
        ({"instructions": ["a"]}, "instructions", "must be a text"),
        ({"metadata": {"a": 5}}, "metadata", "texts"),
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "empty"),
        ({"input": None}, "input", "missing"),
        ({"input": "kelime " * 200}, "input", "tokens"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input", "keeps no items"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "o"}]}, "input", "tools"),
        ({"input": [{"type": "reasoning", "id": "r", "summary": []}]}, "input", "input[0] of the type reasoning"),
        ({"input": [*TURN, {"role": "tool", "content": "a"}]}, "input", "input[1].role"),
        *(
            ({"input": [{"role": "user", "content": [{"type": kind, "file_id": "f"}]}]}, "input", ONLY_TEXT)
            for kind in ("input_image", "input_file", "input_audio", "text", "refusal")
        ),
    ],
)
def test_refused(gpt2_server, fields, param, said):
    for more in ({}, {"stream": True} if "stream_options" not in fields else {}):
        error = refused(gpt2_server, **fields, **more)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert said in error["message"]


def test_a_schema_is_refused_by_the_sdk(sdk):
    class Person(pydantic.BaseModel):
        name: str

    with pytest.raises(openai.BadRequestError, match=FORM) as caught:
        sdk.responses.parse(model=SLOT, input=TEXT, text_format=Person)
    assert (caught.value.param, caught.value.code) == ("text", "unsupported_parameter")


def test_responses_are_not_kept(sdk, gpt2_server):
    answer = sdk.responses.create(model=SLOT, input=TEXT, **GREEDY)
    calls = [sdk.responses.retrieve, sdk.responses.delete, sdk.responses.cancel, sdk.responses.input_items.list]
    for call in calls:
        with pytest.raises(openai.NotFoundError, match=KEEPS_NONE) as caught:
            call(answer.id)
        assert (caught.value.param, caught.value.code) == ("response_id", "response_not_found")
        assert answer.id in str(caught.value)
    assert gpt2_server.client.get(PATH).status_code == 405


def test_an_unknown_model(sdk):
    with pytest.raises(openai.NotFoundError, match="gpt-5") as caught:
        sdk.responses.create(model="gpt-5", input=TEXT)
    assert caught.value.code == "model_not_found"


def test_a_key(make_writer, serve):
    server = serve(make_writer(), api_keys=["secret"])
    assert server.client.post(PATH, json={"input": TEXT}).status_code == 401
    right = {"authorization": "Bearer secret"}
    assert server.client.post(PATH, json={"input": TEXT, **GREEDY}, headers=right).status_code == 200


# --- Streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"input": [{"role": "user", "content": "İğ"}], "instructions": "Ş"}])
def test_a_stream_is_the_answer(gpt2_server, fields):
    whole = respond(gpt2_server, **fields)
    found = stream(gpt2_server, **fields)
    deltas = [event["delta"] for event in found if event["type"] == "response.output_text.delta"]
    assert len(deltas) > 5
    kinds = [event["type"] for event in found]
    assert kinds == [*BEFORE, *["response.output_text.delta"] * len(deltas), *AFTER, "response.incomplete"]
    assert "".join(deltas) == text_of(whole)
    created, begun, added, part, *_, text_done, part_done, item_done, end = found
    assert created["response"] == begun["response"]
    assert (begun["response"]["status"], begun["response"]["output"], begun["response"]["usage"]) == (
        "in_progress",
        [],
        None,
    )
    assert (added["item"]["status"], added["item"]["content"]) == ("in_progress", [])
    assert part["part"]["text"] == ""
    (message,) = end["response"]["output"]
    assert item_done["item"] == message
    assert [part_done["part"]] == message["content"]
    assert text_done["text"] == part_done["part"]["text"]
    assert {event["item_id"] for event in found if "item_id" in event} == {added["item"]["id"], message["id"]}
    assert end["response"]["id"] == created["response"]["id"]
    assert lasting(end["response"]) == lasting(whole)


def test_streams_of_the_sdk(sdk):
    known = sdk.responses.create(model=SLOT, input=TEXT, **GREEDY).output_text
    events = list(sdk.responses.create(model=SLOT, input=TEXT, stream=True, **GREEDY))
    assert all(type(event) is EVENTS[event.type] for event in events)
    assert events[-1].response.output_text == known
    stop = {"extra_body": {"stop": known[-2:]}}
    with sdk.responses.stream(model=SLOT, input=TEXT, **GREEDY, **stop) as written:
        text = "".join(event.delta for event in written if event.type == "response.output_text.delta")
    assert written.get_final_response().output_text == text == known[: known.index(known[-2:])]


async def test_the_asynchronous_sdk(gpt2_server):
    async with openai.AsyncOpenAI(base_url=f"{gpt2_server.url}/v1", api_key="any", timeout=SECONDS) as client:
        answer = await client.responses.create(model=SLOT, input=TEXT, **GREEDY)
        events = await client.responses.create(model=SLOT, input=TEXT, stream=True, **GREEDY)
        deltas = [event.delta async for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == answer.output_text


def test_langchain(endless_server):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model=SLOT,
        base_url=f"{endless_server.url}/v1",
        api_key="any",
        temperature=0,
        max_tokens=12,
        use_responses_api=True,
    )
    known = endless_server.manager.chat(TURN, do_sample=False, max_new_tokens=12)
    answer = model.invoke(TEXT)
    assert answer.text == known
    assert answer.usage_metadata["output_tokens"] == 12
    assert "".join(piece.text for piece in model.stream(TEXT)) == known
    again = model.invoke([("system", "K"), ("user", "a"), answer, ("user", "?")])
    assert again.usage_metadata["input_tokens"] > answer.usage_metadata["input_tokens"]


def test_openai_for_javascript(gpt2_server):
    found = run_node("responses.mjs", gpt2_server.url, TEXT)
    known = gpt2_server.manager.complete(TURN, do_sample=False, max_new_tokens=12)
    assert found["whole"] == "".join(found["pieces"]) == found["streamed"] == known["text"]
    assert (found["status"], found["usage"]["output_tokens"]) == ("incomplete", 12)
    assert [(one["status"], one["param"]) for one in found["refused"]] == [
        (400, "previous_response_id"),
        (404, "response_id"),
    ]


def test_characters_are_not_split(make_writer, serve):
    server = serve(make_writer("qwen3"))
    beyond_ascii = set()
    for seed in range(8):
        fields = {"temperature": 1.8, "top_k": 0, "max_output_tokens": 40, "seed": seed, "input": TURKISH}
        whole = text_of(respond(server, **fields))
        deltas = [event["delta"] for event in stream(server, **fields) if "delta" in event]
        assert "".join(deltas) == whole
        beyond_ascii.update(character for character in whole if "\x7f" < character != "\ufffd")
    assert beyond_ascii


@pytest.mark.parametrize(
    ("error", "code"),
    [(NotFiniteError("NaN in the middle"), "server_error"), (OverloadedError("full"), "rate_limit_exceeded")],
)
def test_an_error_in_the_middle_of_a_stream(gpt2_server, monkeypatch, error, code):
    class Failing(answers.AsyncTextStream):
        async def __anext__(self):
            if self.given:
                raise error
            self.given = True
            return "a piece"

        given = False

    monkeypatch.setattr(answers, "AsyncTextStream", Failing)
    *_, delta, last = stream(gpt2_server)
    assert delta["delta"] == "a piece"
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == code
    assert (text_of(last["response"]), last["response"]["output"][0]["status"]) == ("a piece", "incomplete")


def test_a_stream_that_cannot_begin_has_a_status(gpt2_server):
    assert refused(gpt2_server, input="kelime " * 200, stream=True)["code"] == "context_length_exceeded"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_ends_its_answer(endless_server, streamed):
    manager = endless_server.manager
    body = {"input": TEXT, "max_output_tokens": 50_000, "min_tokens": 50_000, "stream": streamed}

    def after(connection):
        while streamed and b"response.output_text.delta" not in connection.recv(4096):
            pass
        eventually(lambda: figures(manager)["active"] == 1)

    leave(endless_server, PATH, body, after)
    eventually(lambda: figures(manager)["cancelled"] == 1)
    assert figures(manager)["generated_tokens"] < 50_000
    eventually(lambda: endless_server.service.in_flight == 0)
    assert respond(endless_server, max_output_tokens=2)["usage"]["output_tokens"] == 2


def test_a_client_that_leaves_while_the_model_loads(endless_server, monkeypatch):
    begun = threading.Event()

    async def load(_):
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(endless_server.service, "load", load)
    leave(endless_server, PATH, {"input": TEXT}, lambda _: begun.wait(SECONDS))
    eventually(lambda: endless_server.service.in_flight == 0)


def test_a_model_that_cannot_be_loaded(make_writer, serve):
    server = serve(make_writer(generator_model="/no/such/model"))
    for streamed in (False, True):
        error = refused(server, 503, stream=streamed)
        assert (error["type"], error["code"]) == ("service_unavailable", "model_unavailable")
        assert "/no/such/model" in error["message"]
    assert refused(server, temperature=-1, top_p="high", store=True)["param"] == "store"


def test_request_timeout_bounds_a_stream(endless, serve):
    body = {"input": TEXT, "max_output_tokens": 50_000, "min_tokens": 50_000, "stream": True}
    # A busy machine may need longer for the first piece, before which the status says what went wrong.
    for seconds in (0.3, 1, 3, 9):
        answer = serve(endless, request_timeout=seconds).client.post(PATH, json=body)
        if answer.status_code == 200:
            break
        assert answer.status_code == 504
    last = json.loads(answer.text.split("\n\n")[-2].partition("\ndata: ")[2])
    assert last["type"] == "response.failed"
    error = last["response"]["error"]
    assert error["code"] == "server_error"
    # The server's timer and the generator's end at the same time; either may be first.
    assert any(said in error["message"] for said in ("request_timeout", "was not ready within"))
    eventually(lambda: figures(endless)["active"] == 0)


# --- The rules of all endpoints --------------------------------------------------------------------------------------


def test_users_do_not_learn_of_each_others_prompts(make_writer, serve):
    server = serve(make_writer("llama"))

    def cached(user):
        found = respond(server, input=TEXT * 3, max_output_tokens=1, user=user)
        return found["usage"]["input_tokens_details"]["cached_tokens"]

    assert [cached(user) > 0 for user in ("a", "b", "a", "b", None)] == [False, False, True, True, False]


@pytest.mark.parametrize("path", [f"{PATH}/input_tokens", f"{PATH}/compact"])
def test_other_operations_are_unknown_paths(gpt2_server, path):
    answer = gpt2_server.client.post(path, json={"input": TEXT})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_path")
    answer = gpt2_server.client.get(f"{PATH}/resp_1/input_items")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")


def test_metrics_have_the_path(make_writer, serve):
    server = serve(make_writer())
    for fields in ({}, {"stream": True}):
        server.client.post(PATH, json={"input": TEXT, **GREEDY, **fields})
    assert server.client.get("/v1/responses/resp_1").status_code == 404
    text = server.client.get("/metrics").text
    assert f'http_requests_total{{method="POST",path="{PATH}",status="200"}} 2.0' in text
    assert f'http_requests_total{{method="GET",path="{PATH}/{{response_id}}",status="404"}} 1.0' in text
