"""The fields of a request for text as arguments of the core. Fields without support are refused, never ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from ...errors import bad_request
from ...fields import unknown, unsupported
from ..vectors import json_kind, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_PLAIN = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "keep_alive",
)
"""Parameters with the core's names and meanings. The core checks their values."""
_WHOLE = ("top_k", "no_repeat_ngram_size", "seed")
"""Whole numbers, which JSON may write as 5.0. The core checks their limits."""
# Clients note numbers of their own and what to cache; the answer does not depend on them.
_NOTES = ("id", "cache_control", "prompt_cache_breakpoint")
_MESSAGE = frozenset({"role", "content", "name", *_NOTES})
_PART = frozenset({"type", "text", "index", "annotations", *_NOTES})
_STREAM_OPTIONS = frozenset({"include_usage", "include_obfuscation"})
MOST_STOPS = 64
LONGEST_STOP = 1024
"""Characters."""
MAX_TOKENS = 2**31
"""Maximum tokens of one answer. The real limit is the model's context; this one keeps huge numbers out of the core."""


def chat_messages(body: dict[str, Any], thoughts: str | None = None) -> list[dict[str, str]]:
    """The conversation: a role and one text per message, and for answers their thoughts, from the field `thoughts`.

    Raises `ApiError` 400 that names the message.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request('messages must be a list of at least one {"role": ..., "content": ...}', "messages")
    return [_message(message, f"messages[{index}]", thoughts) for index, message in enumerate(messages)]


def _message(message: Any, where: str, thoughts: str | None) -> dict[str, str]:
    if not isinstance(message, dict):
        raise bad_request(f'{where} must be an object: {{"role": ..., "content": ...}}', "messages")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise bad_request(f"{where}.role must be one of {', '.join(ROLES)}, not {shown(role)}", "messages")
    for name, value in message.items():
        # The others are null or empty in the messages of answers.
        if value and name not in _MESSAGE and not (name == thoughts and role == "assistant"):
            raise unsupported(f"{where}.{name[:100]}", "leave it out", "messages")
    if not isinstance(message.get("name"), str | None):
        raise bad_request(f"{where}.name must be a string", "messages")
    content = message.get("content")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{where}.content[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise bad_request(f"{where}.content must be a text, or a list of parts of the type text", "messages")
    found = {"role": ROLES[role], "content": content}
    if thoughts and role == "assistant" and message.get(thoughts):
        if not isinstance(message[thoughts], str):
            raise bad_request(f"{where}.{thoughts} must be a text", "messages")
        # What templates call it.
        found["reasoning_content"] = message[thoughts]
    return found


def _part(part: Any, where: str) -> str:
    for name in part.keys() - _PART if isinstance(part, dict) and part.get("type") == "text" else ():
        if part[name] is not None:
            raise unsupported(f"{where}.{name}", "leave it out", "messages")
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise bad_request(f'{where} must be {{"type": "text", "text": ...}}: other content is not supported', "messages")


def count_texts(prompt: Any, enough: int) -> tuple[int, int]:
    """The number of texts or messages of a prompt, and the characters of the first `enough` of them.

    It checks nothing: a value that is not text counts as empty.
    """
    texts = prompt if isinstance(prompt, list) else [prompt]
    return len(texts), sum(map(_characters, texts[:enough]))


def _characters(message: Any) -> int:
    """The characters of a message or text. Parts of a content hold texts alone; what nests deeper is refused later."""
    content = message.get("content") if isinstance(message, dict) else message
    parts = content if isinstance(content, list) else [content]
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return sum(len(text) for text in texts if isinstance(text, str))


def longest_text(prompts: Any, _enough: int) -> tuple[int, int]:
    """The same for separate prompts: one text, with the characters of the longest prompt."""
    texts = prompts if isinstance(prompts, list) else [prompts]
    return 1, max((len(text) for text in texts if isinstance(text, str)), default=0)


def completion_prompts(body: dict[str, Any]) -> list[str | list[int]]:
    """The texts or lists of token ids to continue. Raises `ApiError` 400."""
    prompt = body.get("prompt")
    if prompt is None:
        raise bad_request("prompt is missing", "prompt")
    prompts = [prompt] if isinstance(prompt, str) or _is_ids(prompt) else prompt
    if not isinstance(prompts, list) or not prompts:
        raise bad_request("prompt must be a text, a list of texts, token ids, or a list of lists of them", "prompt")
    if type(prompts[0]) is int:
        _refuse_ids(prompts, "prompt")
    kind = str if isinstance(prompts[0], str) else list
    for index, one in enumerate(prompts):
        if not isinstance(one, kind):
            what = "a text" if kind is str else "a list of token ids"
            what = f"{what} like the others" if index else "a text or a list of token ids"
            raise bad_request(f"prompt[{index}] must be {what}, not {json_kind(one)}", "prompt")
        if not isinstance(one, str) and not _is_ids(one):
            _refuse_ids(one, f"prompt[{index}]")
        if one == "":
            where = "prompt" if prompts is not prompt else f"prompt[{index}]"
            raise bad_request(f"{where} is empty: send a text that is not", "prompt", "empty_input")
    return prompts


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_id, value))


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _refuse_ids(ids: list[Any], where: str) -> NoReturn:
    """Raise the error for a list that is no list of token ids."""
    if not ids:
        raise bad_request(f"{where} is an empty list: send at least one token id", "prompt", "empty_input")
    bad = next(index for index, one in enumerate(ids) if not _is_id(one))
    given = "" if type(ids[bad]) is int else f", not {json_kind(ids[bad])}"
    raise bad_request(f"{where}[{bad}] must be a token id, a whole number from 0 to {2**32 - 1}{given}", "prompt")


def choices(body: dict[str, Any], prompts: int, most: int) -> int:
    """The number of answers per prompt. Raises `ApiError` 400 for more than `most` in total."""
    count = whole(body, "n", 1) or 1
    if prompts * count > most:
        name = "n" if count > 1 else "prompt"
        raise bad_request(
            f"prompts ({prompts}) times n ({count}) exceed the {most} answers that one request may have",
            name,
            "too_many_choices",
        )
    best_of = whole(body, "best_of", 1)
    if best_of not in (None, count):
        raise unsupported("best_of", "all n answers are returned; leave it out")
    return count


def parameters(body: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `Manager.submit_generation`. Raises `ApiError` 400 for what is not supported."""
    _check_logprobs(body)
    params = {name: body[name] for name in _PLAIN if body.get(name) is not None}
    if stop := stop_texts(body.get("stop")):
        params["stop"] = stop
    for name, value in params.items():
        if isinstance(value, bool):
            raise bad_request(f"{name} must not be true or false", name)
    # The newer name takes precedence; both are checked.
    for name in ("max_tokens", "max_completion_tokens"):
        if (most := whole(body, name, 1)) is not None:
            params["max_new_tokens"] = min(most, MAX_TOKENS)
    if (least := whole(body, "min_tokens", 0)) is not None:
        params["min_new_tokens"] = min(least, MAX_TOKENS)
    for name in _WHOLE:
        if (number := whole(body, name)) is not None:
            params[name] = number
    return params


