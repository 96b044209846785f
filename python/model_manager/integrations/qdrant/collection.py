"""What a collection holds: the names and forms of its vectors, and the models that filled it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from qdrant_client import models

from ..._arguments import argument_error, type_error
from ...errors import ModelManagerError
from .probe import PROBE, differs

if TYPE_CHECKING:
    from collections.abc import Callable

METADATA = "model_manager"
"""The key of a collection's metadata that says whose vectors it holds. Qdrant keeps metadata from version 1.16 on."""

CHUNKS = "chunks"
"""The key of the metadata that says whether the points are chunks."""

KINDS = ("dense", "sparse", "multi")
"""The kinds of vectors, which are also their names in a new collection."""
REMEDY = "choose another collection, or recreate this one (all its points are lost)"


class CollectionError(ModelManagerError, ValueError):
    """The collection does not fit (another model, dimension or measure, no such vectors) or does not exist."""


class Layout(NamedTuple):
    """The names of a collection's vectors of each kind; None: it has none of that kind, or they are not used."""

    dense: str | None
    """The empty name for a collection whose one vector has no name."""
    sparse: str | None = None
    multi: str | None = None

    @property
    def plain(self) -> bool:
        """Whether a point is one vector without a name."""
        return self == ("", None, None)


@dataclass(frozen=True)
class Wanted:
    """The vectors that an indexer needs."""

    dimension: int | None
    """Of the dense vectors; None: there are none."""
    sparse: models.Modifier | None = None
    """How the weights of sparse vectors are changed by the collection; None: there are no sparse vectors."""
    multi: int | None = None
    """Dimension of the vectors of tokens; None: there are none."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names that the caller gave, by kind."""

    def layout(self) -> Layout:
        """The names in a new collection. One dense vector alone has no name, unless the caller gave one."""
        names = {kind: self.names.get(kind, kind) for kind in KINDS}
        alone = self.sparse is None and self.multi is None
        if alone and "dense" not in self.names:
            return Layout("")
        return Layout(
            None if self.dimension is None else names["dense"],
            None if self.sparse is None else names["sparse"],
            None if self.multi is None else names["multi"],
        )

    def find(self, collection: str, params: Any) -> Layout:
        """The names in an existing collection. Raises `CollectionError` where there is no vector that fits, or several
        and no name is given.
        """
        vectors, sparse = params.vectors, getattr(params, "sparse_vectors", None) or {}
        named: Mapping[str, Any] = {"": vectors} if isinstance(vectors, models.VectorParams) else vectors or {}
        search = _Search(collection, self.names)
        return Layout(
            None
            if self.dimension is None
            else search.one("dense", {k: v for k, v in named.items() if v.multivector_config is None}, self._dense),
            None if self.sparse is None else search.one("sparse", sparse, self._sparse),
            None
            if self.multi is None
            else search.one("multi", {k: v for k, v in named.items() if v.multivector_config is not None}, self._multi),
        )

    def _dense(self, params: models.VectorParams) -> str | None:
        return _misfit(params, self.dimension)

    def _multi(self, params: models.VectorParams) -> str | None:
        return _misfit(params, self.multi)

    def _sparse(self, params: models.SparseVectorParams) -> str | None:
        own = params.modifier or models.Modifier.NONE
        if own == self.sparse:
            return None
        if self.sparse == models.Modifier.IDF:
            return "does not weigh terms by their rarity, which BM25 needs (modifier idf)"
        return "weighs terms by their rarity (modifier idf), which this model has done already"


class _Search:
    """Finds the one vector of a kind among those of a collection."""

    def __init__(self, collection: str, names: Mapping[str, str]) -> None:
        self.collection = collection
        self.names = names

    def one(self, kind: str, there: Mapping[str, Any], misfit: Callable[[Any], str | None]) -> str:
        known = ", ".join(map(repr, sorted(there))) or "none"
        if kind in self.names:
            name = self.names[kind]
            if name not in there:
                raise CollectionError(
                    f"collection {self.collection!r} has no {kind} vector {name!r}; its {kind} vectors: {known}"
                )
        elif kind in there and misfit(there[kind]) is None:
            return kind
        elif not there:
            more = "" if kind == "dense" else "; reembed fills a new collection that has them"
            raise CollectionError(f"collection {self.collection!r} has no {kind} vectors{more}: {REMEDY}")
        elif len(there) > 1:
            fitting = [name for name, params in there.items() if misfit(params) is None]
            if len(fitting) == 1:
                return fitting[0]
            some = "several" if fitting else "none"
            raise CollectionError(
                f"collection {self.collection!r} has the {kind} vectors {known}, of which {some} fit this model: give"
                f" the name, vectors={{{kind!r}: name}}"
            )
        else:
            (name,) = there
        if reason := misfit(there[name]):
            called = f"the {kind} vector {name!r} of collection" if name else "collection"
            raise CollectionError(f"{called} {self.collection!r} {reason}, {REMEDY}")
        return name


