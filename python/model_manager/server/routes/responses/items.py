"""The input of a request as a conversation. Items other than messages of text are refused, never ignored."""

from __future__ import annotations

from typing import Any

from ...errors import bad_request
from ...fields import unsupported
from ..generation.request import ROLES
from ..vectors import shown

_ITEM = 'a message: {"role": ..., "content": ...}'
_PART = '{"type": "input_text", "text": ...}'
# Outputs that are sent back have the first ones; the answer depends on none of them.
_NOTES = ("id", "status", "phase", "cache_control", "prompt_cache_breakpoint")
_MESSAGE = frozenset({"type", "role", "content", *_NOTES})
_TEXT_PART = frozenset({"type", "text", "annotations", "logprobs", "index", *_NOTES})
_TEXTS = frozenset({"input_text", "output_text"})
_TOOLS = "tools are not supported; leave it out"
_REMEDIES = {
    "item_reference": "this server keeps no items; send the item itself, as clients do with store: false",
    "reasoning": "the model does not think; leave it out",
    "compaction": "send the messages themselves",
}
"""Remedies by the type of an item; those of tools have another."""


def conversation(body: dict[str, Any], thinks: bool) -> list[dict[str, str]]:
    """The messages of `instructions` and `input`. Raises `ApiError` 400 that names the field and the item.

    Args:
        body: The request.
        thinks: Whether the model's template knows what to do with the thoughts of earlier answers.
    """
    instructions, given = body.get("instructions"), body.get("input")
    if not isinstance(instructions, str | None):
        raise bad_request("instructions must be a text; send other messages as items of input", "instructions")
    if given is None:
        raise bad_request("input is missing: send a text or a list of messages", "input")
    if not isinstance(given, str | list):
        raise bad_request("input must be a text or a list of messages", "input")
    if not given:
        raise bad_request("input is empty: send a text or a list of messages", "input", "empty_input")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    # Thoughts stand before the message that they belong to; an answer may end within its thoughts.
    pending: dict[str, str] | None = None
    for index, item in enumerate(given):
        where = f"input[{index}]"
        if thinks and isinstance(item, dict) and item.get("type") == "reasoning":
            if thoughts := _thoughts(item, where):
                pending = {"role": "assistant", "content": "", "reasoning_content": thoughts}
                messages.append(pending)
            continue
        message = _message(item, where)
        if pending is not None and message["role"] == "assistant":
            pending["content"] = message["content"]
        else:
            messages.append(message)
        pending = None
    if not messages:
        raise bad_request("input holds no message: send one", "input", "empty_input")
    return messages


def texts(body: dict[str, Any]) -> list[Any]:
    """The same for `count_texts`, not checked yet."""
    instructions, given = body.get("instructions"), body.get("input")
    first = [instructions] if instructions else []
    return [*first, *(given if isinstance(given, list) else [given])]


def _message(item: Any, where: str) -> dict[str, str]:
    if not isinstance(item, dict):
        raise bad_request(f"{where} must be {_ITEM}", "input")
    kind = item.get("type")
    if kind not in (None, "message"):
        if not isinstance(kind, str):
            raise bad_request(f"{where}.type must be a text", "input")
        remedy = _REMEDIES.get(kind, _TOOLS if "call" in kind else "only messages are")
        raise unsupported(f"{where} of the type {kind[:100]}", remedy, "input")
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise bad_request(f"{where}.role must be one of {', '.join(ROLES)}, not {shown(role)}", "input")
    for name, value in item.items():
        # The others are null or empty in the items of answers.
        if value and name not in _MESSAGE:
            raise unsupported(f"{where}.{name[:100]}", "leave it out", "input")
    content = item.get("content")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{where}.content[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise bad_request(f"{where}.content must be a text, or a list of parts {_PART}", "input")
    return {"role": ROLES[role], "content": content}


def _thoughts(item: dict[str, Any], where: str) -> str:
    """The text of an earlier answer's thoughts."""
    for name in ("summary", "encrypted_content"):
        if item.get(name):
            raise unsupported(f"{where}.{name}", "only the text of thoughts in content is; leave it out", "input")
    content = item.get("content")
    parts = [] if content is None else content
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and part.get("type") == "reasoning_text" and isinstance(part.get("text"), str)
        for part in parts
    ):
        raise bad_request(f'{where}.content must be a list of {{"type": "reasoning_text", "text": ...}}', "input")
    return "\n".join(part["text"] for part in parts)


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise bad_request(f"{where} must be {_PART}", "input")
    if kind not in _TEXTS:
        raise unsupported(f"{where} of the type {kind[:100]}", f"only text is, as {_PART}", "input")
    for name, value in part.items():
        if value and name not in _TEXT_PART:
            raise unsupported(f"{where}.{name[:100]}", "leave it out", "input")
    if not isinstance(part.get("text"), str):
        raise bad_request(f"{where}.text must be a text", "input")
    return str(part["text"])