def continues(body: dict[str, Any]) -> bool:
    """Whether the answer continues the last message. Raises `ApiError` 400."""
    found = flag(body, "continue_final_message")
    # vLLM's clients must send both.
    if body.get("add_generation_prompt") is not None and flag(body, "add_generation_prompt") == found:
        reason = "add_generation_prompt must be the opposite of continue_final_message; leave it out"
        raise bad_request(reason, "add_generation_prompt")
    return found


def stop_texts(value: Any, name: str = "stop") -> list[str]:
    """The texts of the field `name` that are not empty. Raises `ApiError` 400."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise bad_request(f"{name} must be a text or a list of texts", name)
    if len(texts) > MOST_STOPS:
        raise bad_request(f"{name} has {len(texts)} texts; {MOST_STOPS} are allowed", name)
    if any(len(text) > LONGEST_STOP for text in texts):
        raise bad_request(f"a text of {name} is longer than {LONGEST_STOP} characters", name)
    return [text for text in texts if text]


def stream_usage(body: dict[str, Any]) -> bool:
    """Whether the last event of a stream reports the usage. Raises `ApiError` 400."""
    stream, options = body.get("stream"), body.get("stream_options")
    if stream is not None and not isinstance(stream, bool):
        raise bad_request("stream must be true or false", "stream")
    if options is None:
        return False
    if not stream:
        raise bad_request("stream_options needs stream: true", "stream_options")
    if not isinstance(options, dict) or not isinstance(options.get("include_usage"), bool | None):
        raise bad_request('stream_options must be {"include_usage": true or false}', "stream_options")
    for name, value in options.items():
        if value is not None and name not in _STREAM_OPTIONS:
            raise unknown(name, _STREAM_OPTIONS, "stream_options.")
    return bool(options.get("include_usage"))


def _check_logprobs(body: dict[str, Any]) -> None:
    # For completions `logprobs: 0` asks for the chosen tokens' probabilities.
    if not (body.get("logprobs") is None or body.get("logprobs") is False):
        raise unsupported("logprobs", "leave it out")
    if body.get("top_logprobs"):
        raise unsupported("top_logprobs", "leave it out")


def flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """True or false. Raises `ApiError` 400."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise bad_request(f"{name} must be true or false, not {json_kind(value)}", name)
    return value


_EXACT = 2**53
"""The largest float up to which each whole number has a float of its own."""


def whole(body: dict[str, Any], name: str, least: int | None = None, most: int | None = None) -> int | None:
    """A whole number; None without it. Raises `ApiError` 400 for other values, and for numbers out of bounds."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        # The parser makes floats of integers beyond 64 bits: they are no longer the number that was sent.
        if abs(value) > _EXACT and (most is None or value <= most):
            reason = "must be a whole number of at most 64 bits, written with digits alone"
            raise bad_request(f"{name}={value:.0f}: {reason}", name)
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        limit = "" if least is None else f" of at least {least}"
        raise bad_request(f"{name} must be a whole number{limit}", name)
    if most is not None and value > most:
        raise bad_request(f"{name} must be a whole number of at most {most}", name)
    return value
