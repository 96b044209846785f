"""The fields and options of Ollama's requests. Those without support are refused by name unless they change nothing."""

from __future__ import annotations

import datetime as dt
import re
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ...errors import bad_request
from ...fields import unsupported
from ..generation.request import MAX_TOKENS, stop_texts, whole
from ..vectors import json_kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...service import Service

_NUMBERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
}
"""Options that are numbers, and the core's parameters. The core checks their values."""
FIELDS = {
    "max_new_tokens": "options.num_predict",
    "seed": "options.seed",
    "stop": "options.stop",
    **{parameter: f"options.{name}" for name, parameter in _NUMBERS.items()},
}
"""The core's parameters, and the request fields that hold them."""
_OFF: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "mirostat": (0,),
    "tfs_z": (1,),
    "typical_p": (1,),
    "penalize_newline": (True,),
    "vocab_only": (False,),
}
"""Options without support, and their values that change nothing."""
_IGNORED = frozenset(
    {
        # How Ollama runs a model: memory, threads, devices. The server's own settings decide that here.
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "num_thread",
        "numa",
        "low_vram",
        "f16_kv",
        "use_mmap",
        "use_mlock",
        "logits_all",
        "embedding_only",
        # Nothing is dropped from a context here.
        "num_keep",
        # They have no effect while mirostat is off.
        "mirostat_tau",
        "mirostat_eta",
    }
)
"""Options that are accepted and not used."""
_LONGEST_DURATION = 100
"""Characters; matching megabytes would hold up the event loop."""
_USED = ("seed", "stop", "num_predict", "repeat_last_n", *_NUMBERS)
_THINK = frozenset({"low", "medium", "high"})
_NOUGHT = r"(?:0+(?:\.0*)?|\.0+)"
# Each part but a lone number ends with a unit, so a text takes linear time.
_ZERO = re.compile(rf"\s*[+-]?(?:{_NOUGHT}|(?:{_NOUGHT}(?:[nuµμm]?s|m|h))+)\s*", re.ASCII).fullmatch


def model_name(body: Mapping[str, Any], *fields: str) -> str:
    """The name in the first of `fields` that is not empty; default: `model`. Raises `ApiError` 400."""
    for field in fields or ("model",):
        name = body.get(field)
        if name is not None and not isinstance(name, str):
            raise bad_request(f"{field} must be a string, not {json_kind(name)}", field)
        if name:
            return name
    raise bad_request("model is required", "model")


def text(body: Mapping[str, Any], name: str) -> str:
    """A text; empty without it. Raises `ApiError` 400."""
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise bad_request(f"{name} must be a string, not {json_kind(value)}", name)
    return value


def read_think(body: Mapping[str, Any]) -> bool | str | None:
    """`think`; None without it. Raises `ApiError` 400."""
    think = body.get("think")
    if isinstance(think, bool | None) or (isinstance(think, str) and think in _THINK):
        return think
    raise bad_request('think must be true, false, "low", "medium" or "high"', "think")


def is_zero(keep_alive: Any) -> bool:
    """Whether this value of `keep_alive` unloads a model at once."""
    if isinstance(keep_alive, str):
        return len(keep_alive) <= _LONGEST_DURATION and _ZERO(keep_alive) is not None
    return isinstance(keep_alive, int | float) and not isinstance(keep_alive, bool) and keep_alive == 0


def read_keep_alive(body: Mapping[str, Any]) -> dict[str, Any]:
    """The core's argument, if the request has it. The core checks its value."""
    value = body.get("keep_alive")
    if value is None:
        return {}
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise bad_request(
            f'keep_alive must be seconds or a duration such as "5m", not {json_kind(value)}', "keep_alive"
        )
    return {"keep_alive": value}


def read_options(body: Mapping[str, Any], *, sampled: bool) -> dict[str, Any]:
    """The options that are not null. Raises `ApiError` 400 for unknown ones and, if tokens are `sampled`, for those
    without support. No option changes a vector.
    """
    options = body.get("options")
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise bad_request(f"options must be an object, not {json_kind(options)}", "options")
    given: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _USED and name not in _OFF and name not in _IGNORED:
            message = f"options.{name:.100} is not an option of Ollama that this server knows"
            raise bad_request(message, "options", "unsupported_parameter")
        if value is None:
            continue
        if sampled and name in _OFF and value not in _OFF[name]:
            off = " or ".join(map(str, _OFF[name])).lower()
            raise unsupported(f"options.{name}", f"leave it out, or send {off}")
        given[name] = value
    return given


def parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `Manager.submit_generation`. Raises `ApiError` 400."""
    options = read_options(body, sampled=True)
    params: dict[str, Any] = read_keep_alive(body)
    for name, parameter in _NUMBERS.items():
        if (value := options.get(name)) is not None:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise bad_request(f"options.{name} must be a number, not {json_kind(value)}", f"options.{name}")
            params[parameter] = value
    if "top_k" in params:
        params["top_k"] = whole({"options.top_k": params["top_k"]}, "options.top_k", -1)
    if stop := stop_texts(options.get("stop"), "options.stop"):
        params["stop"] = stop
    # -1 asks for a random seed.
    if (seed := _option(options, "seed")) not in (None, -1):
        params["seed"] = seed
    if (most := _option(options, "num_predict")) is not None:
        if most not in (-1, -2) and most < 1:
            raise bad_request(
                "options.num_predict must be at least 1, or -1 or -2 for as many tokens as the context holds",
                "options.num_predict",
            )
        params["max_new_tokens"] = min(most, MAX_TOKENS) if most > 0 else MAX_TOKENS
    _limit_penalty(options, params)
    return params


def _option(options: Mapping[str, Any], name: str) -> Any:
    """A whole number; None without it."""
    return whole({f"options.{name}": options.get(name)}, f"options.{name}")


def _limit_penalty(options: Mapping[str, Any], params: dict[str, Any]) -> None:
    """`repeat_last_n`: the penalty covers the whole prompt and answer (-1), or nothing (0)."""
    last = _option(options, "repeat_last_n")
    if last == 0:
        params.pop("repetition_penalty", None)
        params["repetition_penalty"] = 1.0
    elif last not in (None, -1) and params.get("repetition_penalty", 1) != 1:
        raise unsupported(
            "options.repeat_last_n", "options.repeat_penalty covers the prompt and the answer; send -1, or 0 for none"
        )


def now() -> str:
    """The time as Ollama writes it."""
    return timestamp(dt.datetime.now(dt.timezone.utc).timestamp())


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as Ollama writes a time."""
    return dt.datetime.fromtimestamp(seconds, dt.timezone.utc).isoformat().replace("+00:00", "Z")


def nanoseconds(seconds: float) -> int:
    """A duration as Ollama writes it."""
    return round(seconds * 1e9)


class Durations:
    """The time of a request since its beginning, and its part in which the model was loaded."""

    def __init__(self, service: Service, slot: str) -> None:
        self._began = perf_counter()
        self._service, self._slot = service, slot
        # A loaded model needs no statistics, which take longer than an answer from the cache.
        self._loads = None if service.manager.is_loaded(slot) else service.load_count(slot)

    def figures(self) -> dict[str, int]:
        """Both as Ollama writes them."""
        total, load = perf_counter() - self._began, 0.0
        # Without a load the answer came from the cache.
        if self._loads is not None and self._service.load_count(self._slot) > self._loads:
            load = min(total, self._service.load_seconds(self._slot))
        return {"total_duration": nanoseconds(total), "load_duration": nanoseconds(load)}


def tagged(name: str) -> str:
    """A model's name as Ollama lists it: with a tag."""
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"
