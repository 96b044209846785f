"""``embed`` of Parquet files: batches of rows in, batches with their vectors out."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from .._embedder import Embedder
from .._extras import extra
from ..errors import InputError
from ..frames import BATCH_ROWS, with_vectors
from .output import adapted, manager, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_VECTORS = "embedding"


def embed_parquet(
    files: Sequence[str],
    output: Path | None,
    column: str,
    vector_column: str | None,
    model: str | None,
    adapter: str | None,
    dimensions: int | None,
    *,
    query: bool,
) -> None:
    """Write the rows of all files, each with its vector, to one file, which appears when it is complete.

    The vectors are in `vector_column`; None: in ``embedding``, unless a file has something else there.
    """
    with extra("arrow"):
        import pyarrow.parquet
    if output is None or output.suffix.lower() != ".parquet":
        raise click.UsageError("the output of .parquet files is one too: name it with --output")
    if not output.parent.is_dir():
        raise click.UsageError(f"there is no folder {output.parent}")
    wrong = [name for name in files if Path(name).suffix.lower() != ".parquet"]
    if wrong or not files:
        raise click.UsageError(f"{wrong[0]}: give only .parquet files" if wrong else "give at least one .parquet file")
    into = _VECTORS if vector_column is None else vector_column
    if into == column:
        raise click.UsageError(f"--vector-column {into}: the vectors would replace the texts; name another")
    rows = _check_files(files, column, into, may_replace=vector_column is not None)
    with manager(cache_size=0) as models, _progress(rows) as advance, writing(output) as file:
        embedder = Embedder(models, adapted(models, model, adapter), dimensions)
        vectors = embedder.queries_arrow if query else embedder.documents_arrow
        # Closed before its file, after an error too.
        with contextlib.ExitStack() as opened:
            writer: Any = None
            for name in files:
                row = 0
                for batch in _batches(name):
                    with _naming(name, column, row):
                        made = with_vectors(batch, column, into, vectors)
                    row += made.num_rows
                    if writer is None:
                        # A dictionary of vectors, which are all different, would take time and save nothing.
                        plain = [name for name in made.schema.names if name != into]
                        writer = opened.enter_context(
                            pyarrow.parquet.ParquetWriter(file, made.schema, compression="zstd", use_dictionary=plain)
                        )
                    if made.num_rows:
                        writer.write(made)
                        advance(made.num_rows)


def _check_files(files: Sequence[str], column: str, into: str, *, may_replace: bool) -> int:
    """The number of rows of all files, which have the same columns. Only one of vectors is replaced, or a named one."""
    import pyarrow as pa

    rows = 0
    first: Any = None
    first_read: Any = None
    # Each file is open while it is read: there may be more of them than a process may open.
    for name in files:
        with _source(name) as source:
            rows += source.metadata.num_rows
            schema = source.schema_arrow
        if column not in schema.names:
            shown = ", ".join(schema.names)
            raise click.ClickException(f"{name}: there is no column {column!r}; it has: {shown} (--column)")
        for one in (column, into):
            if schema.names.count(one) > 1:
                raise click.ClickException(f"{name}: it has several columns {one!r}; rename all but one")
        read, index, vectors = schema, schema.get_field_index(into), pa.field(into, pa.null())
        if index >= 0 and not may_replace and not _is_vectors(schema.field(index).type):
            raise click.ClickException(
                f"{name}: its column {into!r} ({schema.field(index).type}) holds no vectors and would be replaced;"
                " --vector-column names another, or this one"
            )
        schema = schema.append(vectors) if index < 0 else schema.set(index, vectors)
        if first is None:
            first, first_read = schema, read
        if not schema.equals(first):
            raise click.ClickException(
                f"{name}: its columns differ from those of {files[0]}: {_difference(first_read, read, into)}"
            )
    return rows


def _is_vectors(kind: Any) -> bool:
    from pyarrow import types

    is_list: bool = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and types.is_floating(kind.value_type)


def _difference(first: Any, schema: Any, into: str) -> str:
    """What another schema has instead of the first one's. The column of vectors `into` is looked at last: its type is
    no difference, and a file may lack it.
    """
    for ignored in (into, None):
        ones, others = ([field for field in fields if field.name != ignored] for fields in (first, schema))
        names, other_names = [field.name for field in ones], [field.name for field in others]
        for name in names + other_names:
            count, other_count = names.count(name), other_names.count(name)
            if not other_count:
                return f"there is no {name!r}"
            if not count:
                return f"{name!r} is only there"
            if count != other_count:
                return f"the number of columns {name!r} is {other_count}, not {count}"
        for one, other in zip(ones, others, strict=True):
            if one.name != other.name:
                return f"{other.name!r} comes before {one.name!r}"
            if not one.equals(other):
                return f"{one.name!r} is {_kind(other)}, not {_kind(one)}"
    raise AssertionError(first)


def _kind(field: Any) -> str:
    return f"{field.type}{'' if field.nullable else ' not null'}"


@contextlib.contextmanager
def _source(name: str) -> Iterator[Any]:
    """An open file. Its name need not be UTF-8, which pyarrow asks for."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with Path(name).open("rb") as file, pyarrow.parquet.ParquetFile(file) as source:
            yield source
    except OSError as error:
        raise click.ClickException(f"{name}: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise click.ClickException(f"{name}: {error}") from error


def _batches(name: str) -> Iterator[Any]:
    """The rows of a file, of one without rows its columns; an error says of which file."""
    with _source(name) as source:
        if not source.metadata.num_rows:
            yield source.schema_arrow.empty_table()
        else:
            yield from source.iter_batches(BATCH_ROWS)


@contextlib.contextmanager
def _naming(name: str, column: str, row: int) -> Iterator[None]:
    """Have the error of a text name its file, column and row, of a batch that begins at `row`."""
    try:
        yield
    except InputError as error:
        if error.param != "texts" or error._rest is None:
            raise
        where = f"row {row + error._place[0]} of the column" if error._place else "the column"
        raise click.ClickException(f"{name}: {where} {column!r}{error._rest}") from error


@contextlib.contextmanager
def _progress(rows: int) -> Iterator[Callable[[int], None]]:
    """A bar of rows on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("rows", total=rows)
        yield lambda done: bar.advance(task, done)
