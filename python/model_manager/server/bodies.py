"""Reading request bodies within limits of size, time and structure. Large bodies are parsed off the event loop."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import ClientDisconnect

from .._core import _json_values
from .errors import ApiError, bad_request, unavailable
from .in_time import in_time

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Scope

    from .service import Service

HELD = "model_manager.body_bytes"
"""The key of a request's scope for the bytes that `Service.body_bytes` counts for it."""
LARGE = 1 << 16
"""Larger bodies, in bytes, are processed off the event loop."""
VALUE_BYTES = 64
"""The bytes counted for one JSON value: an empty object in memory."""
_STEP = 512
"""The bytes of a gzip member that are read first."""
_MEMBERS = 10_000
"""Members of a gzip body. Programs that compress in blocks make one for each 64 kB or more."""


async def read_json(request: Request, service: Service, limit: int | None = None) -> dict[str, Any]:
    """The request's body, a JSON object of at most `limit` bytes. None: `max_body_bytes` of the settings.

    Raises `ApiError` 400, 403, 408, 413, 415 or 503, `ClientDisconnect`.
    """
    config = service.config
    limit = config.max_body_bytes if limit is None else min(limit, config.max_body_bytes)
    compressed = _check_headers(request.scope)
    body = await in_time(
        read_body(request, service, limit), config.body_timeout, lambda: _too_slow(config.body_timeout)
    )
    if compressed:
        body = await service.apart(inflate, body, limit)
        charge(request.scope, service, len(body))
    if len(body) > LARGE:
        values = await service.apart(_json_values, body)
        if values > config.max_body_values:
            raise ApiError(
                413,
                f"The body holds about {values} JSON values; max_body_values allows {config.max_body_values}",
                code="too_many_values",
            )
        charge(request.scope, service, values * VALUE_BYTES)
        value = await service.apart(parse, body)
    else:
        value = parse(body)
    if not config.admin and value.get("keep_alive") is not None:
        raise ApiError(
            403,
            "keep_alive is disabled on this server: clients cannot decide how long a model stays; leave it out",
            param="keep_alive",
            code="admin_disabled",
        )
    return value


def is_large(request: Request) -> bool:
    """Whether the body is large enough to be processed on another thread."""
    held: int = request.scope.get(HELD, 0)
    return held > LARGE


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises `ApiError` 400."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The body is not JSON: {error}", code="invalid_json") from None
    if type(value) is not dict:
        raise bad_request("The body must be a JSON object", code="invalid_json")
    return value


def inflate(body: bytes, limit: int) -> bytes:
    """The decompressed `body`, at most `limit` bytes. Raises `ApiError` 400 or 413.

    zlib copies what follows a member. So a member is read in steps, which grow with it: a body of many small members
    takes no more time than one of the same length.
    """
    parts: list[bytes] = []
    left, at, rest, members = limit, 0, memoryview(body), 0
    while at < len(body) or not members:
        members += 1
        if members > _MEMBERS:
            raise bad_request(
                f"The gzip data has more than {_MEMBERS} members; compress the body as one", code="invalid_gzip"
            )
        # With 16 added, zlib reads gzip's header and checks its sum.
        member, step = zlib.decompressobj(16 + zlib.MAX_WBITS), _STEP
        while not member.eof:
            taken = rest[at : at + step]
            if not taken:
                raise bad_request("The gzip data is incomplete", code="invalid_gzip")
            at, step = at + len(taken), 2 * step
            try:
                # One byte more than allowed distinguishes a body of exactly the limit from a larger one.
                part = member.decompress(taken, left + 1)
            except zlib.error as error:
                raise bad_request(f"The body is not gzip: {error}", code="invalid_gzip") from None
            if len(part) > left:
                raise _too_large(limit)
            parts.append(part)
            left -= len(part)
        at -= len(member.unused_data)
    return b"".join(parts)


def charge(scope: Scope, service: Service, count: int) -> None:
    """Count `count` more bytes for this request until `release`. Raises `ApiError` 503."""
    own = scope.get(HELD, 0)
    # For a single request the other limits suffice.
    if service.body_bytes > own and service.body_bytes + count > service.config.max_buffered_bytes:
        raise unavailable(
            f"Running requests already hold {service.body_bytes} bytes; try again later", "too_many_bytes", 1
        )
    service.body_bytes += count
    scope[HELD] = own + count


def release(scope: Scope, service: Service) -> None:
    """Stop counting the bytes of a finished request."""
    service.body_bytes -= scope.pop(HELD, 0)


def _check_headers(scope: Scope) -> bool:
    """Whether the body is compressed with gzip. Raises `ApiError` 415 for other types and encodings.

    A foreign page can make a browser send a form, plain text or no type, but JSON only after a preflight request, which
    this server refuses. A body without a type is read if no browser sent it: browsers name the page in Origin, or how
    foreign it is in Sec-Fetch-Site. LiteLLM's requests to Ollama have no type.
    """
    kind = encoding = b""
    from_page = False
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind = value
        elif name == b"content-encoding":
            encoding = value.strip().lower()
        elif name in (b"origin", b"sec-fetch-site"):
            from_page = True
    kind = kind.partition(b";")[0].strip().lower()
    is_json = kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))
    if not is_json and (kind or from_page):
        given = f"not {kind.decode('latin-1')!r}" if kind else "which it lacks"
        raise ApiError(
            415,
            f"The body must be JSON with the header 'Content-Type: application/json', {given}",
            code="content_type",
            headers={"accept": "application/json"},
        )
    if encoding in (b"", b"identity"):
        return False
    if encoding in (b"gzip", b"x-gzip"):
        return True
    raise ApiError(
        415,
        f"Content-Encoding {encoding.decode('latin-1')!r} is not supported: send the body uncompressed or with gzip",
        code="content_encoding",
        headers={"accept-encoding": "gzip"},
    )


async def read_body(request: Request, service: Service, limit: int) -> bytes:
    """The request's body, at most `limit` bytes, counted for the request as it arrives."""
    receive, scope = request.receive, request.scope
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        charge(scope, service, len(chunk))
        chunks.append(chunk)
        if not message.get("more_body"):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_slow(seconds: float) -> ApiError:
    return ApiError(
        408,
        f"The body did not arrive within {seconds:g} seconds; send it faster, or raise the server's body_timeout",
        code="body_timeout",
    )


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit} bytes", code="body_too_large")
