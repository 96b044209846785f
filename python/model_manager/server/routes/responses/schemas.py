"""The shapes of requests and of their answers for the OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...schemas import Refused
from ..generation.schemas import REFUSED, Sampling, TemplateOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

_LENGTH = Refused("use max_output_tokens")
_ONE_ANSWER = Refused("send a request for each answer", (1,))
_KEPT = Refused(
    "this server keeps no responses; send the earlier turns as items of input, as clients do with store: false"
)
_NAMES = ("max_tokens", "max_completion_tokens", "max_new_tokens", "max_length", "n_predict", "num_predict")


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class InputPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="allow")

    type: Literal["input_text", "output_text"]
    text: str


class InputMessage(BaseModel):
    """One turn of a conversation; outputs of earlier answers are such items."""

    model_config = ConfigDict(extra="allow")

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputPart]
    id: str | None = Field(None, description="With status and phase accepted, not used.")


class ReasoningText(BaseModel):
    """Thoughts."""

    type: Literal["reasoning_text"]
    text: str


class InputReasoning(BaseModel):
    """The thoughts of an earlier answer, for models that think. The chat template decides on their use."""

    model_config = ConfigDict(extra="allow")

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None


class Reasoning(BaseModel):
    """The thoughts of an answer, which stand before its message."""

    id: str
    type: Literal["reasoning"]
    status: Literal["completed", "incomplete"]
    summary: list[Any]
    content: list[ReasoningText]


class TextFormat(BaseModel):
    """Plain text."""

    type: Literal["text"]


class TextOptions(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(extra="forbid")

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(BaseModel):
    """Whether the model thinks before it answers."""

    model_config = ConfigDict(extra="forbid")

    effort: Effort | None = Field(
        None, description='"none": do not think. Others go to the chat template, which must read reasoning_effort.'
    )
    summary: None = None
    generate_summary: None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class ResponseRequest(Sampling, TemplateOptions):
    """A conversation to answer."""

    refused: ClassVar[Mapping[str, Refused]] = {
        **{name: refusal for name, refusal in REFUSED.items() if name not in TemplateOptions.model_fields},
        # OpenAI's.
        "background": Refused("use stream: true for long answers"),
        "background_options": Refused(),
        "previous_response_id": _KEPT,
        "conversation": _KEPT,
        "prompt": Refused("send its text as instructions and input"),
        "truncation": Refused("a longer input is refused, never cut; send a shorter one", ("disabled",)),
        "context_management": Refused("send a shorter input"),
        "access_programs": Refused(),
        "image": Refused(),
        # Those of chats and of other servers.
        "messages": Refused("use input"),
        "reasoning_effort": Refused('use reasoning: {"effort": ...}', ("none",)),
        "separate_reasoning": Refused("thoughts are always items of their own; leave it out", (True,)),
        "system": Refused("use instructions"),
        **dict.fromkeys(_NAMES, _LENGTH),
        "n": _ONE_ANSWER,
        "best_of": _ONE_ANSWER,
        "logprobs": Refused(),
        "previous_input_messages": _KEPT,
        "enable_response_messages": Refused(),
    }

    input: Annotated[str, Field(min_length=1)] | Annotated[list[InputMessage | InputReasoning], Field(min_length=1)] = (
        Field(description="A text, or the turns of a conversation.")
    )
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Tokens of the answer.")
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: list[str] | None = Field(None, description="Parts of items that no answer has here.")
    metadata: dict[str, str] | None = Field(None, description="The answer repeats it.")
    store: Literal[False] | None = Field(None, description="This server keeps no responses.")
    parallel_tool_calls: bool | None = Field(None, description="Accepted, not used: there are no tools.")
    max_tool_calls: Annotated[int, Field(ge=0)] | None = Field(None, description="Accepted, not used.")
    safety_identifier: str | None = Field(None, description="Accepted, not used; the answer repeats it.")
    prompt_cache_key: str | None = Field(None, description="Accepted, not used; the answer repeats it.")


class OutputText(BaseModel):
    """The text of the answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(BaseModel):
    """The assistant's turn."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["completed", "incomplete"]
    content: list[OutputText]


class InputTokensDetails(BaseModel):
    """Of the tokens that were read."""

    cached_tokens: int = Field(description="Reused from an earlier request.")
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    """Of the tokens that were written."""

    reasoning_tokens: int = Field(description="Of the thoughts; an estimate by their share of the text.")


class ResponseUsage(BaseModel):
    """Tokens that were read and written."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why the answer is incomplete."""

    reason: Literal["max_output_tokens"]


class AnswerText(BaseModel):
    """The form of the answer."""

    format: TextFormat
    verbosity: Literal["medium"]


class AnswerReasoning(BaseModel):
    """How the model thought."""

    effort: Effort | None
    summary: None


class ResponseAnswer(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete"]
    incomplete_details: IncompleteDetails | None
    error: None
    model: str
    output: list[Reasoning | OutputMessage]
    usage: ResponseUsage
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: str | None
    reasoning: AnswerReasoning
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: AnswerText
    tool_choice: Literal["none", "auto"]
    tools: list[Any]
    top_logprobs: Literal[0]
    top_p: float
    truncation: Literal["disabled"]
    user: str | None