def _misfit(params: models.VectorParams, dimension: int | None) -> str | None:
    """Why vectors of this length cannot be compared there."""
    if params.size != dimension:
        return f"has vectors of {params.size} dimensions, the model's have {dimension}: use the model it was made with"
    if params.distance not in (models.Distance.COSINE, models.Distance.DOT):
        return f"compares by {params.distance.value}"
    if params.datatype == models.Datatype.UINT8:
        return "stores whole numbers from 0 to 255, and the model's values are between -1 and 1"
    return None


def check_names(names: Mapping[str, str] | None) -> Mapping[str, str]:
    """Names of vectors by kind. Raises `ArgumentError` for an unknown kind or a name that is no text."""
    if names is None:
        return {}
    if not isinstance(names, Mapping):
        raise type_error("vectors", "a mapping of kinds to names", names)
    for kind, name in names.items():
        if kind not in KINDS:
            raise argument_error(
                "vectors", f"vectors={dict(names)!r}: the kinds of vectors are {', '.join(KINDS)}, not {kind!r}"
            )
        if not isinstance(name, str) or not name:
            raise argument_error("vectors", f"vectors={dict(names)!r}: the name of the {kind} vectors must be a text")
    if len(set(names.values())) < len(names):
        raise argument_error("vectors", f"vectors={dict(names)!r}: each kind of vectors needs a name of its own")
    return dict(names)


def check_identity(collection: str, known: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `CollectionError` where a kind of vectors was made by another model than that of the same kind in `own`, or
    by other weights of it.
    """
    for kind in KINDS:
        there, here = identity_of(known, kind), identity_of(own, kind)
        if there and here and there.get("fingerprint") != here["fingerprint"]:
            what = "vectors" if kind == "dense" else f"{kind} vectors"
            made = f"{there.get('model')!r}, not of {here['model']!r}"
            if there.get("model") == here["model"]:
                made = f"{here['model']!r} with other weights, settings or terms"
            raise CollectionError(
                f"collection {collection!r} holds {what} of {made}"
                f" (vectors of different models cannot be compared): use that model, {REMEDY}, or let reembed fill a"
                " new collection"
            )
        cosine = differs(there.get(PROBE) or {}, here.get(PROBE) or {})
        if cosine is not None:
            raise CollectionError(
                f"collection {collection!r} holds {kind} vectors of other weights of {there.get('model')!r} (for one"
                f" text the cosine is {cosine:.2f}): use those weights, {REMEDY}, or let reembed fill a new collection"
            )


def check_division(collection: str, known: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `CollectionError` where whole documents and chunks would be in one collection. A search for the
    best chunk of each document finds no whole one.
    """
    if bool(known.get(CHUNKS)) == bool(own.get(CHUNKS)):
        return
    if own.get(CHUNKS):
        raise whole_documents(collection)
    raise CollectionError(
        f"collection {collection!r} holds chunks of documents, by which a search would not find the whole documents of"
        f" this indexer: give it chunk=, {REMEDY}"
    )


def whole_documents(collection: str) -> CollectionError:
    """The error for an indexer of chunks where documents are whole."""
    return CollectionError(
        f"collection {collection!r} holds whole documents, which a search by this indexer's chunks would not find: make"
        f" the indexer without chunk, {REMEDY}"
    )


def identity_of(metadata: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The model and fingerprint of one kind of vectors; empty where the collection does not say."""
    found = metadata if kind == "dense" else metadata.get(kind)
    return found if isinstance(found, Mapping) and found.get("fingerprint") else {}


def settings(wanted: Wanted, identity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a new collection: tuned for recall, with the index and the INT8 vectors in memory."""
    layout = wanted.layout()
    dense, multi = _vector(wanted.dimension), _vector(wanted.multi)
    vectors: Any = dense
    if not layout.plain:
        vectors = {} if layout.dense is None else {layout.dense: dense}
        if layout.multi is not None and multi is not None:
            multi.multivector_config = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
            # They order candidates that other vectors have found: an index would only cost memory.
            multi.hnsw_config = models.HnswConfigDiff(m=0)
            vectors[layout.multi] = multi
    made: dict[str, Any] = {
        "metadata": None if identity is None else {METADATA: dict(identity)},
        "vectors_config": vectors,
        "hnsw_config": models.HnswConfigDiff(m=32, ef_construct=256, full_scan_threshold=20_000, on_disk=False),
        "optimizers_config": models.OptimizersConfigDiff(
            default_segment_number=2,
            max_segment_size=200_000,
            memmap_threshold=100_000,
            indexing_threshold=50_000,
            flush_interval_sec=30,
        ),
        "quantization_config": models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        ),
    }
    if layout.sparse is not None:
        made["sparse_vectors_config"] = {layout.sparse: models.SparseVectorParams(modifier=wanted.sparse)}
    return made


def _vector(size: int | None) -> models.VectorParams | None:
    if size is None:
        return None
    return models.VectorParams(size=size, distance=models.Distance.COSINE, on_disk=False)
