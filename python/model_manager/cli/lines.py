"""Texts of files and of standard input, for commands: errors name the options that help."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from .. import _text_files
from .._text_files import FORMS, ColumnError, FormatError, Line, form_of
from ..errors import InputError
from .texts import option

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

input_format_option = option(
    "--input-format",
    type=click.Choice(FORMS),
    help=(
        "Format of all files and of standard input; default: by the extensions, else txt.",
        "Bütün dosyaların ve standart girdinin biçimi; varsayılan: uzantılara göre, yoksa txt.",
    ),
)


def read_texts(files: Sequence[str], column: str, form: str | None = None) -> Iterator[Line]:
    """The texts of all files. Errors name the file and the line."""
    with file_errors("--input-format", "--column"):
        for name in files:  # before any text is computed
            form_of(name, form)
        for name in files:
            with reading(name) as file:
                yield from _text_files.texts(name, file, column, form)


@contextlib.contextmanager
def reading(name: str) -> Iterator[IO[bytes]]:
    """The file, or standard input for ``-``."""
    if name != "-":
        with Path(name).open("rb") as file:
            yield file
    elif sys.stdin is None:
        raise click.ClickException("standard input is closed: name a file")
    else:
        yield sys.stdin.buffer


@contextlib.contextmanager
def file_errors(format_option: str, column_option: str) -> Iterator[None]:
    """Have errors of files end the command, and name the options that say what a file holds."""
    try:
        yield
    except FormatError as error:
        raise click.UsageError(
            f"{error}. {format_option} jsonl reads one object or text a line (jq -c writes them),"
            f" {format_option} txt takes the lines as they are"
        ) from error
    except ColumnError as error:
        raise click.ClickException(f"{error}. {column_option} names another field") from error
    except InputError as error:
        raise click.ClickException(str(error)) from error


@contextlib.contextmanager
def naming(lines: Sequence[Line]) -> Iterator[None]:
    """Have the error of a text name its file and line: the core counts the texts that it was given."""
    try:
        yield
    except InputError as error:
        if error._place and error._rest is not None and error.param in ("texts", "documents"):
            raise click.ClickException(f"{lines[error._place[0]].place}{error._rest}") from error
        raise
