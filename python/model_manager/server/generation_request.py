"""What a request for text says, in the terms of the core. Everything that would silently be ignored is refused."""

from __future__ import annotations

from typing import Any

from .errors import bad_request

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_PLAIN = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "stop",
    "keep_alive",
)
"""Parameters with the core's own names and meanings; it checks their values."""
_MOST_TOKENS = 2**31
"""Of one answer. The model's context is the limit; this only keeps absurd numbers out of the core."""


def chat_messages(body: dict[str, Any]) -> list[dict[str, str]]:
    """The conversation: every message a role and one text. Raises `ApiError` 400 that names the message."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request('messages must be a list of at least one {"role": ..., "content": ...}', "messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise bad_request(f'{where} must be an object: {{"role": ..., "content": ...}}', "messages")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad_request(f"{where}.role must be one of {', '.join(_ROLES)}, not {role!r}", "messages")
    if message.get("tool_calls") or message.get("function_call"):
        raise bad_request(f"{where} calls a tool: tools are not supported here", "messages", "unsupported")
    content = message.get("content")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{where}.content[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise bad_request(f"{where}.content must be a text, or a list of parts of the type text", "messages")
    return {"role": _ROLES[role], "content": content}


def _part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise bad_request(f'{where} must be {{"type": "text", "text": ...}}: other content is not supported', "messages")


def count_texts(prompt: Any, enough: int) -> tuple[int, int]:
    """How many texts or messages a prompt has, and how many characters the first `enough` of them have.

    Checks nothing: what is no text is counted as an empty one.
    """
    texts = prompt if isinstance(prompt, list) else [prompt]
    return len(texts), sum(map(_characters, texts[:enough]))


def _characters(text: Any) -> int:
    if isinstance(text, str):
        return len(text)
    if isinstance(text, dict):
        return _characters(text.get("content") or text.get("text"))
    if isinstance(text, list):
        return sum(map(_characters, text))
    return 0


def completion_prompt(body: dict[str, Any]) -> str:
    """The text to continue. Raises `ApiError` 400."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        what = "is missing" if prompt is None else "must be one text: send a request for each, without token ids"
        raise bad_request(f"prompt {what}", "prompt")
    for name in ("echo", "suffix"):
        if body.get(name):
            raise _unsupported(name, "leave it out")
    return prompt


def parameters(body: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `Manager.submit_generation`. Raises `ApiError` 400 for what is not supported."""
    _check_supported(body)
    params = {name: body[name] for name in _PLAIN if body.get(name) is not None}
    for name, value in params.items():
        if isinstance(value, bool):
            raise bad_request(f"{name} must not be true or false", name)
    for name in ("max_completion_tokens", "max_tokens"):
        if (most := _whole(body, name, 1)) is not None:
            params["max_new_tokens"] = min(most, _MOST_TOKENS)
            break
    if (least := _whole(body, "min_tokens", 0)) is not None:
        params["min_new_tokens"] = min(least, _MOST_TOKENS)
    if (seed := _whole(body, "seed")) is not None:
        # OpenAI's seeds have a sign.
        params["seed"] = seed % 2**64
    return params


def stream_usage(body: dict[str, Any]) -> bool:
    """Whether the last event of a stream tells the usage. Raises `ApiError` 400."""
    stream, options = body.get("stream"), body.get("stream_options")
    if stream is not None and not isinstance(stream, bool):
        raise bad_request("stream must be true or false", "stream")
    if options is None:
        return False
    if not stream:
        raise bad_request("stream_options needs stream: true", "stream_options")
    if not isinstance(options, dict) or not isinstance(options.get("include_usage"), bool | None):
        raise bad_request('stream_options must be {"include_usage": true or false}', "stream_options")
    return bool(options.get("include_usage"))


def _check_supported(body: dict[str, Any]) -> None:
    for name in ("n", "best_of"):
        if body.get(name) not in (None, 1) or isinstance(body.get(name), bool):
            raise _unsupported(name, "one request gives one answer; send several, they are computed together")
    for name in ("presence_penalty", "frequency_penalty"):
        if body.get(name):
            raise _unsupported(name, "repetition_penalty (1: off; 1.1: gentle) works against repetition")
    # `logprobs: 0` asks a completion for the chosen tokens' own.
    if not (body.get("logprobs") is None or body.get("logprobs") is False) or body.get("top_logprobs"):
        raise _unsupported("logprobs", "leave it out")
    for name in ("logit_bias", "tools", "functions", "audio"):
        if body.get(name):
            raise _unsupported(name, "leave it out")
    form = body.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        raise _unsupported("response_format", 'only {"type": "text"} is')


def _unsupported(name: str, remedy: str) -> Exception:
    return bad_request(f"{name} is not supported here: {remedy}", name, "unsupported_parameter")


def _whole(body: dict[str, Any], name: str, least: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        limit = "" if least is None else f" of at least {least}"
        raise bad_request(f"{name} must be a whole number{limit}", name)
    return value
