"""Shared by the commands: options, files, tables, JSON."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from .. import Config, ModelManager
from .._sizes import size_text as size  # noqa: F401 - its former name here
from .texts import option

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from typing_extensions import Unpack

    from .._types import Settings

model_option = option(
    "-m",
    "--model",
    help=(
        "A slot, or a source: hub id, folder, ollama://… Default: the preferred sentence model.",
        "Bir model yuvası ya da kaynak: hub adı, klasör, ollama://… Varsayılan: tercih edilen cümle modeli.",
    ),
)
dimensions_option = option(
    "-d",
    "--dimensions",
    type=click.IntRange(min=1),
    help=("Cut the vectors to this many dimensions.", "Vektörleri bu kadar boyuta kısalt."),
)
column_option = option(
    "--column",
    default="text",
    show_default=True,
    help=(
        "The column of texts of a .parquet or .csv file, and their field in a .jsonl file.",
        "Bir .parquet ya da .csv dosyasındaki metin sütunu, bir .jsonl dosyasındaki metin alanı.",
    ),
)
json_option = option("--json", "as_json", is_flag=True, help=("Print JSON.", "JSON yaz."))


def manager(**overrides: Unpack[Settings]) -> ModelManager:
    """A new manager with the settings of the environment. Raises `ConfigError`."""
    return ModelManager(Config(**overrides))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context without log lines for errors that the command's own output reports, unless --verbose is given."""
    log = logging.getLogger("model_manager")
    level = log.level
    if not logging.getLogger().isEnabledFor(logging.INFO):
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def show_json(value: Any) -> None:
    """One JSON document on standard output. Letters that its encoding lacks are written as JSON's escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    click.echo(text)


def escape_unknown_letters() -> None:
    """From now on, a letter that standard output's encoding lacks is printed as an escape and is no error."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output; without a terminal it is as wide as necessary."""
    table = Table(*columns, title=title, title_justify="left", title_style="bold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False)
    with console.capture() as drawn:
        console.print(table)
    click.echo(drawn.get(), nl=False)  # as all other output: in UTF-8 where the system's encoding is ASCII


@contextlib.contextmanager
def reading(name: str) -> Iterator[IO[str]]:
    """A UTF-8 text file, or standard input for ``-``. Errors of the encoding name the file."""
    try:
        if name == "-":
            stream = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig")
            try:
                yield stream
            finally:
                stream.detach()  # otherwise it would close standard input
        else:
            with Path(name).open(encoding="utf-8-sig") as file:
                yield file
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{name}: not UTF-8 text ({error.reason} at byte {error.start})") from error


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM leaves the block as an exception: what was begun is removed. A handler of others stays."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it is complete."""
    with _sigterm_raises(), _temporary(target) as file:
        yield file


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[IO[bytes]]:
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        error.filename = str(target)  # what the user named
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)  # temporary files are private; the result has the usual permissions
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
