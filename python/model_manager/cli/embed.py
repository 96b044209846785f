"""``embed``: vectors of lines of text."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
import numpy as np

from .._embedder import Embedder
from .lines import input_format_option, naming, read_texts
from .output import (
    adapted,
    adapter_option,
    check_inputs,
    column_option,
    dimensions_option,
    is_standard_output,
    manager,
    model_option,
    standard_output,
    writing,
)
from .texts import Command, option, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from .._text_files import Line

    Compute = Callable[[list[str]], NDArray[np.float32]]

_CHUNK = 512
_TEXT, _VECTORS = "text", "embedding"
_FORMATS = ("jsonl", "csv", "npy", "parquet")


def _name(_context: click.Context, _parameter: click.Parameter, given: str | None) -> str | None:
    """A name that a file can hold."""
    if given == "":
        raise click.BadParameter("is empty")
    if given is not None and re.search("[\ud800-\udfff]", given):
        raise click.BadParameter(f"{os.fsencode(given)!r} is not UTF-8")
    return given


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
@click.argument("files", nargs=-1, type=click.Path())  # the type completes names
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
@adapter_option
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
@input_format_option
@option(
    "--vector-column",
    callback=_name,
    show_default="embedding",
    help=(
        "The column of vectors that is added to a .parquet file; their field in jsonl.",
        "Bir .parquet dosyasına eklenecek vektör sütunu; jsonl çıktısındaki alanı.",
    ),
)
def embed(
    files: Sequence[str],
    output: Path | None,
    form: str | None,
    model: str | None,
    adapter: str | None,
    dimensions: int | None,
    query: bool,
    column: str,
    input_format: str | None,
    vector_column: str | None,
) -> None:
    if any(Path(name).suffix.lower() == ".parquet" for name in files):
        from .parquet import embed_parquet

        if form not in (None, "parquet") or input_format is not None:
            raise click.UsageError("from .parquet files a .parquet file is made: leave --format and --input-format out")
        embed_parquet(files, output, column, vector_column, model, adapter, dimensions, query=query)
        return
    form = form or _format_of(output)
    if output is not None and is_standard_output(output):
        output = None
    if form == "parquet":
        raise click.UsageError(
            "a .parquet output needs .parquet files as input; --format jsonl, csv or npy write texts"
        )
    if vector_column is not None and form != "jsonl":
        raise click.UsageError(f"--vector-column names a column of .parquet and a field of jsonl; {form} has no names")
    if vector_column == _TEXT:
        raise click.UsageError(f"--vector-column {_TEXT}: this field holds the text")
    if output is None and standard_output().isatty() and form == "npy":
        raise click.UsageError("npy is binary: give a file with --output")
    if output is not None and not output.parent.is_dir():
        raise click.UsageError(f"there is no folder {output.parent}")
    with manager(cache_size=0) as models:
        embedder = Embedder(models, adapted(models, model, adapter), dimensions)
        compute = embedder.queries if query else embedder.documents
        lines = read_texts(files or ["-"], column, input_format)
        if output is None:
            check_inputs(files or ["-"])
            _write(standard_output().buffer, form, compute, lines, vector_column or _VECTORS)
        else:
            with writing(output) as file:
                _write(file, form, compute, lines, vector_column or _VECTORS)


def _format_of(output: Path | None) -> str:
    if output is None:
        return "jsonl"
    ending = output.suffix[1:].lower()
    if ending not in _FORMATS:
        raise click.UsageError(f"{output}: say with --format which of {', '.join(_FORMATS)} it is to hold")
    return ending


def _write(file: IO[bytes], form: str, compute: Compute, lines: Iterator[Line], name: str) -> None:
    whole: list[NDArray[np.float32]] = []
    while chunk := list(itertools.islice(lines, _CHUNK)):
        texts = [line.text for line in chunk]
        with naming(chunk):
            vectors = compute(texts)
        if form == "jsonl":
            file.write(_jsonl(texts, vectors, name).encode())
        elif form == "csv":
            file.write(_csv(texts, vectors).encode())
        elif form == "npy":
            whole.append(vectors)
        else:
            raise AssertionError(form)
    if form == "npy":
        # The header of an npy file holds the number of rows.
        vectors = np.ascontiguousarray(np.concatenate(whole or [compute([])]))
        # np.save asks for the position in a file, which a pipe does not have.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(vectors))
        file.write(vectors.data)
    file.flush()


def _jsonl(texts: Sequence[str], vectors: NDArray[np.float32], name: str) -> str:
    return "".join(
        json.dumps({_TEXT: text, name: _numbers(row)}, ensure_ascii=False) + "\n"
        for text, row in zip(texts, vectors, strict=True)
    )


def _csv(texts: Sequence[str], vectors: NDArray[np.float32]) -> str:
    part = io.StringIO()
    csv.writer(part).writerows([text, *_numbers(row)] for text, row in zip(texts, vectors, strict=True))
    return part.getvalue()


def _numbers(row: NDArray[np.float32]) -> list[Any]:
    """The shortest decimals that read back as the same float32."""
    return [float(str(value)) for value in row]
