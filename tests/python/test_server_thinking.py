"""Thinking over HTTP: it is turned on and off, and thoughts come apart from the answer to those who ask for it."""

from __future__ import annotations

import json

import pytest
from generation_servers import TURN, events
from generators import SLOT
from model_manager._async import AsyncTextStream, acomplete
from model_manager.server.routes.generation import answers
from model_manager.server.routes.ollama import generate
from thinking_servers import ANSWER, EFFORT, PIECES, THOUGHTS, templated_servers

GREEDY = {"temperature": 0, "max_tokens": 6}
OPTIONS = {"temperature": 0, "num_predict": 6}
WRITTEN = "".join(PIECES)
GRANITE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if thinking %}Use <think></think>.{% endif %}"
DEEP = json.loads("[" * 200 + "]" * 200)
OWN = {"effort": EFFORT, "granite": GRANITE, "plain": "{% for m in messages %}{{ m.content }}{% endfor %}"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Servers of a tiny GPT-2 with the templates of other models, by their names."""
    with templated_servers(tmp_path_factory.mktemp("thinking"), OWN) as serve:
        yield serve


@pytest.fixture
def scripted(monkeypatch):
    """Every answer is `WRITTEN`, in the pieces of `PIECES`; its figures are those of a tiny model."""

    class Stream(AsyncTextStream):
        def __init__(self, *args):
            super().__init__(*args)
            self.left = list(PIECES)

        async def __anext__(self):
            if self.left:
                return self.left.pop(0)
            while True:
                await super().__anext__()

    async def complete(*args, **params):
        return {**await acomplete(*args, **params), "text": WRITTEN}

    for module in (answers, generate):
        monkeypatch.setattr(module, "AsyncTextStream", Stream)
        monkeypatch.setattr(module, "acomplete", complete)


def chat(server, messages=TURN, **fields):
    return server.client.post("/v1/chat/completions", json={"messages": messages, **GREEDY, **fields})


def content(answer):
    assert answer.status_code == 200, answer.text
    message = answer.json()["choices"][0]["message"]
    assert list(message) == ["role", "content", "refusal"]
    return message["content"]


def error(answer):
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def ollama(server, path="/api/chat", stream=False, **fields):
    asked = {"messages": TURN} if path == "/api/chat" else {"prompt": TURN[0]["content"]}
    body = {"model": SLOT, "stream": stream, "options": OPTIONS, **asked, **fields}
    return server.client.post(path, json=body)


def expected(server, messages=TURN, **variables):
    manager = server.manager
    return manager.generate(manager.apply_chat_template(messages, **variables), do_sample=False, max_new_tokens=6)


# --- On and off ------------------------------------------------------------------------------------------------------

OFF = [
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"reasoning_effort": "none"},
    {"enable_thinking": False},
    {"thinking": {"type": "disabled"}},
    {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": False}},
]
ON = [
    {"chat_template_kwargs": {"enable_thinking": True}},
    {"enable_thinking": True},
    {"thinking": {"type": "enabled"}},
]


def test_a_switch_is_set(servers):
    server = servers("qwen3")
    plain, off = expected(server), expected(server, enable_thinking=False)
    assert plain != off
    assert content(chat(server)) == plain
    for fields in OFF:
        assert content(chat(server, **fields)) == off, fields
    for fields in ON:
        assert content(chat(server, **fields)) == plain, fields
    assert ollama(server).json()["message"]["content"] == plain
    assert ollama(server, think=False).json()["message"]["content"] == off
    assert ollama(server, "/api/generate", think=False).json()["response"] == off
    sent = {"input": TURN[0]["content"], "temperature": 0, "max_output_tokens": 16, "reasoning": {"effort": "none"}}
    text = server.client.post("/v1/responses", json=sent).json()["output"][0]["content"][0]["text"]
    assert text.startswith(off)


def test_a_switch_of_another_name(servers):
    server = servers("granite")
    plain, on = expected(server), expected(server, thinking=True)
    assert plain != on
    assert content(chat(server, reasoning_effort="none")) == plain
    assert content(chat(server, chat_template_kwargs={"thinking": True})) == on
    assert content(chat(server, enable_thinking=True)) == on
    assert ollama(server, think=False).json()["message"]["content"] == plain


def test_an_effort(servers):
    server = servers("effort")
    for effort in ("low", "none", "xhigh"):
        assert content(chat(server, reasoning_effort=effort)) == expected(server, reasoning_effort=effort)
    answer = ollama(server, think="high").json()["message"]
    assert answer["content"] == expected(server, reasoning_effort="high")
    said = error(chat(servers("qwen3"), reasoning_effort="low"))
    assert (said["param"], said["code"]) == ("reasoning_effort", "unsupported_parameter")
    said = ollama(servers("qwen3"), think="low").json()
    assert said == {"error": 'think value "low" is not supported for this model'}


def test_a_model_that_does_not_think(servers):
    server = servers("plain")
    plain = content(chat(server))
    for fields in OFF:
        assert content(chat(server, **fields)) == plain, fields
    for fields in ON:
        assert error(chat(server, **fields))["param"] in fields
    assert ollama(server, think=False).json()["message"]["content"] == plain
    for path in ("/api/chat", "/api/generate"):
        for think in (True, "low"):
            answer = ollama(server, path, think=think)
            assert answer.status_code == 400
            assert answer.json() == {"error": f'"{SLOT}" does not support thinking'}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        (
            {"chat_template_kwargs": {"thinking": False}},
            "chat_template_kwargs",
            'chat_template_kwargs has "thinking", wh',
        ),
        ({"chat_template_kwargs": {"tools": DEEP}}, "chat_template_kwargs", "chat_template_kwargs nest more than 128"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "the call or the model sets"),
        ({"chat_template_kwargs": 5}, "chat_template_kwargs", "must be an object"),
        ({"chat_template_kwargs": ["enable_thinking"]}, "chat_template_kwargs", "must be an object"),
        ({"reasoning_effort": 5}, "reasoning_effort", "must be a text"),
        ({"enable_thinking": "no"}, "enable_thinking", "must be true or false"),
        ({"thinking": {"type": "auto"}}, "thinking", '{"type": "enabled"}'),
        ({"separate_reasoning": "yes"}, "separate_reasoning", "must be true or false"),
        ({"enable_thinking": True, "reasoning_effort": "none"}, "enable_thinking", "contradicts reasoning_effort"),
        ({"messages": [{**TURN[0], "reasoning_content": "hm"}]}, "messages", "messages[0].reasoning_content"),
        ({"messages": [{"role": "assistant", "content": "a", "reasoning_content": 5}]}, "messages", "must be a text"),
    ],
)
def test_what_is_refused(servers, fields, param, said):
    found = error(chat(servers("qwen3"), **fields))
    assert found["param"] == param
    assert said in found["message"]
    assert found["message"].count(param) == 1 or param in {"enable_thinking", "thinking", "messages"}


def test_a_prompt_that_goes_past_the_template(servers):
    for fields in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        answer = servers("qwen3").client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2, **fields})
        assert error(answer)["param"] in fields
        answer = servers("plain").client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2, **fields})
        assert answer.status_code == 200
    for think in (True, False):
        answer = ollama(servers("qwen3"), "/api/generate", raw=True, think=think)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("think is not supported here: a raw prompt")


# --- Thoughts apart from the answer ----------------------------------------------------------------------------------


def deltas(answer):
    return [json.loads(one)["choices"][0] for one in events(answer)[:-1]]


def test_content_is_what_the_model_wrote_unless_a_request_asks_otherwise(servers, scripted):
    for name in ("qwen3", "deepseek_r1"):
        assert content(chat(servers(name))) == WRITTEN
        assert content(chat(servers(name), separate_reasoning=False)) == WRITTEN
        found = deltas(chat(servers(name), stream=True))
        assert [one["delta"].get("content", "") for one in found] == ["", *PIECES, ""]
        assert ollama(servers(name)).json()["message"] == {"role": "assistant", "content": WRITTEN}


def test_thoughts_have_a_field_of_their_own(servers, scripted):
    for name in ("qwen3", "deepseek_r1"):
        answer = chat(servers(name), separate_reasoning=True, n=2).json()
        message = {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHTS, "refusal": None}
        assert [one["message"] for one in answer["choices"]] == [message, message]


def test_thoughts_have_events_of_their_own(servers, scripted):
    found = deltas(chat(servers("qwen3"), separate_reasoning=True, stream=True))
    assert [one["delta"] for one in found] == [
        {"role": "assistant", "content": ""},
        *({"reasoning_content": piece} for piece in ("Hm", ",", "\nışık")),
        *({"content": piece} for piece in ("Ev", "et", ".")),
        {},
    ]
    assert [one["finish_reason"] for one in found][:-1] == [None] * 7
    several = deltas(chat(servers("qwen3"), separate_reasoning=True, stream=True, n=2))
    for index in (0, 1):
        own = [one["delta"] for one in several if one["index"] == index]
        assert "".join(one.get("reasoning_content", "") for one in own) == THOUGHTS
        assert "".join(one.get("content", "") for one in own) == ANSWER


@pytest.mark.parametrize(("path", "key"), [("/api/chat", "content"), ("/api/generate", "response")])
def test_thoughts_in_the_form_of_ollama(servers, scripted, path, key):
    answer = ollama(servers("qwen3"), path, think=True).json()
    message = answer.get("message", answer)
    assert (message[key], message["thinking"]) == (ANSWER, THOUGHTS)
    lines = [json.loads(line) for line in ollama(servers("qwen3"), path, stream=True, think=True).text.splitlines()]
    parts = [line.get("message", line) for line in lines]
    assert [(part.get("thinking", ""), part[key]) for part in parts] == [
        *(("Hm", ""), (",", ""), ("\nışık", "")),
        *(("", "Ev"), ("", "et"), ("", "."), ("", "")),
    ]
    assert [line["done"] for line in lines] == [False] * 6 + [True]


def test_an_answer_that_ends_within_its_thoughts(servers):
    """The prompt of DeepSeek-R1 ends with `<think>`, and a tiny model never closes it."""
    server = servers("deepseek_r1")
    text = content(chat(server))
    message = chat(server, separate_reasoning=True).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("", text.lstrip())
    found = deltas(chat(server, separate_reasoning=True, stream=True))
    assert "".join(one["delta"].get("reasoning_content", "") for one in found) == text.lstrip()
    assert not any(one["delta"].get("content") for one in found)
    answer = ollama(server, think=True).json()["message"]
    assert (answer["content"], answer["thinking"]) == ("", text.lstrip())


def test_an_answer_without_thoughts(servers):
    for name in ("plain", "qwen3"):
        text = content(chat(servers(name)))
        message = chat(servers(name), separate_reasoning=True).json()["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == (text, None)
    answer = ollama(servers("qwen3"), think=True).json()["message"]
    assert answer == {"role": "assistant", "content": text}


def test_messages_may_hold_the_thoughts_of_earlier_answers(servers):
    """Clients send back what they got. The template decides what becomes of it."""
    server = servers("qwen3")
    turns = [*TURN, {"role": "assistant", "content": "Evet.", "reasoning_content": "Hm."}, *TURN]
    assert content(chat(server, turns)) == expected(server, turns)
    last = turns[:2]
    assert expected(server, last) != expected(server, [*TURN, {"role": "assistant", "content": "Evet."}])
    assert content(chat(server, last)) == expected(server, last)
    own = [*TURN, {"role": "assistant", "content": "Evet.", "thinking": "Hm."}, *TURN]
    assert ollama(server, messages=own).json()["message"]["content"] == expected(server, turns)
    assert error(chat(servers("plain"), turns))["message"].startswith("messages[1].reasoning_content is not supported")


def test_show_says_that_a_model_can_think(servers):
    for name, thinks in (("qwen3", ["thinking"]), ("plain", [])):
        servers(name).manager.load(SLOT)
        shown = servers(name).client.post("/api/show", json={"model": SLOT}).json()
        assert shown["capabilities"] == ["completion", *thinks]
