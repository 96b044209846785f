"""The texts of files: the lines of plain ones, a field of JSON lines, a column of CSV tables.

Every error is an `InputError` that begins with the file, and with the line where there is one.
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from .errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FORMS = ("jsonl", "csv", "txt")
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_TABLES = (".json", ".tsv", ".xlsx", ".arrow", ".feather", ".parquet")
"""Endings of files whose lines are no texts."""
_LONGEST_FIELD = 2**31 - 1  # the default limit of csv, 128 KB, is smaller than many documents
_MARKS = {
    "UTF-32": (b"\xff\xfe\0\0", b"\0\0\xfe\xff"),  # first: UTF-16's mark begins like one of them
    "UTF-16": (b"\xff\xfe", b"\xfe\xff"),
}


class FormatError(InputError):
    """The name of a file does not say what it holds: each line of it would be taken for a text."""


class ColumnError(InputError):
    """A file has no text under the name of the column."""


class Line(NamedTuple):
    """A text, and where it was read."""

    file: str
    number: int
    text: str

    @property
    def place(self) -> str:
        """The file and the line."""
        return f"{self.file}:{self.number}"


def form_of(name: str, given: str | None = None) -> str:
    """What a file holds: ``jsonl``, ``csv`` or ``txt``, as `given` or by its ending. Others raise `FormatError`."""
    if given is not None:
        return given
    ending = Path(name).suffix.lower()
    if ending in _TABLES:
        raise FormatError(
            f"{name}: each line of it would be taken for a text; write its texts as .jsonl, .csv or lines of text"
        )
    return _ENDINGS.get(ending, "txt")


def texts(name: str, file: IO[bytes], column: str, form: str | None = None) -> Iterator[Line]:
    """The texts of an open file, blank lines of plain ones too.

    Raises:
        ColumnError: A line has no text in the field or column `column`.
        FormatError: The file holds something else than its name says, or than lines.
        InputError: A line that is not understood.
    """
    for number, row in rows(name, file, column, form):
        if isinstance(row, InputError):
            raise row
        text = row if isinstance(row, str) else row.get(column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise ColumnError(f"{name}:{number}: must be a text or an object with a text under {column!r}")
        if surrogate := re.search("[\ud800-\udfff]", text):
            raise InputError(
                f"{name}:{number}: holds a lone surrogate ({ascii(surrogate[0])[1:-1]}), one half of a character,"
                " which no UTF-8 text can; correct the line"
            )
        yield Line(name, number, text)


def rows(
    name: str, file: IO[bytes], column: str, form: str | None = None, *, all_columns: bool = False
) -> Iterator[tuple[int, Any]]:
    """The rows of an open file, each with its line: a str of a plain file, any JSON value, a dict of a CSV table.

    A row that is not understood becomes an `InputError`, after which others follow; what makes the rest of the file
    unreadable is raised. `column` has the texts. Without `all_columns` the other columns of a table are not looked at.
    """
    kind = form_of(name, form)
    # Line breaks inside of a table's fields stay as they are.
    lines = _decoded(name, file, "" if kind == "csv" else None)
    if kind == "jsonl":
        yield from _json_rows(name, lines)
    elif kind == "csv":
        yield from _table_rows(name, lines, column, all_columns=all_columns)
    else:
        for number, line in enumerate(lines if form is not None else _no_json(name, lines), 1):
            yield number, line.rstrip("\n")


def _decoded(name: str, file: IO[bytes], newline: str | None) -> Iterator[str]:
    """The lines of a UTF-8 file; `newline` as in `open`."""
    start, following = 0, 0
    for number, raw in enumerate(file, 1):
        start, following = following, following + len(raw)
        if number == 1:
            for encoding, marks in _MARKS.items():
                if raw.startswith(marks):
                    raise InputError(f"{name}: is {encoding}, not UTF-8 text; convert it: iconv -f {encoding} -t UTF-8")
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}:{number}: not UTF-8 text ({error.reason})") from None
        if not text:  # a mark of UTF-8, and nothing after it
            continue
        if "\0" in text:
            encoding, width = ("UTF-32", 4) if "\0\0\0" in text else ("UTF-16", 2)
            # The high byte of most characters is 0. In the other order they would become other characters.
            first, last = (raw[(place - start) % width :: width].count(0) for place in (0, width - 1))
            order = "BE" if first > last else "LE"
            raise InputError(
                f"{name}:{number}: holds a NUL character, as texts in {encoding} do; remove it, or convert the file:"
                f" iconv -f {encoding}{order} -t UTF-8"
            )
        if "\r" in text:  # alone it ends a line too
            yield from io.StringIO(text, newline=newline)
        else:
            yield text


def _no_json(name: str, lines: Iterable[str]) -> Iterator[str]:
    """The lines of a file whose name does not say what it holds. One that begins with JSON is refused."""
    undecided = True
    for line in lines:
        if undecided and line.strip():
            undecided = False
            if _is_json(line.strip()):
                raise FormatError(
                    f"{name}: begins with JSON, and each line of it would be taken for a text; a .jsonl file has one"
                    " object or text on each line"
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


def _json_rows(name: str, lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line, object_pairs_hook=_fields)
            except (ValueError, RecursionError) as error:
                yield (
                    number,
                    InputError(
                        f"{name}:{number}: is not JSON ({error}); a .jsonl file has one object or text on each line"
                    ),
                )


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. One field twice is refused: one would hide the other."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} stands twice in an object")
    return fields


def _table_rows(
    name: str, lines: Iterable[str], column: str, *, all_columns: bool
) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    """The rows of a CSV table with a header, each with the number of its last line.

    Two columns of one name are refused: one would hide the other.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    table = csv.DictReader(lines, strict=True)
    first = 1
    try:
        names = list(table.fieldnames or ())
        if column not in names:
            raise no_column(name, column, names)
        for one in names if all_columns else (column,):
            if names.count(one) > 1:
                raise InputError(f"{name}: it has several columns {one!r}; rename all but one")
        first = table.line_num + 1
        for row in table:
            number = table.line_num
            if None in row:
                wrong = "has more fields than the header; a text with commas needs quotes"
            elif row[column] is None:
                wrong = f"has fewer fields than the header, and none in the column {column!r}"
            else:
                wrong = None
            yield number, row if wrong is None else InputError(f"{name}:{number}: {wrong}")
            first = number + 1
    except csv.Error as error:
        raise InputError(f"{name}, the row from line {first} on: {_reason(error)}") from error


def no_column(name: str, column: str, names: Sequence[str]) -> ColumnError:
    """The error for a table without `column`, whose columns are `names`."""
    return ColumnError(f"{name}: no column {column!r}; {_columns(column, names)}")


def _columns(wanted: str, names: Sequence[str]) -> str:
    """The columns of a table, and why the one that is wanted may not be among them."""
    shown = f"its columns: {', '.join(names) or 'none'}"
    for separator in (";", "\t", "|"):
        if len(names) == 1 and wanted in names[0].split(separator):
            return f"{shown}; commas separate columns, not {separator!r}"
    if any(name.strip() == wanted for name in names):
        return f"{shown}; remove the spaces around the name"
    return shown


def _reason(error: csv.Error) -> str:
    return "a quote is not closed" if "unexpected end of data" in str(error) else str(error)
