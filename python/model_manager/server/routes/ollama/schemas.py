"""The shapes of Ollama's requests and answers for the OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...schemas import Refused, RequestBody
from ..generation.request import LONGEST_STOP, MOST_STOPS

if TYPE_CHECKING:
    from collections.abc import Mapping

_StopText = Annotated[str, Field(max_length=LONGEST_STOP)]
_KeepAlive = Annotated[
    float | str | None,
    Field(description='How long the model stays in memory: seconds or "5m"; 0: not at all; negative: indefinitely.'),
]


_IN_FRONT = Refused("put it in front of the text, or use /v1/embeddings")
_DRESSED = {"instruction": _IN_FRONT, "task": _IN_FRONT, "prompt_name": _IN_FRONT}
_GENERATED = {
    "tools": Refused(),
    "format": Refused("leave it out, and ask for the form of the answer in the prompt", asks=({},)),
    "suffix": Refused(),
    "images": Refused("send text only"),
    "template": Refused('leave it out, or send the whole prompt with "raw": true to /api/generate'),
    "context": Refused("send the conversation as messages to /api/chat"),
    "logprobs": Refused(),
    "top_logprobs": Refused(),
    "width": Refused(),
    "height": Refused(),
    "steps": Refused(),
    "runner": Refused(),
    "_debug_render_only": Refused(),
}


class _Request(RequestBody):
    model: Annotated[str, Field(min_length=1)] = Field(description="Name of a served model.")
    keep_alive: _KeepAlive = None


class OllamaOptions(BaseModel):
    """Options of a request for text."""

    model_config = ConfigDict(extra="allow")

    temperature: Annotated[float, Field(ge=0)] | None = Field(None, description="0: the likeliest token every time.")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="0: the likeliest token. 1: off.")
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="0 and -1: off.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = Field(None, description="Equal seeds give equal answers. -1: a random seed.")
    num_predict: Annotated[int, Field(ge=1)] | Literal[-1, -2] | None = Field(
        None, description="Tokens of the answer; -1 and -2: as many as the context holds."
    )
    stop: _StopText | Annotated[list[_StopText], Field(max_length=MOST_STOPS)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Above 1: repeats less. It covers the prompt and the answer."
    )


class OllamaEmbedRequest(_Request):
    """Texts to embed."""

    refused: ClassVar[Mapping[str, Refused]] = {**_DRESSED, "prompt": Refused("use input")}

    input: str | list[str] | None = Field(None, description="A text or several; none: load the model.")
    truncate: bool | None = Field(None, description="false: refuse texts that are longer than the model's maximum.")
    dimensions: Annotated[int, Field(ge=1, le=65536)] | None = Field(None, description="Keep this many dimensions.")
    options: dict[str, Any] | None = Field(None, description="Accepted; no option changes a vector.")


class OllamaEmbedAnswer(BaseModel):
    """The vectors of all texts, in their order. Durations are in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None


class OllamaEmbeddingsRequest(_Request):
    """One text to embed."""

    refused: ClassVar[Mapping[str, Refused]] = {
        **_DRESSED,
        "input": Refused("use prompt, or /api/embed"),
        "dimensions": Refused("use /api/embed"),
    }

    prompt: str | None = Field(None, description="The text; none: load the model.")
    options: dict[str, Any] | None = Field(None, description="Accepted; no option changes a vector.")


class OllamaEmbeddingsAnswer(BaseModel):
    """One vector."""

    embedding: list[float]


class _Text(_Request):
    stream: bool | None = Field(None, description="false: one object; else one object a line, piece by piece.")
    options: OllamaOptions | None = None
    truncate: bool | None = Field(None, description="Accepted, not used: prompts are never cut.")
    shift: bool | None = Field(None, description="Accepted, not used: contexts are never shifted.")
    think: bool | Literal["low", "medium", "high"] | None = Field(
        None, description="true: think, and answer with the thoughts in a field of their own. false: do not think."
    )


class OllamaGenerateRequest(_Text):
    """A prompt to answer."""

    refused: ClassVar[Mapping[str, Refused]] = {**_GENERATED, "messages": Refused("use /api/chat")}

    prompt: str | None = Field(None, description="The text; none: load the model.")
    system: str | None = Field(None, description="The system message.")
    raw: bool | None = Field(None, description="true: continue the prompt without the model's chat template.")


class OllamaMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str
    thinking: str | None = Field(None, description="The thoughts of an answer of a model that thinks.")


class OllamaChatRequest(_Text):
    """A conversation to answer."""

    refused: ClassVar[Mapping[str, Refused]] = {
        **_GENERATED,
        "system": Refused('send it as a message with the role "system"'),
        "prompt": Refused("send it as a message, or use /api/generate"),
        "raw": Refused("use /api/generate"),
    }

    messages: list[OllamaMessage] | None = Field(None, description="The conversation; none: load the model.")


class _Answer(BaseModel):
    """Durations are in nanoseconds. The figures are missing when a model was only loaded or unloaded."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"]
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class OllamaGenerateAnswer(_Answer):
    """A whole answer."""

    response: str
    thinking: str | None = Field(None, description="The thoughts, with think.")


class OllamaChatAnswer(_Answer):
    """A whole answer."""

    message: OllamaMessage


class OllamaDetails(BaseModel):
    """What is known of a model; empty until its first load."""

    parent_model: str
    format: str
    family: str
    families: list[str] | None
    parameter_size: str
    quantization_level: str = Field(description="The type of its weights.")


class OllamaTag(BaseModel):
    """A served model."""

    name: str
    model: str
    modified_at: str = Field(description="When the server started.")
    size: int = Field(description="Memory held now, bytes.")
    digest: str = Field(description="Identifies the model's source, not its content.")
    details: OllamaDetails


class OllamaTags(BaseModel):
    """All served models, also by their aliases."""

    models: list[OllamaTag]


class OllamaShowRequest(RequestBody):
    """The model to describe."""

    refused: ClassVar[Mapping[str, Refused]] = {name: Refused() for name in ("system", "template", "options")}

    model: Annotated[str, Field(min_length=1)]
    name: str | None = Field(None, description="An older name of `model`.")
    verbose: bool | None = Field(None, description="Accepted, not used: the answer is the same.")


class OllamaShowAnswer(BaseModel):
    """What is known of a model."""

    license: str
    modelfile: str
    parameters: str
    template: str
    modified_at: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[Literal["embedding", "completion", "thinking"]]


class OllamaVersion(BaseModel):
    """The version of Ollama's API."""

    version: str
