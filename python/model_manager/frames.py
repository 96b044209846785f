"""A column of vectors for a frame of pandas, polars, pyarrow or duckdb.

>>> from model_manager.frames import embed_frame
>>> frame = embed_frame(frame, "text")          # the same kind of frame, with a column "embedding"
"""

from __future__ import annotations

from ._arguments import a_text
from ._embedder import Embedder
from ._extras import extra
from .errors import ArgumentError, InputError, InputTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, TypeAlias, TypeVar

    from ._core import ArrowVectors, Manager

    Frame = TypeVar("Frame")
    Vectors: TypeAlias = Callable[[Any], Any]
    Adder: TypeAlias = Callable[[Any, str, str, Vectors], Any]

BATCH_ROWS = 8192
"""Rows of a streamed batch: enough texts of equal length for full batches of the model."""

_POLARS = (1, 4)
"""The first version whose Series export Arrow's interface as pyarrow does."""
_VIEW = "_model_manager_frame_5f1c2a"
"""A name that no database has. DuckDB wants one for the relation that is asked."""


def embed_frame(
    frame: Frame,
    column: str,
    output: str = "embedding",
    *,
    manager: Manager | None = None,
    model: str | None = None,
    dimensions: int | None = None,
    prompt_name: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Frame:
    """A frame of the same kind with one more column: the vector of each text. The frame itself is not changed.

    A null text has a null vector. polars, pyarrow and duckdb get a fixed-size list of float32 that shares the memory of
    the result, pandas a column of numpy arrays. The index of a pandas frame stays.

    Args:
        frame: A DataFrame of pandas or polars, a Table or RecordBatch of pyarrow, or a relation of duckdb.
        column: The column of texts.
        output: The name of the new column; one of this name is replaced.
        manager: The manager that embeds; None for the process-wide one.
        model: A slot of it or a source; None for its preferred sentence model.
        dimensions: Keep the first dimensions of the vectors.
        prompt_name: One of the model's prompts; None for its prompt for documents, if it has one.
        progress: Called as ``progress(done, total)``.

    Raises:
        TypeError: Another kind of frame.
        ArgumentError: No such column, or one that holds no texts.
        ModuleNotFoundError: pyarrow is missing, which frames of pandas and duckdb need (``model-manager-rs[arrow]``).
        ImportError: A polars that exports no Arrow columns.
        ModelManagerError: The errors of `Manager.embed`.
    """
    embedder = Embedder(manager, model, dimensions)
    options = {"prompt_name": prompt_name, "progress": progress}

    def vectors(texts: Any) -> ArrowVectors:
        return embedder.documents_arrow(texts, **options)

    add = adder(frame)
    if add is None:
        if type(frame).__name__ == "LazyFrame":
            raise TypeError("a polars LazyFrame has no rows yet: call collect() first")
        raise TypeError(
            "frame must be a DataFrame of pandas or polars, a Table or RecordBatch of pyarrow, or a relation of duckdb,"
            f" not {type(frame).__module__}.{type(frame).__name__}"
        )
    result: Frame = add(frame, column, a_text("output", output), vectors)
    return result


def adder(frame: object) -> Adder | None:
    """The function that adds vectors to frames of this kind; None for another object. It takes the frame, the column of
    texts, the new column, and the function from a column to its vectors.
    """
    for kind in type(frame).__mro__:  # geopandas derives from pandas
        library = kind.__module__.partition(".")[0].lstrip("_")
        if add := _ADDERS.get((library, kind.__name__)):
            return add
    return None


def _check(column: str, names: Iterable[object]) -> None:
    known = list(names)
    count = known.count(column)
    if count == 1:
        return
    if count:
        error = ArgumentError(f"the frame has several columns {column!r}; rename all but one")
    else:
        shown = ", ".join(name if isinstance(name, str) else repr(name) for name in known)
        error = ArgumentError(f"the frame has no column {column!r}; it has: {shown}")
    error.param = "column"
    raise error


def _check_output(output: str, names: Iterable[object]) -> None:
    if list(names).count(output) > 1:
        error = ArgumentError(f"the frame has several columns {output!r}, of which one would be replaced; rename them")
        error.param = "output"
        raise error


def _to_polars(frame: Any, column: str, output: str, vectors: Vectors) -> Any:
    import polars as pl

    _check(a_text("column", column), frame.columns)
    if tuple(map(int, pl.__version__.split(".")[:2])) < _POLARS:
        raise ImportError(f"polars {pl.__version__} exports no Arrow columns: pip install 'polars>=1.4'", name="polars")
    return frame.with_columns(pl.Series(vectors(frame.get_column(column))).alias(output))


def with_vectors(frame: Any, column: str, output: str, vectors: Vectors) -> Any:
    """A pyarrow Table or RecordBatch with one more column."""
    import pyarrow as pa

    _check(a_text("column", column), frame.schema.names)
    _check_output(output, frame.schema.names)
    made = pa.array(vectors(frame.column(column)))
    index = frame.schema.get_field_index(output)
    return frame.append_column(output, made) if index < 0 else frame.set_column(index, output, made)


def _to_pandas(frame: Any, column: str, output: str, vectors: Vectors) -> Any:
    import numpy as np

    _check(column, frame.columns)
    _check_output(output, frame.columns)
    series = frame[column]
    made = vectors(_Strings(series))
    rows = np.asarray(made)
    objects = np.empty(len(rows), object)
    for index, null in enumerate(series.isna()):
        objects[index] = None if null else rows[index]
    return frame.assign(**{output: objects})


def _to_duckdb(frame: Any, column: str, output: str, vectors: Vectors) -> Any:
    column, output = (_in_any_case(name, frame.columns) for name in (a_text("column", column), output))
    _check(column, frame.columns)
    with extra("arrow"):
        table = frame.to_arrow_table()
    _model_manager_vectors_5f1c2a = with_vectors(table, column, output, vectors)
    # A relation looks for the name in its own connection first, then among the variables of this function.
    made = frame.query(_VIEW, "SELECT * FROM _model_manager_vectors_5f1c2a")
    # Before version 2 that left a view of the frame in the database. The result does not need it.
    frame.query(_VIEW, f"DROP VIEW IF EXISTS {_VIEW}")
    if made.columns != _model_manager_vectors_5f1c2a.schema.names:
        raise InputError("the database has a table _model_manager_vectors_5f1c2a, which hides the result; rename it")
    return made


def _in_any_case(name: str, known: Sequence[str]) -> str:
    """The column that SQL means by `name`: one of this name, else one that differs in the case of letters alone."""
    if name in known:
        return name
    return next((one for one in known if one.lower() == name.lower()), name)


class _Strings:
    """A pandas Series as Arrow data. What is no text is refused by its row."""

    def __init__(self, series: Any) -> None:
        with extra("arrow"):
            import pyarrow as pa

        self._series = series
        self._pa = pa

    def __iter__(self) -> Iterator[Any]:
        return iter(self._series)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        pa, series = self._pa, self._series
        try:
            if series.isna().all():  # pandas gives a column without any text the type of numbers
                return pa.chunked_array([pa.nulls(len(series), pa.string())]).__arrow_c_stream__(requested_schema)
            if hasattr(series, "__arrow_c_stream__"):
                return series.__arrow_c_stream__(requested_schema)
            return pa.chunked_array([pa.array(series, from_pandas=True)]).__arrow_c_stream__(requested_schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
            raise _refusal(series, error) from error


def _refusal(series: Any, cause: Exception) -> InputError:
    """The first value that is no text, which Arrow's own error does not name."""
    for row, (value, null) in enumerate(zip(series, series.isna(), strict=True)):
        if null:
            continue
        if not isinstance(value, str):
            error = InputTypeError(f"row {row} of the column {series.name!r} is a {type(value).__name__}, not a str")
            error.param = "column"
            return error
        if any("\ud800" <= character <= "\udfff" for character in value):
            return InputError(
                f"row {row} of the column {series.name!r} holds a lone surrogate: it is not valid Unicode"
            )
    return InputError(f"the column {series.name!r} cannot be read: {cause}")


_ADDERS: dict[tuple[str, str], Adder] = {
    ("polars", "DataFrame"): _to_polars,
    ("pyarrow", "Table"): with_vectors,
    ("pyarrow", "RecordBatch"): with_vectors,
    ("pandas", "DataFrame"): _to_pandas,
    ("duckdb", "DuckDBPyRelation"): _to_duckdb,
}
