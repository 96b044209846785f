"""Thinking over HTTP: the fields that turn it on and off, and thoughts apart from the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...._bridge import in_thread
from ....thinking import opens_thinking
from ...errors import bad_request
from ...fields import unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...._async import Prompt
    from ...._types import GeneratorDescription
    from ....compat import ModelManager
    from ...service import Service

SWITCHES = ("enable_thinking", "thinking")
"""Variables of chat templates that turn thinking on and off."""
_EFFORTS = ("reasoning_effort", "reasoning")
"""Fields with an effort: that of the Responses API is `reasoning`."""
_FIELDS = ("chat_template_kwargs", *_EFFORTS, *SWITCHES)
_DECIDES = "this model's chat template decides whether it thinks; leave it out"
_CANNOT = "this model's chat template does not read it; leave it out"
_ARGUMENTS = frozenset(
    {"messages", "model", "add_generation_prompt", "continue_final_message", "chat_template", "timeout"}
)
"""Arguments of `apply_chat_template`. No variable of the template can have such a name there."""


async def described(service: Service, slot: str) -> GeneratorDescription:
    """What the generator is; loads it."""
    await service.load(slot)
    return await service.describe_generator(slot)


def sent_fields(body: Mapping[str, Any]) -> list[str]:
    """The fields of a request that set variables of the chat template."""
    return [name for name in _FIELDS if body.get(name) not in (None, "", {})]


async def template_variables(service: Service, slot: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of the chat template that a request sets: the core's `chat_template_kwargs`.

    A value that turns thinking off changes nothing for a model that does not think. Some clients always send it.
    Raises `ApiError` 400 for wrong values, for what the template cannot do, and for fields that contradict each other.
    """
    asked = {name: body[name] for name in sent_fields(body)}
    if not asked:
        return {}
    _check(asked)
    about = await described(service, slot)
    reads, found = about["chat_template_variables"], _Variables()
    for name, value in asked.get("chat_template_kwargs", {}).items():
        if name in reads or about["thinks"] or not (name in SWITCHES and value is False):
            found.set("chat_template_kwargs", name, value)
    for field in _EFFORTS:
        if asked.get(field) == "none":
            found.update(field, switched(about, field, on=False))
        elif field in asked:
            if "reasoning_effort" not in reads:
                raise unsupported(field, _CANNOT)
            found.set(field, "reasoning_effort", asked[field])
    for field in SWITCHES:
        if field in asked:
            on = asked[field] is True or asked[field] == {"type": "enabled"}
            found.update(field, switched(about, field, on=on))
    return found.values


def switched(about: GeneratorDescription, field: str, *, on: bool) -> dict[str, Any]:
    """The variable that turns thinking on or off; none if that changes nothing. Raises `ApiError` 400, naming `field`,
    if the model does otherwise.
    """
    reads = about["chat_template_variables"]
    switch = next((name for name in SWITCHES if name in reads), None)
    if switch:
        return {switch: on}
    if field in _EFFORTS and not on and "reasoning_effort" in reads:
        return {"reasoning_effort": "none"}
    if about["thinks"] != on:
        raise unsupported(field, _CANNOT if on else _DECIDES)
    return {}


class _Variables:
    """Variables, and the fields that set them."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._fields: dict[str, str] = {}

    def set(self, field: str, name: str, value: Any) -> None:
        if name in self.values and self.values[name] != value:
            raise bad_request(f"{field} contradicts {self._fields[name]}: send one of them", field)
        self.values[name] = value
        self._fields[name] = field

    def update(self, field: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self.set(field, name, value)


def _check(asked: Mapping[str, Any]) -> None:
    if not isinstance(asked.get("chat_template_kwargs", {}), dict):
        raise bad_request("chat_template_kwargs must be an object", "chat_template_kwargs")
    for field in _EFFORTS:
        if not isinstance(asked.get(field, ""), str):
            raise bad_request(f"{field} must be a text such as none, low or high", field)
    if not isinstance(asked.get("enable_thinking", False), bool):
        raise bad_request("enable_thinking must be true or false", "enable_thinking")
    if asked.get("thinking", False) not in (True, False, {"type": "enabled"}, {"type": "disabled"}):
        raise bad_request('thinking must be {"type": "enabled"} or {"type": "disabled"}', "thinking")


async def thoughts_of_messages(service: Service, slot: str, messages: Any, field: str) -> str | None:
    """`field`, if earlier answers hold thoughts there and the model's template knows what to do with them. Templates of
    models that think put them into the prompt, or leave them out.
    """
    if not isinstance(messages, list) or not any(isinstance(one, dict) and one.get(field) for one in messages):
        return None
    return field if (await described(service, slot))["thinks"] else None


async def opens(service: Service, slot: str, prompt: Prompt, params: Mapping[str, Any]) -> bool:
    """Whether the answer to `prompt` begins within its thoughts, by the parameters of the generation. Raises the core's
    errors for refused prompts.
    """
    await service.load(slot)
    return await in_thread(_opens, service.manager, slot, prompt, params)


def _opens(manager: ModelManager, slot: str, prompt: Any, params: Mapping[str, Any]) -> bool:
    if isinstance(prompt, str):
        return False
    variables = params.get("chat_template_kwargs", {})
    given = {name: value for name, value in variables.items() if name not in _ARGUMENTS}
    continues = params.get("continue_final_message", False)
    whole = manager.apply_chat_template(prompt, slot, continue_final_message=continues, **given)
    last = prompt[-1].get("content") if continues else None
    return opens_thinking(whole, last if isinstance(last, str) else "")
