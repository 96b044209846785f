"""The shapes of requests and answers for the OpenAPI document. Own code checks requests, with better messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

if TYPE_CHECKING:
    from collections.abc import Mapping

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Unused = Annotated[Any, Field(description="Accepted, not used: the answer does not depend on it.")]
Token = Annotated[int, Field(ge=0, lt=2**32)]


@dataclass(frozen=True)
class Refused:
    """A field without support.

    Args:
        remedy: What a client can do instead.
        off: Values that change nothing, besides null and what is empty. Without a true value or a number among them
            false and 0 change nothing either.
        asks: Empty values that ask for something nevertheless.
    """

    remedy: str = "leave it out"
    off: tuple[Any, ...] = ()
    asks: tuple[Any, ...] = ()

    def refuses(self, value: Any) -> bool:
        """Whether this value would change the answer."""
        # True equals 1, which is another value of JSON.
        if any(value == one and type(value) is type(one) for one in self.off):
            return False
        if isinstance(value, int | float) and any(isinstance(one, int | float) for one in self.off):
            # What is off with true is on with false: normalize, do_sample.
            return True
        return bool(value) or any(value == one and type(value) is type(one) for one in self.asks)


class RequestBody(BaseModel):
    """A request. Other fields than these are refused by name; null is as if a field were left out."""

    model_config = ConfigDict(extra="forbid")

    refused: ClassVar[Mapping[str, Refused]] = {}
    """Fields of other servers without support here, and what to do."""
    accepts_unknown: ClassVar[bool] = False
    """Whether all other fields are accepted without effect."""


class ErrorDetail(BaseModel):
    """The error."""

    message: str
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "rate_limit_error",
        "server_error",
        "service_unavailable",
    ]
    param: str | None = Field(description="The field at fault.")
    code: str | None = Field(description="A name of the mistake for programs.")


class ErrorBody(BaseModel):
    """The form of every error answer, except at the endpoints of Ollama's API."""

    error: ErrorDetail


class PlainError(BaseModel):
    """An error answer in the form of Ollama's API."""

    error: str


_CUT = Refused("send truncate: true, which cuts at the model's maximum, or cut the texts yourself", (-1,))
"""-1 stands for the model's maximum."""
_CUT_AT_END = Refused("texts are cut at their end; leave it out", ("Right", "right"))
_LENGTH_ONE = Refused("vectors have length 1; leave it out", (True,))


class EmbeddingsRequest(RequestBody):
    """Texts to embed."""

    model_config = ConfigDict(extra="allow")

    accepts_unknown = True  # callers of the server that this one replaces send fields of their own
    refused: ClassVar[Mapping[str, Refused]] = {
        "input_type": Refused("use task, prompt_name or instruction"),
        "embedding_type": Refused("use encoding_format", ("float",)),
        "output_dimension": Refused("use dimensions"),
        "output_dtype": Refused("vectors are float32; leave it out", ("float",)),
        "normalize": _LENGTH_ONE,
        "normalized": _LENGTH_ONE,
        "late_chunking": Refused(),
        "truncate_prompt_tokens": _CUT,
        "truncation": Refused("use truncate", (True,)),
        "add_special_tokens": Refused("send token ids to leave special tokens out", (True,)),
        "prompt": Refused("use instruction, or prompt_name"),
        "dimension": Refused("use dimensions"),
        "truncate_dim": Refused("use dimensions"),
        "embed_dtype": Refused("vectors are float32; leave it out", ("float32",)),
        "endianness": Refused("base64 is little-endian; leave it out", ("native", "little")),
        "embedding_types": Refused("use encoding_format", (["float"],)),
        "embd_normalize": Refused("vectors have length 1; leave it out", (2,)),
        "pooling": Refused("the model's own is used; leave it out"),
        "modality": Refused("inputs are texts; leave it out", ("text",)),
    }

    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=2048)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=2048)]
    ) = Field(description="A text, several texts, or their tokens as ids of the model's own vocabulary.")
    model: str | None = Field(None, description="Name of a served model; the first one without it.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Vectors as lists of numbers (default), or as base64 of little-endian float32."
    )
    dimensions: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        None, description="Keep this many dimensions and scale to length 1 again."
    )
    instruction: str | None = Field(None, description="Text in front of every input, followed by a line break.")
    task: str | None = Field(
        None, description="The task whose instruction is used, for models with instructions; unknown: text_search."
    )
    prompt_name: str | None = Field(
        None, description="The name of one of the model's own prompts, which is put in front of every input."
    )
    truncate: bool | None = Field(None, description="false: refuse inputs that are longer than the model's maximum.")
    keep_alive: float | str | None = Field(
        None,
        description="How long the model stays after this use: seconds or '5m'; 0: not at all; negative: indefinitely.",
    )
    user: str | None = Field(
        None,
        description="The user of the request. With `keep_alive` auto, models that they need next are loaded ahead.",
    )
    metadata: Unused = None
    store: Unused = None
    request_id: Unused = None
    priority: Unused = None


