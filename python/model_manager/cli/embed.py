"""``embed``: vectors of lines of text."""

from __future__ import annotations

import csv
import io
import itertools
import json
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
import numpy as np

from .._embedder import Embedder
from .lines import read_texts
from .output import column_option, dimensions_option, manager, model_option, writing
from .texts import Command, option, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

_CHUNK = 512
_FORMATS = ("jsonl", "csv", "npy", "parquet")


@click.command(
    cls=Command,
    help=say(
        "Embed lines of text. Reads FILES or standard input; an empty line is a text too. Of a .jsonl file the texts"
        " are the lines' field --column or the lines themselves, of a .csv file the column --column. As output jsonl"
        " and csv hold the texts and their vectors, npy only the vectors (float32, one row per text). A .parquet file"
        " is read in batches: its texts are those of --column, and the output is a .parquet file with one more column.",
        "Metin satırlarını vektöre çevir. FILES'ı ya da standart girdiyi okur; boş satır da bir metindir. Bir .jsonl"
        " dosyasında metinler satırların --column alanı ya da kendisidir, bir .csv dosyasında --column sütunudur."
        " Çıktıda jsonl ve csv metinleri vektörleriyle, npy yalnız vektörleri tutar (float32, metin başına bir satır)."
        " Bir .parquet dosyası parça parça okunur: metinler --column sütunundadır, çıktı bir sütunu fazla olan bir"
        " .parquet dosyasıdır.",
    ),
)
@click.argument("files", nargs=-1)
@option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help=("File to write; default: standard output.", "Yazılacak dosya; varsayılan: standart çıktı."),
)
@option(
    "-f",
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    help=("Default: by the extension of --output, else jsonl.", "Varsayılan: --output uzantısına göre, yoksa jsonl."),
)
@model_option
@dimensions_option
@option(
    "--query",
    is_flag=True,
    help=(
        "Texts are queries, not documents: matters for models with prompts.",
        "Metinler belge değil sorgu: istemli (prompt) modellerde fark eder.",
    ),
)
@column_option
@option(
    "--vector-column",
    default="embedding",
    show_default=True,
    help=("The column of vectors that is added.", "Eklenecek vektör sütunu."),
)
def embed(
    files: Sequence[str],
    output: Path | None,
    form: str | None,
    model: str | None,
    dimensions: int | None,
    query: bool,
    column: str,
    vector_column: str,
) -> None:
    if any(Path(name).suffix.lower() == ".parquet" for name in files) or form == "parquet":
        from .parquet import embed_parquet

        embed_parquet(files, output, column, vector_column, model, dimensions, query=query)
        return
    form = form or _format_of(output)
    if output is None and form == "npy" and sys.stdout.isatty():
        raise click.UsageError("npy is binary: give a file with --output")
    if output is not None and not output.parent.is_dir():
        raise click.UsageError(f"there is no folder {output.parent}")
    with manager(cache_size=0) as models:
        embedder = Embedder(models, model, dimensions)
        compute = embedder.queries if query else embedder.documents
        texts = (text for _, text in read_texts(files or ["-"], column))
        if output is None:
            _write(sys.stdout.buffer, form, compute, texts)
        else:
            with writing(output) as file:
                _write(file, form, compute, texts)


def _format_of(output: Path | None) -> str:
    if output is None:
        return "jsonl"
    ending = output.suffix[1:].lower()
    if ending not in _FORMATS:
        raise click.UsageError(f"{output}: say with --format which of {', '.join(_FORMATS)} it is to hold")
    return ending


def _write(
    file: IO[bytes], form: str, compute: Callable[[list[str]], NDArray[np.float32]], texts: Iterator[str]
) -> None:
    write = {"jsonl": _write_jsonl, "csv": _write_csv}.get(form)
    whole: list[NDArray[np.float32]] = []
    while chunk := list(itertools.islice(texts, _CHUNK)):
        vectors = compute(chunk)
        if write is None:
            whole.append(vectors)
        else:
            file.write(write(chunk, vectors).encode())
    if write is None:
        # The header of an npy file holds the number of rows.
        np.save(file, np.concatenate(whole or [compute([])]), allow_pickle=False)
    file.flush()


def _write_jsonl(texts: Sequence[str], vectors: NDArray[np.float32]) -> str:
    return "".join(
        json.dumps({"text": text, "embedding": _numbers(row)}, ensure_ascii=False) + "\n"
        for text, row in zip(texts, vectors, strict=True)
    )


def _write_csv(texts: Sequence[str], vectors: NDArray[np.float32]) -> str:
    part = io.StringIO()
    csv.writer(part).writerows([text, *_numbers(row)] for text, row in zip(texts, vectors, strict=True))
    return part.getvalue()


def _numbers(row: NDArray[np.float32]) -> list[Any]:
    """The shortest decimals that read back as the same float32."""
    return [float(str(value)) for value in row]
