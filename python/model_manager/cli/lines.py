"""The texts of files: the lines of plain ones, a field of JSON lines, a column of CSV tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from .output import reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LONGEST_FIELD = 2**31 - 1  # the default limit of csv, 128 KB, is smaller than many documents


def read_texts(files: Sequence[str], column: str) -> Iterator[tuple[int, str]]:
    """The texts of all files, each with the number of its line. Errors name the file and the line."""
    for name in files:
        form = Path(name).suffix.lower()
        with reading(name) as file:
            if form == ".jsonl":
                rows = _json_rows(name, file)
            elif form == ".csv":
                rows = table_rows(name, file, column)
            else:
                for number, line in enumerate(file, 1):
                    yield number, line.rstrip("\n")
                continue
            for number, row in rows:
                text = row if isinstance(row, str) else row.get(column) if isinstance(row, dict) else None
                if not isinstance(text, str):
                    raise click.ClickException(
                        f"{name}:{number}: must be a text or an object with a text under {column!r};"
                        " --column names another field"
                    )
                yield number, text


def _json_rows(name: str, file: IO[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise click.ClickException(
                    f"{name}:{number}: is not JSON ({error}); a .jsonl file has one object or text on each line"
                ) from None


def table_rows(name: str, file: IO[str], column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV table with a header, each with the number of its last line."""
    csv.field_size_limit(_LONGEST_FIELD)
    table = csv.DictReader(file, restkey="surplus")
    try:
        if column not in (table.fieldnames or ()):
            known = ", ".join(table.fieldnames or ()) or "none"
            raise click.ClickException(f"{name}: no column {column!r}; its columns: {known}")
        for row in table:
            yield table.line_num, row
    except csv.Error as error:
        raise click.ClickException(f"{name}, line {table.line_num}: {error}") from error
