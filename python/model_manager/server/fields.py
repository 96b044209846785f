"""The fields of requests. What is not understood is refused by name."""

from __future__ import annotations

import difflib
import functools
from typing import TYPE_CHECKING, Any

from .errors import bad_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .errors import ApiError
    from .schemas import RequestBody

_LONGEST_NAME = 100
"""Characters of an unknown field's name in a message."""


@functools.cache
def _known(schema: type[RequestBody]) -> frozenset[str]:
    return frozenset(schema.model_fields)


def check_fields(body: Mapping[str, Any], schema: type[RequestBody]) -> None:
    """Raise `ApiError` 400 for a field that is not one of the schema's. Null is as if the field were left out."""
    known = _known(schema)
    if body.keys() <= known:
        return
    refused = schema.refused
    for name, value in body.items():
        if name in known or value is None:
            continue
        if name not in refused:
            if schema.accepts_unknown:
                continue
            raise unknown(name, known)
        if refused[name].refuses(value):
            raise unsupported(name, refused[name].remedy)


def unknown(name: str, known: frozenset[str], where: str = "") -> ApiError:
    """400: a field that this server does not know, with the known ones."""
    shown = where + name[:_LONGEST_NAME]
    meant = difflib.get_close_matches(name[:_LONGEST_NAME], known, 1)
    remedy = f"did you mean {meant[0]!r}?" if meant else "leave it out."
    return bad_request(
        f"{shown} is not a field that this server knows: {remedy} Known are: {', '.join(sorted(known))}",
        shown,
        "unknown_parameter",
    )


def unsupported(name: str, remedy: str = "leave it out", param: str | None = None) -> ApiError:
    """400: a field without support. `param`: the field that holds it; None: it is one of the request itself."""
    return bad_request(f"{name} is not supported here: {remedy}", param or name, "unsupported_parameter")
