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
from ..frames import BATCH_ROWS, with_vectors
from .output import manager, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def embed_parquet(
    files: Sequence[str],
    output: Path | None,
    column: str,
    vector_column: str,
    model: str | None,
    dimensions: int | None,
    *,
    query: bool,
) -> None:
    """Write the rows of all files, each with its vector, to one file, which appears when it is complete."""
    with extra("arrow"):
        import pyarrow.parquet
    if output is None or output.suffix.lower() != ".parquet":
        raise click.UsageError("the output of .parquet files is one too: name it with --output")
    if not output.parent.is_dir():
        raise click.UsageError(f"there is no folder {output.parent}")
    wrong = [name for name in files if Path(name).suffix.lower() != ".parquet"]
    if wrong or not files:
        raise click.UsageError(f"{wrong[0]}: give only .parquet files" if wrong else "give at least one .parquet file")
    if vector_column == column:
        raise click.UsageError(f"--vector-column {vector_column}: the vectors would replace the texts; name another")
    # Each file is open while it is read: there may be more of them than a process may open.
    rows = 0
    for name in files:
        with _source(name, column, vector_column) as source:
            rows += source.metadata.num_rows
    with manager(cache_size=0) as models, _progress(rows) as advance, writing(output) as file:
        embedder = Embedder(models, model, dimensions)
        vectors = embedder.queries_arrow if query else embedder.documents_arrow
        # Closed before its file, after an error too.
        with contextlib.ExitStack() as opened:
            writer: Any = None
            for name in files:
                for batch in _batches(name, column, vector_column):
                    made = with_vectors(batch, column, vector_column, vectors)
                    if writer is None:
                        # A dictionary of vectors, which are all different, would take time and save nothing.
                        plain = [name for name in made.schema.names if name != vector_column]
                        writer = opened.enter_context(
                            pyarrow.parquet.ParquetWriter(file, made.schema, compression="zstd", use_dictionary=plain)
                        )
                    elif not made.schema.equals(writer.schema):
                        raise click.ClickException(f"{name}: its columns differ from those of {files[0]}")
                    if made.num_rows:
                        writer.write(made)
                        advance(made.num_rows)


def _source(name: str, column: str, vector_column: str) -> Any:
    """An open file that has the column of texts."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        source = pyarrow.parquet.ParquetFile(name)
    except (OSError, pa.ArrowInvalid) as error:
        raise click.ClickException(f"{name}: {error}") from error
    names = source.schema_arrow.names
    if column not in names:
        raise click.ClickException(f"{name}: there is no column {column!r}; it has: {', '.join(names)} (--column)")
    for one in (column, vector_column):
        if names.count(one) > 1:
            raise click.ClickException(f"{name}: it has several columns {one!r}; rename all but one")
    return source


def _batches(name: str, column: str, vector_column: str) -> Iterator[Any]:
    """The rows of a file, of one without rows its columns; an error says of which file."""
    import pyarrow as pa

    with _source(name, column, vector_column) as source:
        if not source.metadata.num_rows:
            yield source.schema_arrow.empty_table()
            return
        try:
            yield from source.iter_batches(BATCH_ROWS)
        except (OSError, pa.ArrowException) as error:
            raise click.ClickException(f"{name}: {error}") from error


@contextlib.contextmanager
def _progress(rows: int) -> Iterator[Callable[[int], None]]:
    """A bar of rows on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("rows", total=rows)
        yield lambda done: bar.advance(task, done)
