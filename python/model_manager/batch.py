"""One callable for every engine that maps a function over batches: Ray, Spark, Dask, `multiprocessing`, plain loops.

>>> embed = BatchEmbedder("intfloat/multilingual-e5-small", column="text")
>>> dataset.map_batches(embed, ...)                                     # Ray: see also model_manager.ray
>>> frame.mapInArrow(embed.map_arrow, "text string, embedding array<float>")   # Spark
>>> frame.map_partitions(embed.map_partition)                           # Dask
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from numbers import Number

from ._arguments import a_text, an_int, argument_error, one_of, rename, type_error
from ._embedder import Embedder
from ._extras import extra
from .errors import InputError, NotFiniteError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any, Literal, TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    from ._core import Manager

    OnError: TypeAlias = Literal["raise", "null"]

_managers: dict[tuple[tuple[str, Any], ...], Manager] = {}
_managers_lock = threading.Lock()


class BatchEmbedder:
    """A function of a batch: it adds the vectors of the column of texts.

    It is pickled by its settings, and loads the model in the process that first calls it. Objects of the same settings
    share one model in a process. It takes and returns a list of texts (an array of vectors), a dict of arrays, a frame
    of pandas or polars, or a Table or RecordBatch of pyarrow.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        column: str = "text",
        output: str = "embedding",
        config: Mapping[str, Any] | None = None,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        on_error: OnError = "raise",
    ) -> None:
        """An embedder that has not loaded anything.

        Args:
            model: A source (hub id, folder, `pkg:…`, `ollama://…`); None for the preferred sentence model.
            column: The column of texts.
            output: The name of the new column.
            config: Settings of the worker's manager, the keywords of `Config`. ``{"threads": 1}`` where several workers
                share a machine: without it each of them uses all cores.
            dimensions: Keep the first dimensions of the vectors.
            prompt_name: One of the model's prompts; None for its prompt for documents, if it has one.
            on_error: ``raise``: a text that has no vector fails its batch. ``null``: it has a null vector. A mistake of
                the call (an unknown prompt, a reranker, a column without texts) raises either way.

        Raises:
            ConfigError: A wrong setting.
            ArgumentError: An unknown `on_error`, `dimensions` below 1.
        """
        from ._core import Config

        one_of("on_error", on_error, ("raise", "null"))
        a_text("column", column)
        a_text("output", output)
        for name, value in (("model", model), ("prompt_name", prompt_name)):
            if value is not None:
                a_text(name, value)
        if config is not None and not isinstance(config, Mapping):
            raise type_error("config", "a mapping of settings", config)
        if dimensions is not None:
            dimensions = an_int("dimensions", dimensions, 1)
        self.model = model
        self.column = column
        self.output = output
        self.config = dict(config or {})
        self.dimensions = dimensions
        self.prompt_name = prompt_name
        self.on_error: OnError = on_error
        Config(**self.config)
        self._embedder: Embedder | None = None
        self._has_texts = False
        """Whether a batch had a text: one without any may then be a row of nulls, and is no mistake of the call."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_embedder": None}

    def __repr__(self) -> str:
        return f"<BatchEmbedder {self.model or 'default'!r}, {self.column!r} to {self.output!r}>"

    def __call__(self, batch: Any) -> Any:
        """The batch with its vectors, of the same kind."""
        if isinstance(batch, Mapping):
            texts = self._column_of(batch, batch.keys())
            if isinstance(texts, str | bytes | Mapping) or not hasattr(texts, "__iter__"):
                raise TypeError(f"the column {self.column!r} must be several texts, not one {type(texts).__name__}")
            return {**batch, self.output: self._vectors(_strings(texts))}
        if isinstance(batch, list | tuple):
            return self._vectors(batch)
        from .frames import adder

        add = adder(batch)
        if add is None:
            raise TypeError(
                "batch must be a list of texts, a dict of arrays, a frame of pandas or polars, or a Table or"
                f" RecordBatch of pyarrow, not {type(batch).__module__}.{type(batch).__name__}"
            )
        return add(batch, self.column, self.output, self._arrow)

    def map_arrow(self, batches: Iterable[Any]) -> Iterator[Any]:
        """For Spark's ``mapInArrow``: record batches in, record batches out. The vectors are of the type
        ``array<float>``: Spark reads no lists of a fixed size.
        """
        with extra("arrow"):
            import pyarrow as pa

        for batch in batches:
            made = self(batch)
            index = made.schema.get_field_index(self.output)
            yield made.set_column(index, self.output, made.column(index).cast(pa.list_(pa.float32())))

    def map_partition(self, partition: Any) -> Any:
        """For Dask's ``map_partitions``. Dask asks for the shape of the result with an empty frame: no model is loaded
        for that. The column of an empty frame has the type of Arrow's lists of float32, as which Dask writes the arrays
        of the others.
        """
        if len(partition) == 0:
            import pandas as pd

            with extra("arrow"):
                import pyarrow as pa

            # A column of objects would become one of texts.
            lists = pd.Series([], dtype=pd.ArrowDtype(pa.list_(pa.float32())), index=partition.index)
            return partition.assign(**{self.output: lists})
        return self(partition)

    # --- Inside ------------------------------------------------------------------------------------------------------

    def _loaded(self) -> Embedder:
        if self._embedder is None:
            self._embedder = Embedder(_manager(self.config), self.model, self.dimensions)
        return self._embedder

    def _column_of(self, batch: Mapping[Any, Any], names: Iterable[object]) -> Any:
        if self.column not in batch:
            known = ", ".join(map(str, names))
            raise argument_error("column", f"the batch has no column {self.column!r}; it has: {known}")
        return batch[self.column]

    def _arrow(self, column: Any) -> Any:
        """The vectors of an Arrow column, which pyarrow, polars and numpy read."""
        try:
            return self._loaded().documents_arrow(column, prompt_name=self.prompt_name)
        except (InputError, NotFiniteError) as error:
            if self.on_error == "raise":
                raise
            texts = _strings(column)
            self._check_call(texts, error)
        return _with_nulls(self._vectors(texts))

    def _vectors(self, texts: Sequence[Any]) -> NDArray[np.float32]:
        """Rows of vectors; NaN for a text that is missing or, with ``on_error="null"``, has none."""
        import numpy as np

        embedder = self._loaded()
        there = [index for index, text in enumerate(texts) if not _is_null(text)]
        rows = np.full((len(texts), embedder.dimension), np.nan, np.float32)
        try:
            rows[there] = self._documents(texts, there)
            self._has_texts = self._has_texts or bool(there)
        except (InputError, NotFiniteError, TypeError) as error:
            if self.on_error == "raise":
                raise
            self._check_call(texts, error)
            for index in there:
                with contextlib.suppress(InputError, NotFiniteError, TypeError):
                    rows[index] = self._documents(texts, [index])[0]
        return rows

    def _check_call(self, texts: Sequence[Any], error: Exception) -> None:
        """Raise `error` where no single text is at fault: a null in every row would hide it."""
        self._has_texts = self._has_texts or any(isinstance(text, str) for text in texts)
        if not self._has_texts:
            raise error
        self._documents(["text"], [0])  # any text fails with these settings

    def _documents(self, texts: Sequence[Any], chosen: Sequence[int]) -> NDArray[np.float32]:
        for index in chosen:
            if not isinstance(texts[index], str):  # numbers would be token ids
                raise TypeError(f"text {index} of the batch is a {type(texts[index]).__name__}, not a str")
        try:
            return self._loaded().documents([texts[index] for index in chosen], prompt_name=self.prompt_name)
        except (InputError, NotFiniteError) as error:
            # The core counts the texts that it was given.
            rename(error, "texts", "texts", lambda place: (*(chosen[row] for row in place[:1]), *place[1:]))
            raise


def _is_null(text: Any) -> bool:
    """None, and what pandas and numpy put in its place."""
    if text is None or type(text).__name__ in ("NAType", "NaTType"):
        return True
    # NaN alone differs from itself. Other objects compare as they like: an array gives an array.
    return isinstance(text, Number) and bool(text != text)


def _strings(column: Any) -> list[Any]:
    values = _pylist(column) if hasattr(column, "to_pylist") else list(column)
    return [None if _is_null(value) else value for value in values]


def _pylist(column: Any) -> list[Any]:
    """The values of a pyarrow column; bytes in place of a text whose UTF-8 is damaged."""
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error.object


def _with_nulls(rows: NDArray[np.float32]) -> Any:
    """The rows as an Arrow array in which those of NaN are null."""
    import numpy as np

    with extra("arrow"):
        import pyarrow as pa

    missing = pa.array(np.isnan(rows).any(axis=1))
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1], mask=missing)


def _manager(config: Mapping[str, Any]) -> Manager:
    """The manager of these settings in this process, made at the first call."""
    from .manager import BaseManager

    key = tuple(sorted(config.items()))
    with _managers_lock:
        if key not in _managers:
            _managers[key] = BaseManager(**config)
        return _managers[key]
