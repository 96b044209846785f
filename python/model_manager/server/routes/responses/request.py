"""The fields of a request as arguments of the core, and as the answer repeats them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import bad_request
from ...fields import unknown, unsupported
from ..generation.request import MAX_TOKENS, flag, parameters, whole
from ..generation.schemas import REFUSED

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEPT = "this server keeps no responses; leave it out, or send false"
_TEXTS = ("user", "safety_identifier", "prompt_cache_key")
"""Fields that the answer repeats."""
_INCLUDED = frozenset(
    {
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)
"""Parts of items that no answer has here, so that nothing is left out."""
_LOGPROBS = "message.output_text.logprobs"
_SUMMARIES = ("summary", "generate_summary")
_REASONING: dict[str, tuple[str, ...]] = {
    "effort": ("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "summary": (),
    "generate_summary": (),
    "context": ("auto",),
    "mode": ("standard",),
}
"""Members of `reasoning`, and their values that are understood. `template_variables` looks at the effort."""


def core_parameters(body: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `Manager.submit_generation`. Raises `ApiError` 400 for what is not supported."""
    params = parameters(body)
    if (most := whole(body, "max_output_tokens", 1, _LARGEST)) is not None:
        params["max_new_tokens"] = min(most, MAX_TOKENS)
    return params


def effort(body: Mapping[str, Any]) -> str | None:
    """The effort of `reasoning`. Raises `ApiError` 400 for its other members."""
    reasoning = _members(body, "reasoning", frozenset(_REASONING))
    for name, value in reasoning.items():
        known = _REASONING[name]
        if value is None or value in known:
            continue
        if name == "effort":
            raise bad_request(f"reasoning.effort must be one of {', '.join(known)}", "reasoning")
        if name in _SUMMARIES:
            raise unsupported(f"reasoning.{name}", "answers have the thoughts themselves; leave it out", "reasoning")
        raise unsupported(f"reasoning.{name}", param="reasoning")
    found: str | None = reasoning.get("effort")
    return found


#: The answer repeats numbers, which clients read with 64 bits.
_LARGEST = 2**63 - 1


def repeated(body: dict[str, Any], temperature: float) -> dict[str, Any]:
    """What the answer repeats of the request, with the values of fields that were left out.

    Raises `ApiError` 400 for wrong values, and for those that are not supported.

    Args:
        body: The request.
        temperature: That of a request without one.
    """
    _check_text(body)
    _check_include(body)
    if flag(body, "store"):
        raise unsupported("store", _KEPT)
    given_temperature, top_p = body.get("temperature"), body.get("top_p")
    return {
        "background": False,
        "instructions": body.get("instructions"),
        "max_output_tokens": whole(body, "max_output_tokens", 1),
        "max_tool_calls": whole(body, "max_tool_calls", 0, _LARGEST),
        "metadata": _metadata(body),
        "parallel_tool_calls": flag(body, "parallel_tool_calls", default=True),
        "previous_response_id": None,
        "reasoning": {"effort": effort(body), "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": temperature if given_temperature is None else given_temperature,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0 if top_p is None else top_p,
        "truncation": "disabled",
        **{name: _text(body, name) for name in _TEXTS},
    }


def _members(body: Mapping[str, Any], name: str, known: frozenset[str]) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_request(f"{name} must be an object with some of {', '.join(sorted(known))}", name)
    for member, one in value.items():
        if one is not None and member not in known:
            raise unknown(member, known, f"{name}.")
    return {member: one for member, one in value.items() if member in known}


def _check_text(body: Mapping[str, Any]) -> None:
    text = _members(body, "text", frozenset({"format", "verbosity"}))
    form = text.get("format")
    if form is not None and not isinstance(form, dict):
        raise bad_request('text.format must be {"type": "text"}', "text")
    if form and form != {"type": "text"}:
        raise unsupported("text.format", REFUSED["response_format"].remedy, "text")
    if text.get("verbosity") not in (None, "medium"):
        raise unsupported("text.verbosity", REFUSED["verbosity"].remedy, "text")


def _check_include(body: Mapping[str, Any]) -> None:
    include = body.get("include")
    if include is None:
        return
    if not isinstance(include, list) or not all(isinstance(one, str) for one in include):
        raise bad_request("include must be a list of texts", "include")
    for one in include:
        if one == _LOGPROBS:
            raise unsupported(f"{_LOGPROBS} in include", "leave it out", "include")
        if one not in _INCLUDED:
            known = ", ".join(sorted(_INCLUDED))
            raise bad_request(f"include has {one[:100]!r}, which is none of {known}", "include")


def _metadata(body: Mapping[str, Any]) -> dict[str, str]:
    metadata = body.get("metadata")
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise bad_request("metadata must be an object whose values are texts", "metadata")
    return metadata


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if not isinstance(value, str | None):
        raise bad_request(f"{name} must be a string", name)
    return value
