"""The texts of files: the lines of plain ones, a field of JSON lines, a column of CSV tables."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import click

from ..errors import InputError
from .texts import option

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_LONGEST_FIELD = 2**31 - 1  # the default limit of csv, 128 KB, is smaller than many documents
_FORMS = ("jsonl", "csv", "txt")
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_TABLES = (".json", ".tsv", ".xlsx", ".arrow", ".feather", ".parquet")
"""Endings of files whose lines are no texts."""

input_format_option = option(
    "--input-format",
    type=click.Choice(_FORMS),
    help=(
        "Format of all files and of standard input; default: by the extensions, else txt.",
        "Bütün dosyaların ve standart girdinin biçimi; varsayılan: uzantılara göre, yoksa txt.",
    ),
)


class Line(NamedTuple):
    """A text, and where it was read."""

    file: str
    number: int
    text: str

    @property
    def place(self) -> str:
        """The file and the line."""
        return f"{self.file}:{self.number}"


def form_of(name: str, given: str | None, how: str = "--input-format") -> str:
    """What the lines of a file are: ``jsonl``, ``csv`` or ``txt``. Files that are none of these are refused."""
    if given is not None:
        return given
    ending = Path(name).suffix.lower()
    if ending in _TABLES:
        raise click.UsageError(
            f"{name}: each line of it would be taken for a text; write its texts as .jsonl, .csv or lines of text"
            f" ({how} names what another file holds)"
        )
    return _ENDINGS.get(ending, "txt")


def plain_lines(name: str, lines: Iterable[str], given: str | None, how: str = "--input-format") -> Iterator[str]:
    """The lines of a file of plain text. Unless its format was `given`, one that begins with JSON is refused: its name
    did not say what it holds, and each line would be taken for a text.
    """
    undecided = given is None
    for line in lines:
        if undecided and line.strip():
            undecided = False
            if _is_json(line.strip()):
                raise click.UsageError(
                    f"{name}: begins with JSON, and each line of it would be taken for a text; {how} jsonl reads one"
                    f" object or text a line (jq -c writes them), {how} txt takes the lines as they are"
                )
        yield line


def _is_json(line: str) -> bool:
    """Whether a line is an object or a list of JSON, or the first line of one. A text may be ``[1]``."""
    if line in ("{", "["):
        return True
    try:
        value = json.loads(line) if line[0] in "{[" else None
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict | str) for one in value))


def read_texts(files: Sequence[str], column: str, form: str | None = None) -> Iterator[Line]:
    """The texts of all files. Errors name the file and the line."""
    forms = [form_of(name, form) for name in files]  # before any text is computed
    for name, kind in zip(files, forms, strict=True):
        for number, row in _rows(name, kind, column, form):
            if isinstance(row, ValueError):
                raise click.ClickException(str(row))
            text = row if isinstance(row, str) else row.get(column) if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise click.ClickException(
                    f"{name}:{number}: must be a text or an object with a text under {column!r};"
                    " --column names another field"
                )
            if surrogate := re.search("[\ud800-\udfff]", text):
                raise click.ClickException(
                    f"{name}:{number}: holds a lone surrogate ({ascii(surrogate[0])[1:-1]}), one half of a character,"
                    " which no UTF-8 text can; correct the line"
                )
            yield Line(name, number, text)


def _rows(name: str, form: str, column: str, given: str | None) -> Iterator[tuple[int, Any]]:
    with reading(name, newline="" if form == "csv" else None) as lines:
        if form == "jsonl":
            yield from _json_rows(name, lines)
        elif form == "csv":
            yield from table_rows(name, lines, column)
        else:
            for number, line in enumerate(plain_lines(name, lines, given), 1):
                yield number, line.rstrip("\n")


def _json_rows(name: str, lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, parsed(line)
            except (ValueError, RecursionError) as error:
                raise click.ClickException(
                    f"{name}:{number}: is not JSON ({error}); a .jsonl file has one object or text on each line"
                ) from None


def parsed(line: str) -> Any:
    """A line of JSON. Raises ValueError for none, and for an object with one field twice: one would hide the other."""
    return json.loads(line, object_pairs_hook=_fields)


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} stands twice in an object")
    return fields


def table_rows(
    name: str, lines: Iterable[str], column: str, *, all_columns: bool = False
) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """The rows of a CSV table with a header, each with the number of its last line.

    A row with more fields than the header becomes a ValueError. Two columns of one name are refused: one would hide the
    other. Without `all_columns` only the name `column` counts.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    table = csv.DictReader(lines, strict=True)
    first = 1
    try:
        names = list(table.fieldnames or ())
        if column not in names:
            raise click.ClickException(f"{name}: no column {column!r}; its columns: {', '.join(names) or 'none'}")
        for one in names if all_columns else (column,):
            if names.count(one) > 1:
                raise click.ClickException(f"{name}: it has several columns {one!r}; rename all but one")
        first = table.line_num + 1
        for row in table:
            if None in row:
                yield (
                    table.line_num,
                    ValueError(
                        f"{name}:{table.line_num}: has more fields than the header; a text with commas needs quotes"
                    ),
                )
            else:
                yield table.line_num, row
            first = table.line_num + 1
    except csv.Error as error:
        raise click.ClickException(f"{name}, the row from line {first} on: {_reason(error)}") from error


def _reason(error: csv.Error) -> str:
    return "a quote is not closed" if "unexpected end of data" in str(error) else str(error)


@contextlib.contextmanager
def reading(name: str, newline: str | None = None) -> Iterator[Iterator[str]]:
    """The lines of a UTF-8 text file, or of standard input for ``-``, with `newline` as in `open`. Errors of the
    encoding name the file and the line.
    """
    if name == "-":
        if sys.stdin is None:
            raise click.ClickException("standard input is closed: name a file")
        yield _decoded(name, sys.stdin.buffer, newline)
    else:
        with Path(name).open("rb") as file:
            yield _decoded(name, file, newline)


def _decoded(name: str, file: IO[bytes], newline: str | None) -> Iterator[str]:
    for number, raw in enumerate(file, 1):
        if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise click.ClickException(f"{name}: is UTF-16, not UTF-8 text; convert it: iconv -f UTF-16 -t UTF-8")
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise click.ClickException(f"{name}:{number}: not UTF-8 text ({error.reason})") from None
        if not text:  # a mark of UTF-8, and nothing after it
            continue
        if "\0" in text:
            raise click.ClickException(
                f"{name}:{number}: holds a NUL character, as texts in UTF-16 do; remove it, or convert the file:"
                " iconv -f UTF-16LE -t UTF-8"
            )
        if "\r" in text:  # alone it ends a line too
            yield from io.StringIO(text, newline=newline)
        else:
            yield text


@contextlib.contextmanager
def naming(lines: Sequence[Line]) -> Iterator[None]:
    """Have the error of a text name its file and line: the core counts the texts that it was given."""
    try:
        yield
    except InputError as error:
        if error._place and error._rest is not None and error.param in ("texts", "documents"):
            raise click.ClickException(f"{lines[error._place[0]].place}{error._rest}") from error
        raise
