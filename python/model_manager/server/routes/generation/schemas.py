"""The shapes of requests for text and of their answers for the OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...schemas import Refused, RequestBody, Token, Unused
from .request import LONGEST_STOP, MOST_STOPS

if TYPE_CHECKING:
    from collections.abc import Mapping

StopText = Annotated[str, Field(max_length=LONGEST_STOP)]


_FORM = Refused("ask for the form of the answer in the prompt")
_SCHEMA = Refused(_FORM.remedy, asks=({},))
"""A schema without conditions still asks for JSON."""
_TEMPLATE = Refused("the model's own chat template is used; leave it out")
_CHOICE = Refused("tools are not supported; leave it out", ("none", "auto"))
_PENALTY = Refused("use repetition_penalty (1: off; 1.1: weak) against repetition")
_LENGTH = Refused("use max_tokens")


def _thinking(*off: Any) -> Refused:
    """A field that makes a model think before it answers, or not to. `template_variables` looks at the `off` values."""
    return Refused(_TEMPLATE.remedy, off)


REFUSED = {
    # OpenAI's.
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "logit_bias": Refused(),
    "tools": Refused(),
    "functions": Refused(),
    "tool_choice": _CHOICE,
    "function_call": _CHOICE,
    "audio": Refused(),
    "modalities": Refused('only ["text"] is', (["text"],)),
    "response_format": Refused(
        'only {"type": "text"} is; ask for the form of the answer in the prompt', ({"type": "text"},)
    ),
    "reasoning_effort": _thinking("none"),
    "verbosity": Refused("ask for it in the prompt", ("medium",)),
    "web_search_options": Refused(asks=({},)),
    "moderation": Refused(),
    # Those of other servers.
    "guided_json": _SCHEMA,
    "guided_regex": _FORM,
    "guided_choice": _FORM,
    "guided_grammar": _FORM,
    "guided_decoding_backend": _FORM,
    "guided_whitespace_pattern": _FORM,
    "structured_outputs": _FORM,
    "json_schema": _SCHEMA,
    "grammar": _FORM,
    "regex": _FORM,
    "chat_template": _TEMPLATE,
    "chat_template_kwargs": _thinking({"enable_thinking": False}, {"thinking": False}),
    "enable_thinking": _thinking(False),
    "thinking": _thinking({"type": "disabled"}),
    "include_reasoning": Refused(
        "leave it out; separate_reasoning: true of /v1/chat/completions divides answers", (True,)
    ),
    "separate_reasoning": Refused("use /v1/chat/completions"),
    "documents": Refused("put them into the messages"),
    "add_generation_prompt": Refused(off=(True,)),
    "continue_final_message": Refused("use /v1/chat/completions, or send the text as prompt to /v1/completions"),
    "use_beam_search": Refused(),
    "length_penalty": Refused(off=(1, 1.0)),
    "typical_p": Refused("use top_p", (1, 1.0)),
    "mirostat": Refused(),
    "min_new_tokens": Refused("use min_tokens"),
    "max_new_tokens": _LENGTH,
    "max_length": _LENGTH,
    "n_predict": _LENGTH,
    "num_predict": _LENGTH,
    "do_sample": Refused("use temperature: 0 for the likeliest tokens", (True,)),
    "repeat_penalty": Refused("use repetition_penalty", (1, 1.0)),
    "stop_token_ids": Refused("use stop"),
    "bad_words": Refused(),
    "allowed_token_ids": Refused(),
    "ignore_eos": Refused("use min_tokens"),
    "include_stop_str_in_output": Refused(),
    "skip_special_tokens": Refused(off=(True,)),
    "spaces_between_special_tokens": Refused(off=(True,)),
    "prompt_logprobs": Refused(),
    "logits_processors": Refused(),
    "return_token_ids": Refused(),
    "return_tokens_as_token_ids": Refused(),
    "mm_processor_kwargs": Refused(),
    "vllm_xargs": Refused(),
    "truncate_prompt_tokens": Refused("send a shorter prompt"),
    "options": Refused("send its items as fields of their own, or use Ollama's API at /api/chat"),
}
"""Fields that no endpoint for text supports, in OpenAI's protocol."""
_OF_CHATS = (
    *("chat_template_kwargs", "reasoning_effort", "enable_thinking", "thinking", "separate_reasoning"),
    *("add_generation_prompt", "continue_final_message"),
)
"""Those of them that /v1/chat/completions supports."""


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str
    id: Unused = None
    index: Unused = None
    annotations: Unused = None
    cache_control: Unused = None
    prompt_cache_breakpoint: Unused = None


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = Field(None, description="Accepted, not used: chat templates have no names.")
    reasoning_content: str | None = Field(
        None, description="The thoughts of an earlier answer, for models that think. Their template decides on its use."
    )
    id: Unused = None
    cache_control: Unused = None
    prompt_cache_breakpoint: Unused = None


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = Field(None, description="Report the usage in a last event.")
    include_obfuscation: bool | None = Field(None, description="Accepted, not used.")


