"""The one way in which endpoints ask for vectors, and the request fields that they share."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from starlette.requests import ClientDisconnect

from ..._bridge import start
from ...errors import InputError
from ..bodies import is_large
from ..disconnect import unless_disconnected, watch_disconnect
from ..errors import ApiError, bad_request, overloaded, refused, timed_out

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request
    from starlette.types import Receive

    from ..._core import Ticket
    from ..config import ServedModel
    from ..service import Service

    Result = TypeVar("Result")

LATE = "The model was not loaded within the server's request_timeout"
_BUSY = "The request was not answered within the server's request_timeout"
_LARGE = 1 << 20
"""Bytes."""
_MAX_DIMENSIONS = 65_536
_OWN_NAMES = {"keep_alive": "keep_alive", "prompt_name": "prompt_name", "query": "query"}
"""Arguments of the core that are fields of the same name."""


async def vectors(
    service: Service,
    request: Request,
    model: ServedModel,
    inputs: Any,
    count: int,
    dimensions: int | None,
    options: dict[str, Any],
    fields: Mapping[str, str],
    default: str = "input",
) -> tuple[bytes, int]:
    """The body of OpenAI's answer with one vector per input, and the number of tokens.

    When the client disconnects, its inputs leave the queue. Raises `ApiError` 400 that names the field at fault.

    Args:
        service: The server.
        request: The request.
        model: The model that computes.
        inputs: Texts or token ids.
        count: Their number.
        dimensions: The length of vectors that the request asks for; None: that of the served model.
        options: Further arguments of `Manager.submit_response`.
        fields: Arguments of the core and the request fields that they come from.
        default: The field that holds the inputs.
    """
    if length := dimensions or model.dimensions:
        options["truncate_dim"] = length
    single = isinstance(inputs, str)
    if type(inputs[0]) is int:
        inputs, single = [inputs], True
    try:
        content, tokens = await _compute(service, request, inputs, count, model.key, options)
    except (InputError, TypeError, OverflowError) as error:
        param = getattr(error, "param", None)
        if dimensions is None and param == "truncate_dim":
            raise ApiError(
                503, f"The dimensions configured for {model.name!r} do not fit it: {error}", code="misconfigured"
            ) from error
        raise refused(error, fields, default, single=single) from error
    service.metrics.embedded(model.name, count, tokens)
    return content, tokens


async def vector_rows(service: Service, content: bytes) -> bytes:
    """The vectors in the body of an answer in OpenAI's form, with the same digits, separated by commas."""
    # Copies of many megabytes would hold up the event loop.
    return await service.apart(_rows, content) if len(content) > _LARGE else _rows(content)


def _rows(content: bytes) -> bytes:
    # The core writes that body. Within a text of JSON the mark would have backslashes.
    return b",".join([b"[%b]" % part[: part.index(b"]")] for part in content.split(b'"embedding":[')[1:]])


async def _compute(
    service: Service, request: Request, inputs: Any, count: int, slot: str, options: dict[str, Any]
) -> tuple[bytes, int]:
    """The answer's body and the number of tokens. When the client disconnects, its texts leave the queue."""

    def submit(on_done: Callable[..., None], options: dict[str, Any]) -> Ticket:
        def on_body(body: bytes | None, tokens: int, error: BaseException | None) -> None:
            on_done((body, tokens), error)

        return service.manager.submit_response(inputs, on_body, slot, **options)

    return await awaited(service, request.receive, *await _submitted(service, request, submit, options), count)


async def _submitted(
    service: Service, request: Request, submit: Callable[..., Ticket], options: dict[str, Any]
) -> tuple[asyncio.Future[Any], Ticket]:
    """The future of a result, and the ticket that cancels it. The core compares inputs with its cache before `submit`
    returns; for a large request another thread waits for that.

    Args:
        service: The server.
        request: The request.
        submit: Gets a callback, as in `start`, and `options`.
        options: Arguments of the core with a `timeout`, of which the wait for that thread is a part.
    """
    if not is_large(request):
        return start(lambda on_done: submit(on_done, options), options["timeout"])
    future, on_done = start(lambda on_done: on_done, options["timeout"])
    began, tickets = time.monotonic(), []

    def submit_late() -> None:
        left = options["timeout"] - (time.monotonic() - began)
        tickets.append(submit(on_done, {**options, "timeout": max(0.001, left)}))
        if future.cancelled():
            tickets[0].cancel()

    deadline = asyncio.get_running_loop().time() + options["timeout"]
    try:
        await unless_disconnected(request.receive, service.apart(submit_late), deadline, timed_out(_BUSY))
    except BaseException:
        # The thread looks at the future after it has the ticket.
        future.cancel()
        for ticket in tickets:
            ticket.cancel()
        raise
    return future, tickets[0]


