"""The Responses API of models that think: thoughts are items of their own, and are sent back as such."""

from __future__ import annotations

import openai
import pytest
from generation_servers import TEXT, TURN
from generators import SLOT
from model_manager._async import AsyncTextStream, acomplete
from model_manager.server.routes.generation import answers
from responses_api import lasting, refused, respond, stream
from servers import SECONDS
from thinking_servers import ANSWER, EFFORT, PIECES, THOUGHTS, templated_servers

KEPT = (
    "{% for m in messages %}[{{ m.reasoning_content }}|{{ m.content }}]{% endfor %}"
    "{% if false %}<think></think>{% endif %}"
)
OWN = {"effort": EFFORT, "kept": KEPT}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Servers of a tiny GPT-2 with the templates of other models, by their names."""
    with templated_servers(tmp_path_factory.mktemp("thinking"), OWN) as serve:
        yield serve


@pytest.fixture
def script(monkeypatch):
    """`script(*pieces)`: every answer has these pieces; its figures are those of a tiny model."""

    def write(*pieces):
        class Stream(AsyncTextStream):
            def __init__(self, *args):
                super().__init__(*args)
                self.left = list(pieces)

            async def __anext__(self):
                if self.left:
                    return self.left.pop(0)
                while True:
                    await super().__anext__()

            @property
            def completion(self):
                done = super().completion
                return done and {**done, "text": "".join(pieces)}

        async def complete(*args, **params):
            return {**await acomplete(*args, **params), "text": "".join(pieces)}

        monkeypatch.setattr(answers, "AsyncTextStream", Stream)
        monkeypatch.setattr(answers, "acomplete", complete)

    return write


def items(response):
    return [(item["type"], item["status"], *(part["text"] for part in item["content"])) for item in response["output"]]


def kinds(events):
    return [(event["type"].removeprefix("response."), event.get("output_index")) for event in events]


def test_thoughts_are_an_item(servers, script):
    server = servers("qwen3")
    script(*PIECES)
    whole = respond(server)
    assert items(whole) == [("reasoning", "completed", THOUGHTS), ("message", "incomplete", ANSWER)]
    assert whole["output"][0]["summary"] == []
    assert whole["output"][0]["id"].startswith("rs_")
    usage = whole["usage"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"] == 12
    found = stream(server)
    assert kinds(found) == [
        ("created", None),
        ("in_progress", None),
        ("output_item.added", 0),
        ("content_part.added", 0),
        *[("reasoning_text.delta", 0)] * 3,
        ("reasoning_text.done", 0),
        ("content_part.done", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("content_part.added", 1),
        *[("output_text.delta", 1)] * 3,
        ("output_text.done", 1),
        ("content_part.done", 1),
        ("output_item.done", 1),
        ("incomplete", None),
    ]
    assert lasting(found[-1]["response"]) == lasting(whole)
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == found[-1]["response"]["output"]


@pytest.mark.parametrize(
    ("template", "pieces", "expected"),
    [
        ("qwen3", ["Ev", "et."], [("message", "incomplete", ANSWER)]),
        ("qwen3", ["<think>\n", "\n</think>\n\nEvet."], [("message", "incomplete", ANSWER)]),
        ("qwen3", ["<think>\nHm"], [("reasoning", "incomplete", "Hm")]),
        (
            "deepseek_r1",
            ["Hm\n", "</think>", "Evet."],
            [("reasoning", "completed", "Hm"), ("message", "incomplete", ANSWER)],
        ),
        ("zephyr", ["<think>", "Evet."], [("message", "incomplete", "<think>Evet.")]),
    ],
)
def test_other_answers(servers, script, template, pieces, expected):
    server = servers(template)
    script(*pieces)
    assert items(respond(server)) == expected
    end = stream(server)[-1]["response"]
    assert items(end) == expected
    tokens = end["usage"]["output_tokens_details"]["reasoning_tokens"]
    assert (tokens > 0) == (expected[0][0] == "reasoning")
    if len(expected) == 1 and tokens:
        assert tokens == end["usage"]["output_tokens"]


def test_the_sdk(servers, script):
    server = servers("qwen3")
    script(*PIECES)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=SECONDS) as client:
        answer = client.responses.create(model=SLOT, input=TEXT)
        assert answer.output_text == ANSWER
        assert answer.output[0].content[0].text == THOUGHTS
        with client.responses.stream(model=SLOT, input=TEXT) as written:
            deltas = [event.delta for event in written if event.type == "response.reasoning_text.delta"]
        assert "".join(deltas) == THOUGHTS
        items = [{"role": "user", "content": "a"}, *answer.output, {"role": "user", "content": "?"}]
        again = client.responses.create(model=SLOT, input=items, max_output_tokens=1)
    assert again.output_text == ANSWER


def reasoning(text, **more):
    return {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
        **more,
    }


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([reasoning("b"), {"role": "assistant", "content": "c"}], "[|a][b|c][|d]"),
        ([reasoning("b")], "[|a][b|][|d]"),
        ([reasoning("b"), {"role": "user", "content": "c"}], "[|a][b|][|c][|d]"),
        ([reasoning("b", content=None, encrypted_content=None), {"role": "assistant", "content": "c"}], "[|a][|c][|d]"),
    ],
)
def test_thoughts_are_sent_back(servers, sent, expected):
    server = servers("kept")
    given = [{"role": "user", "content": "a"}, *sent, {"role": "user", "content": "d"}]
    known = server.manager.complete(expected, do_sample=False, max_new_tokens=5)
    found = respond(server, input=given, max_output_tokens=5)
    assert found["usage"]["input_tokens"] == known["prompt_tokens"]
    assert items(found) == [("message", "incomplete", known["text"])]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (reasoning("b", encrypted_content="x"), "input[1].encrypted_content"),
        (reasoning("b", summary=[{"type": "summary_text", "text": "s"}]), "input[1].summary"),
        (reasoning("b", content="b"), "input[1].content"),
        (reasoning("b", content=[{"type": "text", "text": "b"}]), "input[1].content"),
    ],
)
def test_other_thoughts_are_refused(servers, item, said):
    error = refused(servers("qwen3"), input=[*TURN, item])
    assert error["param"] == "input"
    assert said in error["message"]


def test_thoughts_for_a_model_that_does_not_think(servers):
    assert "does not think" in refused(servers("zephyr"), input=[*TURN, reasoning("b")])["message"]
    assert refused(servers("qwen3"), input=[reasoning("b", content=[])])["code"] == "empty_input"


def test_an_effort(servers):
    server = servers("effort")
    for effort in ("none", "high"):
        prompt = server.manager.apply_chat_template(TURN, reasoning_effort=effort)
        known = server.manager.generate(prompt, do_sample=False, max_new_tokens=5)
        found = respond(server, reasoning={"effort": effort}, max_output_tokens=5)
        assert items(found) == [("message", "incomplete", known)]
        assert found["reasoning"] == {"effort": effort, "summary": None}
    assert "one of none" in refused(server, reasoning={"effort": "vast"})["message"]


@pytest.mark.parametrize(
    "off",
    [
        {"reasoning": {"effort": "none"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"enable_thinking": False},
        {"thinking": {"type": "disabled"}},
    ],
)
def test_thinking_is_turned_off(servers, off):
    server = servers("qwen3")
    prompt = server.manager.apply_chat_template(TURN, enable_thinking=False)
    known = server.manager.complete(prompt, do_sample=False, max_new_tokens=5)
    found = respond(server, **off, max_output_tokens=5)
    assert found["usage"]["input_tokens"] == known["prompt_tokens"]
    assert items(found) == [("message", "incomplete", known["text"])]
