"""What all endpoints for generated text share: the model, the bounds of a prompt, the scope of reused prefixes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

from ....errors import InputError
from ...errors import ApiError, bad_request, refused, unknown_model
from ...uses import is_source, other_use

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
    from typing import TypeVar

    from starlette.requests import Request

    from ...service import Service

    T = TypeVar("T")

_MAX_TOKEN_CHARACTERS = 256
"""Characters of the longest token: vocabularies have runs of 128 spaces and hardly anything longer."""


def generator(service: Service, name: Any, no_names: Collection[str] = ()) -> str:
    """The slot for requests with the model `name`: a slot's name or its source. None, or one of `no_names`: the first
    generator, unless a slot has that name.

    Raises `ApiError` 404 with the names that are served, or 400 for a model that is for another use.
    """
    if name is not None and not isinstance(name, str):
        raise bad_request("model must be a string", "model")
    slots = service.generators()
    served = list(slots)
    if not served:
        wanted = ", ".join(service.config.generators) or "none is configured"
        raise ApiError(404, f"This server has no text generator ({wanted})", param="model", code="no_generator")
    if not name:
        return served[0]
    plain = name.removesuffix(":latest")
    for slot in served:
        if plain == slot or is_source(name, slots[slot]):
            return slot
    if name in no_names:
        return served[0]
    if (other := other_use(name, service.manager.stats()["slots"], "generator", "text generation")) is not None:
        raise other
    try:
        service.served(name)
    except ApiError:
        raise unknown_model(name, served) from None
    raise bad_request(f"{name!r} is an embedding model: it does not support text generation", "model")


async def check_length(
    service: Service, slot: str, prompt: Any, field: str, count: Callable[[Any, int], tuple[int, int]]
) -> None:
    """Raise `ApiError` 400 for a prompt that cannot fit the model's context, before any work that grows with it.

    Args:
        service: The server.
        slot: The generator.
        prompt: What the request holds, not checked yet.
        field: The request field of `prompt`.
        count: `count_texts` or `longest_text`.
    """
    await service.load(slot)
    context = (await service.describe_generator(slot))["context"]
    texts, characters = await service.apart(count, prompt, context)
    # A message has one token at least.
    if texts > context or characters > context * _MAX_TOKEN_CHARACTERS:
        raise bad_request(
            f"{field} has {texts} text{'' if texts == 1 else 's'} with at least {characters} characters in total, but "
            f"the model holds {context} tokens, each with at most {_MAX_TOKEN_CHARACTERS} characters",
            field,
            "context_length_exceeded",
        )


@contextlib.contextmanager
def naming_fields(params: Mapping[str, Any], fields: Mapping[str, str], default: str) -> Iterator[None]:
    """Turn what the core refuses into `ApiError` 400 with the name of the request field.

    Args:
        params: The arguments of the core.
        fields: Arguments whose request fields have other names.
        default: The field of the prompt.
    """
    try:
        yield
    except (InputError, TypeError, OverflowError) as error:
        # The other arguments have the names of their fields.
        named = {**{name: name for name in params}, **fields, "prompt": default}
        raise refused(error, named, default) from error


def prefix_scope(request: Request, body: dict[str, Any]) -> str:
    """A name for the requests of one key and one `user`. Computed prompt prefixes are reused only among these, so
    `cached_tokens` and response times reveal nothing about the prompts of others.
    """
    user = body.get("user")
    if user is not None and not isinstance(user, str):
        raise bad_request("user must be a string", "user")
    # A key never holds a zero byte. The hash keeps the key itself out of the prefix cache.
    parts = f"{request.headers.get('authorization', '')}\0{user or ''}"
    return hashlib.sha256(parts.encode()).hexdigest()


async def together(works: Sequence[Awaitable[T]]) -> list[T]:
    """The results of all `works`. The first failure cancels the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