async def inferred(
    service: Service,
    request: Request,
    kind: Literal["scores", "sparse"],
    texts: tuple[Any, Any],
    count: int,
    slot: str,
    options: dict[str, Any],
    field: str,
    *,
    single: bool = False,
) -> tuple[Any, int]:
    """Results of `kind` for texts or pairs, and the number of tokens. A client that disconnects takes them back.
    `single`: the request's `field` holds one text.
    """

    def submit(on_done: Callable[..., None], options: dict[str, Any]) -> Ticket:
        def on_results(results: Any, tokens: int, error: BaseException | None) -> None:
            on_done((results, tokens), error)

        return service.manager._submit_inference(kind, on_results, *texts, slot, **options)

    try:
        submitted = await _submitted(service, request, submit, options)
        found: tuple[Any, int] = await awaited(service, request.receive, *submitted, count)
    except (InputError, TypeError, OverflowError) as error:
        raise refused(error, _OWN_NAMES, field, single=single) from error
    return found


async def awaited(
    service: Service, receive: Receive, future: asyncio.Future[Result], ticket: Ticket, count: int
) -> Result:
    """The result of a request of `count` texts. When the client disconnects, they leave the queue."""
    if future.done():
        # Everything was cached.
        return future.result()
    if service.waiting and service.waiting + count > service.config.max_waiting:
        ticket.cancel()
        future.cancel()
        raise overloaded(f"{service.waiting} texts already wait for vectors; try again later", service.retry_after())
    service.waiting += count

    async def leave() -> None:
        if not future.done():
            future.set_exception(ClientDisconnect())

    with watch_disconnect(receive, leave):
        try:
            return await future
        finally:
            service.waiting -= count
            if not ticket.done:
                ticket.cancel()


def read_inputs(value: Any, most: int, field: str = "input") -> tuple[Any, int]:
    """The inputs of a field and their number. Raises `ApiError` 400."""
    if type(value) is str:
        if _blank(value):
            raise bad_request(f"{field} is blank: send a text that is not", field, "empty_input")
        return value, 1
    if type(value) is not list:
        what = "is missing" if value is None else f"must be a string or a list, not {json_kind(value)}"
        raise bad_request(f"{field} {what}", field)
    if not value:
        raise bad_request(f"{field} is an empty list: send at least one text", field, "empty_input")
    first = type(value[0])
    if first is int:
        return value, 1
    if len(value) > most:
        raise bad_request(
            f"{field} has {len(value)} items; {most} are allowed in one request", field, "too_many_inputs"
        )
    if first is not str and first is not list:
        raise bad_request(f"{field}[0] must be a string or a list of token ids, not {json_kind(value[0])}", field)
    for index, item in enumerate(value):
        if type(item) is not first:
            raise bad_request(f"{field}[{index}] is {json_kind(item)} where {field}[0] is {json_kind(value[0])}", field)
        if _blank(item):
            raise bad_request(f"{field}[{index}] is blank", field, "empty_input")
    return value, len(value)


def _blank(item: str | list[Any]) -> bool:
    return not item or (isinstance(item, str) and item.isspace())


def json_kind(value: Any) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    return {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}.get(
        type(value), "an object"
    )


def shown(value: Any) -> str:
    """A value for a message: a text itself, of all else the kind, because it may nest deep."""
    return repr(value[:100]) if isinstance(value, str) else json_kind(value)


def read_truncate(value: Any) -> bool:
    """Whether long inputs are cut. Raises `ApiError` 400."""
    if value is None or value is True:
        return True
    if value is False:
        return False
    raise bad_request(f"truncate must be true or false, not {json_kind(value)}", "truncate")


def read_dimensions(value: Any) -> int | None:
    """The length of vectors. Raises `ApiError` 400."""
    if value is None:
        return None
    # JSON has one type of number: 256.0 is a whole number.
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and 1 <= value <= _MAX_DIMENSIONS:
        return value
    given = value if isinstance(value, int | float) and not isinstance(value, bool) else json_kind(value)
    raise bad_request(f"dimensions must be a whole number from 1 to {_MAX_DIMENSIONS}, not {given}", "dimensions")
