"""The answers of one request, computed together: whole, or as streams that have begun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...._async import AsyncTextStream, acomplete
from ...disconnect import unless_disconnected
from .events import close, next_piece, too_late
from .shared import together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from ...._async import Prompt
    from ...._types import Completion
    from ...service import Service


class Answers:
    """The answers of one request. They end within one token after its client disconnects, and at the deadline.

    Args:
        request: The request.
        service: The server.
        slot: The generator.
        asked: A prompt and the arguments of the core for each answer.
        deadline: When the answers must be complete, on the loop's clock.
    """

    def __init__(
        self,
        request: Request,
        service: Service,
        slot: str,
        asked: Sequence[tuple[Prompt, dict[str, Any]]],
        deadline: float,
    ) -> None:
        self.request, self.manager, self.slot, self.asked = request, service.manager, slot, asked
        self.deadline = deadline

    async def whole(self) -> list[Completion]:
        """The complete answers. Raises the core's errors, `ApiError` 504 and `ClientDisconnect`."""
        works = [acomplete(self.manager, prompt, self.slot, **params) for prompt, params in self.asked]
        return await unless_disconnected(self.request.receive, together(works), self.deadline, too_late())

    async def begun(self) -> tuple[list[AsyncTextStream], list[str | None]]:
        """The answers as streams, and the first piece of each: until then a failure has a status of its own.

        Raises what `whole` raises.
        """
        streams: list[AsyncTextStream] = []
        try:
            streams.extend(AsyncTextStream(self.manager, prompt, self.slot, params) for prompt, params in self.asked)
            firsts = together([next_piece(stream) for stream in streams])
            return streams, await unless_disconnected(self.request.receive, firsts, self.deadline, too_late())
        except BaseException:
            await close(streams)
            raise
