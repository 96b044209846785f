"""The shapes of requests for text and of their answers for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...schemas import Token  # noqa: TC001  pydantic reads it
from .request import LONGEST_STOP, MOST_STOPS

StopText = Annotated[str, Field(max_length=LONGEST_STOP)]


class TextPart(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = Field(None, description="Report the usage in a last event.")


class _Generation(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = Field(None, description="A text generator's name or source; the first one without it.")
    stream: bool | None = Field(None, description="Send the answer in pieces, as server-sent events.")
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Tokens of the answer.")
    min_tokens: Annotated[int, Field(ge=0)] | None = Field(None, description="Tokens before which it does not end.")
    temperature: Annotated[float, Field(ge=0)] | None = Field(None, description="0: the likeliest token every time.")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="0: the likeliest token. 1: off.")
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="Draw among the k likeliest; 0 and -1: all.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = Field(None, description="Above 1: repeats less.")
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] | None = None
    seed: int | None = Field(None, description="Equal seeds give equal answers.")
    stop: StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS)] | None = Field(
        None, description="Texts at which the answer ends, without them."
    )
    n: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Answers per prompt. With a seed each further answer gets the next seed."
    )
    keep_alive: float | str | None = Field(None, description="How long the model stays in memory: seconds or '5m'.")
    user: str | None = Field(
        None, description="The user of the request. Computed prompt prefixes are reused for the same user only."
    )


class ChatRequest(_Generation):
    """A conversation to answer."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Overrides max_tokens.")


class CompletionRequest(_Generation):
    """Texts to continue."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1)]
    ) = Field(description="A text, several texts, or their tokens as ids of the model's own vocabulary.")


class GenerationUsage(BaseModel):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] = Field(description="cached_tokens: reused from an earlier request.")


class AnswerMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """The answer."""

    index: int
    message: AnswerMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class CompletionChoice(BaseModel):
    """The continuation."""

    index: int
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length"]


class _Answer(BaseModel):
    id: str
    created: int
    model: str
    usage: GenerationUsage


class ChatAnswer(_Answer):
    """A whole answer."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionAnswer(_Answer):
    """A whole continuation."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
