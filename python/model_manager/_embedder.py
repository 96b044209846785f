"""One model for documents and queries, as an index needs it: one slot, the right prompts, one vector length.

The indexer, the LangChain and LlamaIndex adapters and the command line use it.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from collections.abc import Iterator

from ._arguments import a_manager, a_text, an_int, an_iterable, type_error
from ._scoring import RERANKER
from .compat.chatbot import model_manager
from .errors import InputError
from .handles.sentence_model import DOCUMENT_PROMPTS, QUERY_PROMPTS, find_prompt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Literal

    import numpy as np
    from numpy.typing import NDArray

    from ._core import ArrowVectors, Manager, Ticket
    from ._scoring import ScoringManager
    from ._types import ArrowColumn, Description
    from .chunks import TextChunk

    Vectors = NDArray[np.float32]

logger = logging.getLogger(__name__)

_PROBE = "When is it?"
"""A text whose vector shows which checkpoint is in memory of a model that the core cannot identify: that of a server.
It is short: no model cuts it.
"""
_DIGITS = 64
"""Of a hash of a model's content. Other tags are shorter."""
SAME = 0.999
"""The least cosine of two vectors of a text that are those of one model. Other hardware and batches change less."""

_BEGINNING = 4
"""Letters that two names share when one may be short for the other: english, english2, turkçe."""

# The user part of an address, unless it names the variable that holds the key.
_KEY = re.compile(r"(?<=://)(?!env:\w+@[^/@]*(?:/|$))[^/\s]*@")
_SERVED = re.compile(r"(ollama|openai)(\+https?)?://", re.IGNORECASE)


def without_key(source: str) -> str:
    """`source`, or any address, for display: a key or password in it is hidden."""
    return _KEY.sub("***@", source)


def is_served(source: str | None) -> bool:
    """Whether a source is the model of a server. The address of a page of the hub is no such source."""
    return source is not None and _SERVED.match(source) is not None


def slot_for(
    manager: Manager, model: str | None, kind: Literal["embedding", "reranker", "sparse"] | None = "embedding"
) -> str:
    """The slot for `model`: the one of that name, else a new slot with `model` as its source (a hub id, a folder, …).
    None: the preferred sentence model.

    The files of a model for embedding may say that it scores or gives sparse vectors: its first use then raises
    `TaskError`. Those of a language model embed, with a warning when it is loaded.
    """
    if model is None:
        return "turkish_sentence" if manager.config.prefer_turkish else "english_sentence"
    slot = without_key(model)  # names are logged
    if slot not in manager.slots() and slot != RERANKER:  # its first use makes that slot
        _warn_of_a_near_name(slot, manager)
        try:
            manager.register(slot, model, kind="encoder" if kind == "embedding" else kind)
        except InputError:
            if slot not in manager.slots():  # another thread may have registered it
                raise
    return slot


def _warn_of_a_near_name(name: str, manager: Manager) -> None:
    """Say what a name without a slot is taken for, where it looks like that of one: it is close to it, or both begin
    with the same letters.
    """
    from difflib import get_close_matches

    if any(mark in name for mark in "/\\:"):  # an id, a folder or an address
        return
    # Not those that were made here, which are called as their source.
    slots = [slot for slot, state in manager.stats()["slots"].items() if state["source"] != slot] + [RERANKER]
    near = get_close_matches(name, slots, 1) or [slot for slot in slots if slot[:_BEGINNING] == name[:_BEGINNING]]
    if near:
        logger.warning(
            "no slot is called %r, so it is taken for the source of a model; there is a slot %r", name, near[0]
        )


def _a_scorer(given: Any) -> Any:
    if not hasattr(given, "rerank"):
        raise type_error("manager", "a ModelManager", given)
    return given


def reranker_for(manager: ScoringManager | None, model: str | None) -> tuple[ScoringManager, str]:
    """The manager (None: the process-wide one), and its slot for `model`: the one of that name, else a new slot with
    `model` as its source. None: ``reranker``.
    """
    found: ScoringManager = model_manager if manager is None else _a_scorer(manager)
    if model is None or model == RERANKER:
        return found, RERANKER
    return found, slot_for(found, model, "reranker")


def fingerprint_of(known: Description, dimension: int | None, names: Sequence[str] = DOCUMENT_PROMPTS) -> str:
    """A hash of everything but the text that a described model's vectors of documents depend on, or of queries: those
    that get the prompt of one of these names.
    """
    prompt = find_prompt(known["prompts"], names) or known["default_prompt_name"]
    parts = [
        known["source"].rstrip("/").rpartition("/")[2],
        known["architecture"],
        known["pooling"] or "",
        str(dimension),
        known["prompts"].get(prompt or "", ""),
    ]
    if known["adapter_content"]:
        parts.append(known["adapter_content"])  # many adapters have one name: checkpoint-500
    if known["chat_template"]:
        parts.append("chat_template")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def is_exact(fingerprint: str) -> bool:
    """Whether the tag of a `query_fingerprint` is a hash of the model's content."""
    return len(fingerprint.partition("-")[2]) == _DIGITS