class PlainEmbeddingsRequest(RequestBody):
    """Texts to embed as they are."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "input": Refused("use inputs, or /v1/embeddings"),
        "normalize": _LENGTH_ONE,
        "truncation_direction": _CUT_AT_END,
        "parameters": Refused("send its items as fields of their own"),
    }

    inputs: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=2048)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=2048)]
    ) = Field(description="A text, several texts, or their tokens as ids of the model's own vocabulary.")
    model: str | None = Field(None, description="Name of a served model; the first one without it.")
    dimensions: Annotated[int, Field(ge=1, le=65536)] | None = Field(None, description="Keep this many dimensions.")
    prompt_name: str | None = Field(None, description="The name of one of the model's own prompts.")
    truncate: bool | None = Field(None, description="false: refuse inputs that are longer than the model's maximum.")
    keep_alive: float | str | None = Field(None, description="How long the model stays after this use.")


class PlainEmbeddingsAnswer(RootModel[list[list[float]]]):
    """The vectors of all texts, in their order."""


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """The tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """The vectors of all texts, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Document(BaseModel):
    """A document with further fields, which are no part of its text."""

    model_config = ConfigDict(extra="allow")

    text: str


class Query(BaseModel):
    """A query as an object."""

    model_config = ConfigDict(extra="forbid")

    text: Text


class RerankRequest(RequestBody):
    """A query and documents. `texts` instead of `documents` asks for the form of text-embeddings-inference."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "top_k": Refused("use top_n"),
        "max_chunks_per_doc": _CUT,
        "relevant_spans": Refused(),
        "truncate_prompt_tokens": _CUT,
        "truncation": Refused("use truncate", (True,)),
        "truncation_direction": _CUT_AT_END,
        "rank_fields": Refused("put what is to be judged into the documents' text", (["text"],)),
    }

    query: Text | Query
    documents: list[str | Document] | None = Field(None, description="The documents, at least one.")
    texts: list[str] | None = Field(None, description="The same, answered by a list of index and score.")
    model: str | None = Field(None, description="A reranker's slot or source; the manager's own one without it.")
    top_n: Annotated[int, Field(ge=1)] | None = Field(None, description="Only so many results; all without it.")
    return_documents: bool | None = Field(None, description="Whether results hold their texts.")
    return_text: bool | None = Field(None, description="The same, with `texts`.")
    raw_scores: bool | None = Field(None, description="With `texts`: the model's logits.")
    instruction: str | None = Field(None, description="What to judge by, for models that take an instruction.")
    prompt_name: str | None = Field(None, description="The name of one of the model's own instructions.")
    truncate: bool | None = Field(None, description="false: refuse pairs that are longer than the model's maximum.")
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Accepted where it cuts nothing: no document is longer without special tokens, or the model's "
        "maximum is less.",
    )
    keep_alive: float | str | None = Field(None, description="How long the model stays after this use.")
    user: Unused = None
    request_id: Unused = None
    priority: Unused = None


class RerankResult(BaseModel):
    """One document."""

    index: int
    relevance_score: float
    document: Document | None = None


