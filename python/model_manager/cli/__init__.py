"""The command line: ``model-manager``, or ``python -m model_manager``.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 something failed, 2 wrong
usage, 130 interrupted.

It uses click, which is small, typed and stable, and rich for tables.
"""

from __future__ import annotations

import logging
import sys

from .._extras import extra

with extra("cli"):
    import click

    from .bench import bench
    from .cache import cache, explain, preload
    from .collections import index, search
    from .completion import completion
    from .demo import demo
    from .doctor import doctor
    from .embed import embed
    from .output import escape_unknown_letters
    from .rerank import rerank
    from .serve import serve
    from .slots import models, warmup
    from .texts import Command, say

from typing import TYPE_CHECKING

from .._core import __version__
from ..errors import ModelManagerError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["run"]


class _Group(Command, click.Group):
    """The commands."""


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=say(
        "Sentence embeddings and text generation on this machine. Settings come from the environment; `doctor` shows"
        " them.",
        "Bu makinede cümle vektörleri ve metin üretimi. Ayarlar ortam değişkenlerindendir; `doctor` onları gösterir.",
    ),
    epilog=say(
        """\b
        Examples:
          model-manager demo                                    try it on a small model
          echo "a text" | model-manager embed -m FOLDER         vectors of lines
          model-manager serve                                   the API of OpenAI and Ollama

        Exit codes: 0 done, 1 something failed, 2 wrong usage, 130 interrupted.""",
        """\b
        Örnekler:
          model-manager demo                                    küçük bir modelle dene
          echo "bir metin" | model-manager embed -m KLASÖR      satırların vektörleri
          model-manager serve                                   OpenAI ve Ollama API'si

        Çıkış kodları: 0 tamam, 1 bir şey başarısız, 2 yanlış kullanım, 130 kesildi.""",
    ),
)
@click.version_option(__version__, package_name="model-manager-rs", help=say("Show the version.", "Sürümü göster."))
@click.option("-v", "--verbose", is_flag=True, help=say("Log what happens.", "Olanları günlüğe yaz."))
@click.pass_context
def cli(context: click.Context, verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if not verbose and context.invoked_subcommand != "serve":
        # The command ends with this error and prints it.
        handler.addFilter(lambda record: " cannot be loaded: " not in record.getMessage())
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s", handlers=[handler]
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request


_COMMANDS = (
    *(demo, embed, rerank, serve, index, search),
    *(models, warmup, cache, preload, explain, doctor, bench, completion),
)
for _command in _COMMANDS:
    cli.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command (None: the process's arguments); return the exit code. Expected errors print one line."""
    escape_unknown_letters()
    try:
        code = cli.main(None if arguments is None else list(arguments), "model-manager", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(say("Interrupted.", "Kesildi."), err=True)
        return 130
    except OSError as error:
        named = error.strerror is not None and isinstance(error.filename, str)
        return _print_error(f"{error.filename}: {error.strerror}" if named else error)
    except (ModelManagerError, ImportError, UnicodeError) as error:
        return _print_error(error)
    return code if isinstance(code, int) else 0


def _print_error(error: Exception | str) -> int:
    click.echo(f"Error: {error}", err=True)
    return 1