def model_of(known: Description) -> str:
    """The source of a described model, with its adapter: the name under which results of different models are kept."""
    return known["source"] if known["adapter"] is None else f"{known['source']} + {known['adapter']}"


def _texts(given: Any) -> Any:
    """Several texts, as given. Numbers and lists of them are refused: the core would read them as token ids."""
    items = an_iterable("texts", given, "several texts")
    first = list(itertools.islice(items, 1))
    if first and not isinstance(first[0], str):
        raise type_error("texts[0]", "a str", first[0])
    return itertools.chain(first, items) if isinstance(items, Iterator) else items


class Embedder:
    """Vectors of one model. Documents get its prompt named ``document`` (``passage``, ``corpus``), queries the one
    named ``query``. A model without them uses its default prompt, if it has one.
    """

    def __init__(self, manager: Manager | None = None, model: str | None = None, dimensions: int | None = None) -> None:
        self.manager: Manager = model_manager if manager is None else a_manager(manager)
        if model is not None:
            a_text("model", model)
        self.slot = slot_for(self.manager, model)
        self._dimensions = None if dimensions is None else an_int("dimensions", dimensions, 1)
        self._known: tuple[int, Description] | None = None
        """The slot's registration, and the description of its model."""
        self._identified = True
        """Whether the core could identify the model of the latest call."""
        self._checkpoints: list[tuple[Vectors, str]] = []
        """Vectors of `_PROBE`, of length 1, and their tags."""

    def describe(self) -> Description:
        """The description of the slot's present model. It loads the model, unless an earlier call described it."""
        return self._described() or self._describe_anew()

    def _described(self) -> Description | None:
        """The description, if it can be had without loading the model."""
        registration = self.manager._registration(self.slot)
        known = self.manager.describe(self.slot, load=False)
        if known is not None:
            self._known = registration, known
            return known
        # It is not in memory; the next use may load another one. A slot that was registered again has other settings.
        if self._known is None or self._known[0] != registration:
            return None
        known = self._known[1]
        return known if known["source"] == self.manager.stats()["slots"][self.slot]["source"] else None

    def _describe_anew(self) -> Description:
        registration = self.manager._registration(self.slot)
        known = self.manager.describe(self.slot)
        self._known = registration, known
        return known

    @property
    def dimension(self) -> int:
        """Length of a vector. Raises `InputError` when more dimensions are asked for than the model has."""
        return self._length(self.describe())

    def _length(self, known: Description) -> int:
        own = known["dimension"]
        if self._dimensions is not None and not 1 <= self._dimensions <= own:
            raise InputError(f"dimensions={self._dimensions}: {self.slot} has vectors of {own} dimensions")
        return self._dimensions or own

    @property
    def fingerprint(self) -> str:
        """A hash of everything but the text that document vectors depend on: model, length, prompt. A folder counts by
        its name only, and an adapter by what it contains, so that an index can move between machines.
        """
        return fingerprint_of(self.describe(), self.dimension)

    @property
    def query_fingerprint(self) -> str:
        """`fingerprint` of the vectors of queries, and a tag of the checkpoint."""
        return self.query_model[1]

    @property
    def query_model(self) -> tuple[str, str]:
        """The source of the slot's present model with its adapter, and `query_fingerprint`. Vectors of queries are
        compared only with those of an equal value. Two checkpoints of one name have different values. So may a server's
        model in two processes, whose vectors differ by rounding.
        """
        return self.queries_of_one_model([])[1]

    @property
    def checkpoint(self) -> str:
        """A tag of the slot's present checkpoint: a hash of its files and of the format of its weights (`is_exact`).
        Equal checkpoints of a server have equal tags as a rule; others have other ones, unless their vectors of a short
        text are nearly the same.
        """
        return self.query_fingerprint.partition("-")[2]

    def _query_form(self) -> tuple[str, str]:
        """`query_model` without the tag."""
        known = self.describe()
        return model_of(known), fingerprint_of(known, self._length(known), QUERY_PROMPTS)

    def _checkpoint(self, probe: Vectors) -> str:
        """A tag of the checkpoint that gives this vector of `_PROBE`."""
        import numpy as np

        unit = probe / max(float(np.linalg.norm(probe)), 1e-30)
        for known, tag in self._checkpoints:
            # Of unit vectors: the cosine is at least `SAME`.
            if known.shape == unit.shape and float(np.sum(np.square(known - unit))) <= 2 - 2 * SAME:
                return tag
        # Rounded, so that two processes have the same tag as a rule.
        tag = hashlib.sha256((np.round(unit, 2) + 0.0).astype("<f2").tobytes()).hexdigest()[:16]
        self._checkpoints.append((unit, tag))
        return tag

    @property
    def truncated(self) -> int:
        """Texts of the slot that were cut so far."""
        return self.manager.stats()["slots"][self.slot]["truncated"]

    def chunks(self, text: str, **options: Any) -> list[TextChunk]:
        """A document in chunks, see `BaseManager.chunk`, with room for the prompt for documents."""
        from .chunks import TextChunk

        found = self.manager._chunk(text, self.slot, **self._options(DOCUMENT_PROMPTS, options, dimensions=False))
        return [TextChunk(*chunk) for chunk in found]

    def documents(self, texts: Sequence[str], **options: Any) -> Vectors:
        """Vectors of documents, shape (n, dimension). Other arguments and errors are those of `Manager.embed`."""
        texts = _texts(texts)
        vectors: Vectors = self.manager.embed(texts, self.slot, **self._options(DOCUMENT_PROMPTS, options))
        return vectors

    def documents_arrow(self, column: ArrowColumn, **options: Any) -> ArrowVectors:
        """`documents` of an Arrow column, see `Manager.embed_arrow`."""
        return self.manager.embed_arrow(column, self.slot, **self._options(DOCUMENT_PROMPTS, options))

    def queries_arrow(self, column: ArrowColumn, **options: Any) -> ArrowVectors:
        """`queries` of an Arrow column."""
        return self.manager.embed_arrow(column, self.slot, **self._options(QUERY_PROMPTS, options))

    def submit_documents(self, texts: Iterable[str], on_done: Callable[[Any, BaseException | None], object]) -> Ticket:
        """`documents` without waiting, see `Manager.submit`."""
        return self.manager.submit(texts, on_done, self.slot, **self._options(DOCUMENT_PROMPTS, {}))

    def query(self, text: str, **options: Any) -> Vectors:
        """Vector of a query, shape (dimension,), read-only."""
        a_text("text", text)
        vectors: Vectors = self.manager.embed(text, self.slot, **self._options(QUERY_PROMPTS, options))
        return vectors

    def queries(self, texts: Sequence[str], **options: Any) -> Vectors:
        """Vectors of queries, shape (n, dimension)."""
        texts = _texts(texts)
        vectors: Vectors = self.manager.embed(texts, self.slot, **self._options(QUERY_PROMPTS, options))
        return vectors

    def queries_of_one_model(self, texts: Sequence[str]) -> tuple[Vectors, tuple[str, str]]:
        """`queries`, and the `query_model` that made all of them. A model that changes meanwhile is asked again."""
        while True:
            form = self._query_form()
            # One call has vectors of one model. The cache of vectors has that of a probe until the model changes.
            probes = [] if self._identified else [_PROBE]
            vectors, content = self._queries_identified([*texts, *probes])
            self._identified = content is not None
            if content is None and not probes:
                continue
            if self._query_form() == form:
                source, fingerprint = form
                return vectors[: len(texts)], (source, f"{fingerprint}-{content or self._checkpoint(vectors[-1])}")

    def _queries_identified(self, texts: Sequence[str]) -> tuple[Vectors, str | None]:
        """`queries`, and a hash of the content of the model that made them, if the core knows it."""
        return self.manager._embed_identified(texts, self.slot, **self._options(QUERY_PROMPTS, {}))

    async def adocuments(self, texts: Sequence[str]) -> Vectors:
        """`documents` for asyncio."""
        texts = _texts(texts)
        return await self._aembed(texts, DOCUMENT_PROMPTS)

    async def aquery(self, text: str) -> Vectors:
        """`query` for asyncio."""
        a_text("text", text)
        return await self._aembed(text, QUERY_PROMPTS)

    async def _aembed(self, texts: str | Sequence[str], names: Sequence[str]) -> Vectors:
        import asyncio

        from ._async import aembed

        known = self._described() or await asyncio.to_thread(self._describe_anew)
        return await aembed(self.manager, texts, self.slot, **self._options(names, {}, known))

    def _options(
        self,
        names: Sequence[str],
        options: dict[str, Any],
        known: Description | None = None,
        *,
        dimensions: bool = True,
    ) -> dict[str, Any]:
        if dimensions:
            options.setdefault("truncate_dim", self._dimensions)
        if options.get("prompt") is None and options.get("prompt_name") is None:
            options["prompt_name"] = find_prompt((known or self.describe())["prompts"], names)
        return options