class RerankAnswer(BaseModel):
    """The documents, best first."""

    model_config = ConfigDict(extra="allow")

    id: str
    model: str
    results: list[RerankResult]
    usage: Usage


class TextScore(BaseModel):
    """One text in the form of text-embeddings-inference."""

    index: int
    score: float
    text: str | None = None


class AnyRerankAnswer(RootModel[RerankAnswer | list[TextScore]]):
    """Results for `documents`; a list of index and score, best first, for `texts`."""


class ClassifyRequest(RequestBody):
    """Texts, or pairs of texts."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "inputs": Refused("use input"),
        "raw_scores": Refused(),
        "truncate_prompt_tokens": _CUT,
    }

    input: str | list[str] | list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    model: str | None = Field(None, description="A classifier's slot or source; the manager's reranker without it.")
    truncate: bool | None = Field(None, description="false: refuse inputs that are longer than the model's maximum.")
    keep_alive: float | str | None = Field(None, description="How long the model stays after this use.")
    user: Unused = None
    request_id: Unused = None
    priority: Unused = None


class LabelledInput(BaseModel):
    """The labels of one input."""

    index: int
    label: str
    probs: list[float]
    scores: dict[str, float]
    num_classes: int


class ClassifyAnswer(BaseModel):
    """The labels of all inputs, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[LabelledInput]
    usage: Usage


class SparseRequest(RequestBody):
    """Texts for sparse vectors. `input` means the same as `inputs`."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "truncation_direction": _CUT_AT_END,
    }

    inputs: str | list[str] | None = None
    input: str | list[str] | None = None
    model: str | None = Field(None, description="A slot or source of kind `sparse`; the only one without it.")
    prompt_name: str | None = Field(None, description="One of the model's prompts.")
    truncate: bool | None = Field(None, description="false: refuse texts that are longer than the model's maximum.")
    keep_alive: float | str | None = Field(None, description="How long the model stays after this use.")


class SparseWeight(BaseModel):
    """One entry of the vocabulary."""

    index: int
    value: float


class SparseAnswer(RootModel[list[list[SparseWeight]]]):
    """The weights of every text."""


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    capabilities: dict[str, Any]


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    """Whether the process runs, and the state of its default model."""

    status: Literal["healthy", "degraded", "draining"]
    model_available: bool
    model_name: str
    dimensions: int | None
    timestamp: str


class Ready(BaseModel):
    """Whether this server accepts requests."""

    status: Literal["ready", "loading", "unavailable", "draining"]
    reason: str | None


class AiHealth(BaseModel):
    """The manager's own report."""

    model_config = ConfigDict(extra="allow")

    status: Literal["healthy", "error"]
    timestamp: str


class RunningModel(BaseModel):
    """A model in memory."""

    model_config = ConfigDict(extra="allow")

    name: str
    model: str
    size: int
    size_vram: int = Field(description="Of it, bytes on a card.")
    context_length: int | None = Field(description="Tokens that the model reads; null: only its server knows.")
    expires_at: str = Field(description="9999-12-31T23:59:59Z: it stays.")


class Running(BaseModel):
    """All models in memory."""

    models: list[RunningModel]


class LoadRequest(RequestBody):
    """The model to load or unload."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "name": Refused("use model"),
        "keep_alive": Refused("send it with the requests that use the model"),
    }

    model: str | None = Field(None, description="Name of a served model; the first one without it.")


class HintRequest(RequestBody):
    """The model that will be needed soon."""

    model: str | None = Field(None, description="Name of a served model; the first one without it.")
    user: str | None = Field(None, description="Who will need it.")


class Hinted(BaseModel):
    """What a hint leads to."""

    model: str
    slot: str
    expected: bool = Field(description="Whether the model is loaded once the server is idle: it has `keep_alive` auto.")
    loaded: bool


class WarmUpRequest(RequestBody):
    """The models to load."""

    models: list[str] | None = Field(
        None, description="Names of models; without it the embedding models of the settings."
    )


class Loaded(BaseModel):
    """The result for one model."""

    model: str
    slot: str
    loaded: bool
    seconds: float


class AllLoaded(BaseModel):
    """The results for several models."""

    models: list[Loaded]
