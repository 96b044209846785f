"""Shared by the commands: options, files, tables, JSON."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

import click
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.table import Table

from .. import Config, ModelManager
from .._embedder import without_key
from .._sizes import size_text as size  # noqa: F401 - its former name here
from ..manager import BUILT_IN_SLOTS
from .lines import reading  # noqa: F401 - its former place
from .texts import option

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Literal, TypeAlias

    from typing_extensions import Unpack

    from .._types import Settings

    Kind: TypeAlias = Literal["encoder", "reranker"]

_WIDEST = 10_000_000
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but tabs and line breaks."""


def complete_slot(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The names of slots, for the shell."""
    return [CompletionItem(name) for name in BUILT_IN_SLOTS if name.startswith(begun)]


def complete_source(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The names of files, for the shell."""
    return [CompletionItem(begun, type="file")]


def complete_model(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The names of slots and of files, for the shell."""
    return [*complete_source(context, parameter, begun), *complete_slot(context, parameter, begun)]


model_option = option(
    "-m",
    "--model",
    shell_complete=complete_model,
    help=(
        "A slot, or a source: hub id, folder, ollama://… Default: the preferred sentence model.",
        "Bir model yuvası ya da kaynak: hub adı, klasör, ollama://… Varsayılan: tercih edilen cümle modeli.",
    ),
)
adapter_option = option(
    "--adapter",
    help=(
        "A LoRA adapter of PEFT over --model (folder or hub id), or one of the model's own by its name.",
        "--model üzerine bir PEFT LoRA uyarlayıcısı (klasör ya da hub adı) ya da modelin kendi uyarlayıcısının adı.",
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


def is_offline(config: Config) -> bool:
    """Whether a setting, or a variable of Hugging Face's libraries, forbids downloads."""
    variables = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return config.offline or any(value.lower() in ("1", "on", "yes", "true") for value in variables)


def adapted(models: ModelManager, model: str | None, adapter: str | None, kind: Kind = "encoder") -> str | None:
    """`model`, or with an adapter the name of a new slot for both. The name of a slot stands for its source."""
    if adapter is None:
        return model
    if model is None:
        raise click.UsageError("--adapter changes a model: name it with --model")
    slots = models.stats()["slots"]
    source = slots[model]["source"] if model in slots else model
    if source is None or (model in slots and slots[model]["adapter"] is not None):
        raise click.UsageError(
            f"--adapter: give the source of a model with --model; {model!r} is a slot with a loader or an adapter"
        )
    name = f"{without_key(source)} + {adapter}"
    models.register(name, source, kind=kind, adapter=adapter)
    return name


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


def standard_output() -> TextIO:
    """Standard output. It is refused where the caller has closed it."""
    if sys.stdout is None:
        raise click.ClickException("standard output is closed: there is no place for the result")
    return sys.stdout


def show_json(value: Any) -> None:
    """One JSON document on standard output. Letters that its encoding lacks are written as JSON's escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        text.encode(standard_output().encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    click.echo(text)


def escape_unknown_letters() -> None:
    """From now on, a letter that standard output's encoding lacks is printed as an escape and is no error."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output; without a terminal it is as wide as necessary. Cells are shown as they are, but for
    control characters.
    """
    in_terminal = standard_output().isatty()
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else visible(str(cell)) for cell in row))
    # rich takes COLUMNS=0 for a width.
    width = shutil.get_terminal_size().columns if in_terminal else _WIDEST
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    if not in_terminal:
        console.width = max(console.measure(table).maximum, len(title))
    with console.capture() as drawn:
        console.print(table)
    click.echo(drawn.get(), nl=False)  # as all other output: in UTF-8 where the system's encoding is ASCII


def visible(text: str) -> str:
    """A text with escapes for control characters, which a terminal would obey."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP leave the block as an exception: what was begun is removed. A handler of others stays."""
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def is_standard_output(target: Path) -> bool:
    """Whether a name means standard output. It may be a file that others write too, which must not be replaced."""
    return str(target) in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def check_inputs(files: Iterable[str]) -> None:
    """Refuse a file that standard output is written to: reading it would not end."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a closed stream, no such file: another error
        out = os.fstat(standard_output().fileno())
        for name in files if stat.S_ISREG(out.st_mode) else ():
            given = os.fstat(sys.stdin.fileno()) if name == "-" else os.stat(name)  # noqa: PTH116
            if os.path.samestat(given, out):
                raise click.UsageError(f"{name}: is both input and output; write to another file, or use --output")


@contextlib.contextmanager
def writing(target: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it is complete. A pipe or a device is written as it is."""
    with placing(target) as place, place.open("wb") as file:
        yield file


@contextlib.contextmanager
def placing(target: Path) -> Iterator[Path]:
    """Where to write `target`: a file that takes its name at the end of the block, or is removed after an error.

    A link stays one, a file keeps its permissions; a new one is readable by others. What is no regular file is to be
    written itself.
    """
    if target.exists() and not target.is_file():
        yield target
        return
    if is_standard_output(target):  # what the file behind it holds would be lost
        raise click.UsageError(f"{target}: this is written as a whole; name a file, or pipe it")
    with _signals_raise(), _temporary(target) as place:
        yield place


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    final = Path(os.path.realpath(target))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(final)  # a name that is too long is refused now
        handle, name = tempfile.mkstemp(dir=final.parent, prefix=".model-manager-")
        os.close(handle)
    except PermissionError as error:
        raise click.ClickException(
            f"{target}: cannot be written, because the folder {final.parent} cannot: a file takes its name when it is"
            " complete"
        ) from error
    except OSError as error:
        error.filename = str(target)  # what the user named
        raise
    place = Path(name)
    try:
        yield place
        # Temporary files are private.
        if final.exists():
            place.chmod(stat.S_IMODE(final.stat().st_mode))
        else:
            place.chmod(0o666 & ~_umask())
        place.replace(final)
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
