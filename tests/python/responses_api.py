"""Shared by the tests of the Responses API: requests whose answers are checked with the shapes of OpenAI's SDK."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pydantic
from generation_servers import TEXT
from model_manager.server.routes.responses.schemas import ResponseAnswer
from openai.types import responses as shapes

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/v1/responses"
GREEDY = {"temperature": 0, "max_output_tokens": 12}
EVENTS = {
    "response.created": shapes.ResponseCreatedEvent,
    "response.in_progress": shapes.ResponseInProgressEvent,
    "response.output_item.added": shapes.ResponseOutputItemAddedEvent,
    "response.content_part.added": shapes.ResponseContentPartAddedEvent,
    "response.reasoning_text.delta": shapes.ResponseReasoningTextDeltaEvent,
    "response.reasoning_text.done": shapes.ResponseReasoningTextDoneEvent,
    "response.output_text.delta": shapes.ResponseTextDeltaEvent,
    "response.output_text.done": shapes.ResponseTextDoneEvent,
    "response.content_part.done": shapes.ResponseContentPartDoneEvent,
    "response.output_item.done": shapes.ResponseOutputItemDoneEvent,
    "response.completed": shapes.ResponseCompletedEvent,
    "response.incomplete": shapes.ResponseIncompleteEvent,
    "response.failed": shapes.ResponseFailedEvent,
}
BEFORE = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
]
AFTER = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


def unknown_fields(value: Any, where: str = "") -> Iterator[str]:
    """The fields that OpenAI's SDK does not know."""
    if isinstance(value, pydantic.BaseModel):
        yield from (f"{where}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from unknown_fields(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from unknown_fields(one, f"{where}[{index}]")


def check(shape: type[pydantic.BaseModel], value: dict[str, Any], response: str = "") -> None:
    """`value` has exactly the fields of `shape`, of OpenAI's SDK, and `store`, which OpenAI's answers have too."""
    found = shape.model_validate_json(json.dumps(value), strict=True)
    assert set(unknown_fields(found)) == {f"{response}.store"}.intersection(unknown_fields(found))


def respond(server, **fields):
    """The answer to `fields`, whose shape is checked."""
    answer = server.client.post(PATH, json={"input": TEXT, **GREEDY, **fields})
    assert answer.status_code == 200, answer.text
    check(shapes.Response, answer.json())
    ResponseAnswer.model_validate(answer.json(), strict=True)
    return answer.json()


def stream(server, **fields):
    """The events of a stream, whose shapes, names and numbers are checked."""
    answer = server.client.post(PATH, json={"input": TEXT, **GREEDY, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *blocks, end = answer.text.split("\n\n")
    assert end == ""
    found = []
    for block in blocks:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        check(EVENTS[event["type"]], event, ".response")
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def refused(server, status=400, **fields):
    answer = server.client.post(PATH, json={"input": TEXT, **GREEDY, **fields})
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def text_of(response):
    ((part,),) = [message["content"] for message in response["output"]]
    return part["text"]


def lasting(response):
    """What two answers to the same request have in common."""
    one = json.loads(json.dumps(response))
    for name in ("id", "created_at", "completed_at"):
        del one[name]
    for message in one["output"]:
        del message["id"]
    one["usage"]["input_tokens_details"] = None
    return one