class Sampling(RequestBody):
    """The fields that all requests for text have in OpenAI's protocol."""

    model: str | None = Field(None, description="A text generator's name or source; the first one without it.")
    stream: bool | None = Field(None, description="Send the answer in pieces, as server-sent events.")
    stream_options: StreamOptions | None = None
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
    keep_alive: float | str | None = Field(None, description="How long the model stays in memory: seconds or '5m'.")
    user: str | None = Field(
        None, description="The user of the request. Computed prompt prefixes are reused for the same user only."
    )
    top_logprobs: Literal[0] | None = Field(None, description="Not supported.")
    service_tier: Unused = None
    prompt_cache_retention: Unused = None
    prompt_cache_options: Unused = None
    request_id: Unused = None
    priority: Unused = None
    cache_salt: Unused = None
    cache_prompt: Unused = None


class _Generation(Sampling):
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Tokens of the answer.")
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Overrides max_tokens.")
    n: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Answers per prompt. With a seed each further answer gets the next seed."
    )
    best_of: Annotated[int, Field(ge=1)] | None = Field(None, description="Equal to n, or left out.")
    logprobs: Literal[False] | None = Field(None, description="Not supported.")
    metadata: Unused = None
    store: Unused = None
    safety_identifier: Unused = None
    prompt_cache_key: Unused = None
    prediction: Unused = None
    parallel_tool_calls: Unused = None


class ThinkingSwitch(BaseModel):
    """Whether the model thinks before it answers."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["enabled", "disabled"]


class TemplateOptions(BaseModel):
    """The fields that set variables of the chat template."""

    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description='Variables of the chat template, such as {"enable_thinking": false}. It must read them.'
    )
    enable_thinking: bool | None = Field(None, description="The same variable of chat_template_kwargs.")
    thinking: ThinkingSwitch | bool | None = Field(None, description="Turns thinking on or off.")


class ChatRequest(_Generation, TemplateOptions):
    """A conversation to answer."""

    refused: ClassVar[Mapping[str, Refused]] = {
        **{name: refusal for name, refusal in REFUSED.items() if name not in _OF_CHATS},
        "prompt": Refused("use /v1/completions"),
        "system": Refused("send it as a message"),
        "echo": Refused(),
        "suffix": Refused(),
        "add_special_tokens": Refused("the chat template has them; leave it out", (False,)),
    }

    messages: Annotated[list[Message], Field(min_length=1)]
    reasoning_effort: str | None = Field(
        None, description='"none": do not think. Others go to the chat template, which must read this variable.'
    )
    continue_final_message: bool | None = Field(
        None, description="true: the answer continues the last message, and is the text that follows it."
    )
    add_generation_prompt: bool | None = Field(None, description="The opposite of continue_final_message.")
    separate_reasoning: bool | None = Field(
        None, description="true: the thoughts are reasoning_content, apart from content."
    )


class CompletionRequest(_Generation):
    """Texts to continue."""

    refused: ClassVar[Mapping[str, Refused]] = {
        **REFUSED,
        "messages": Refused("use /v1/chat/completions"),
        "echo": Refused(),
        "suffix": Refused(),
        "add_special_tokens": Refused("send token ids to leave special tokens out", (True,)),
    }

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
    reasoning_content: str | None = Field(None, description="The thoughts, with separate_reasoning.")
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
