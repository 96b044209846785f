"""Jinja2 with the settings of transformers for chat templates."""

from __future__ import annotations

import copy
import json
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """`{% generation %}`: marks the assistant's part and prints what it holds."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

    def parse(self, parser: Any) -> jinja2.nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return caller()


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message):
    raise jinja2.exceptions.TemplateError(message)


def environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005 (as transformers)
    return made


_ENVIRONMENT = environment()


@cache
def _compiled(source: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(source)


def render(source: str, messages: list, **variables: Any) -> str:
    """The prompt of `apply_chat_template(..., tokenize=False)`."""
    variables = {"tools": None, "documents": None, "add_generation_prompt": True, **variables}
    return _compiled(source).render(messages=messages, **variables)


def continued(source: str, messages: list, **variables: Any) -> str | None:
    """The prompt of `apply_chat_template` with `continue_final_message=True`; None where that is an error."""
    mark = "CONTINUE "
    marked = copy.deepcopy(messages)
    content = marked[-1].get("content")
    parts = [part for part in content if "text" in part] if isinstance(content, list) else []
    if parts:
        text, parts[-1]["text"] = parts[-1]["text"], parts[-1]["text"] + mark
    elif isinstance(content, str):
        text, marked[-1]["content"] = content, content + mark
    else:
        return None
    whole = render(source, marked, add_generation_prompt=False, **variables)
    if text.strip() not in whole or mark.strip() not in whole:
        return None
    prompt, _, rest = whole.rpartition(mark.strip())
    return prompt if rest.startswith(" ") else prompt.rstrip()
