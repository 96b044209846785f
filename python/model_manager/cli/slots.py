"""``models`` and ``warmup``: listing, downloading and loading models."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._core import _hub_cache
from .._embedder import is_served
from .._sizes import size_text
from ..errors import ModelManagerError
from .known import show_known
from .output import complete_model, json_option, manager, quiet, show_json, show_table
from .texts import Command, option, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .. import Config


@click.command(
    cls=Command,
    help=say(
        "Show slots and downloaded models. Sizes are those on disk.",
        "Yuvaları ve indirilmiş modelleri göster. Boyutlar disktekilerdir.",
    ),
)
@option(
    "--known",
    is_flag=True,
    help=("Show the families of models that run.", "Çalışan model ailelerini göster."),
)
@json_option
def models(known: bool, as_json: bool) -> None:
    if known:
        show_known(as_json)
        return
    with manager() as found:
        config = found.config
        slots: list[dict[str, Any]] = [
            {
                "slot": name,
                "kind": slot["kind"],
                "source": slot["source"],
                "adapter": slot["adapter"],
                "bytes": _source_size(slot["source"], config),
            }
            for name, slot in found.stats()["slots"].items()
        ]
    cached: list[dict[str, Any]] = [{"model": name, "bytes": count} for name, count in _cached(config)]
    if as_json:
        show_json({"slots": slots, "cache": {"folder": str(hub_cache(config)), "models": cached}})
        return
    rows = ((one["slot"], one["kind"], _shown(one), _where(one["source"], one["bytes"])) for one in slots)
    show_table("Slots", ("slot", "kind", "source", "on disk"), rows)
    if cached:
        show_table(
            "Hugging Face cache", ("model", "on disk"), ((one["model"], size_text(one["bytes"])) for one in cached)
        )
    click.echo(f"{len(cached)} models in the Hugging Face cache, {hub_cache(config)}")


def _shown(slot: dict[str, Any]) -> str | None:
    """The source of a slot, with its adapter."""
    return slot["source"] if slot["adapter"] is None else f"{slot['source']} + {slot['adapter']}"


@click.command(
    cls=Command,
    help=say(
        "Load models, downloading what is missing. SLOTS may be sources too; without any, the preferred sentence model."
        " Shows the time and memory of each.",
        "Modelleri yükle, eksikleri indir. SLOTS kaynak da olabilir; verilmezse tercih edilen cümle modeli. Her birinin"
        " süresini ve belleğini gösterir.",
    ),
)
@click.argument("slots", nargs=-1, shell_complete=complete_model)
@json_option
def warmup(slots: Sequence[str], as_json: bool) -> None:
    from .._embedder import slot_for

    results: list[dict[str, Any]] = []
    with manager() as found:
        for slot in [slot_for(found, name, None) for name in slots] or [slot_for(found, None)]:
            started = time.perf_counter()
            try:
                with quiet():
                    found.load(slot)
            except ModelManagerError as error:
                results.append({"slot": slot, "loaded": False, "error": str(error)})
                continue
            state = found.stats()["slots"][slot]
            seconds = round(time.perf_counter() - started, 3)
            results.append({"slot": slot, "loaded": True, "seconds": seconds, "bytes": state["bytes"]})
    if as_json:
        show_json(results)
    else:
        for one in results:
            if one["loaded"]:
                click.echo(f"{one['slot']}: {one['seconds']:.2f} s, {size_text(one['bytes'])}")
            else:
                click.echo(f"{one['slot']}: {one['error']}", err=True)
    if not all(one["loaded"] for one in results):
        raise click.exceptions.Exit(1)


def hub_cache(config: Config) -> Path:
    """The folder of downloaded models."""
    return _hub_cache(config)


def _cached(config: Config) -> list[tuple[str, int]]:
    """The hub ids in the cache and their sizes in bytes."""
    folder = hub_cache(config)
    found = sorted(folder.glob("models--*")) if folder.is_dir() else []
    return [(path.name.removeprefix("models--").replace("--", "/"), _folder_size(path)) for path in found]


def _source_size(source: str | None, config: Config) -> int | None:
    """Bytes on disk; None if the source is not on disk."""
    if source is None:
        return None
    path = Path(os.path.expanduser(source))  # noqa: PTH111  as above
    if source.startswith("pkg:"):
        package, _, folder = source.removeprefix("pkg:").partition("/")
        try:
            found = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # of a.b where there is no a
            return None
        path = Path(((found and found.submodule_search_locations) or [package])[0]) / folder
    if path.is_dir():
        return _folder_size(path)
    if path.is_file():
        return path.stat().st_size
    cached = dict(_cached(config))
    return cached.get(source, cached.get(f"sentence-transformers/{source}"))


def _folder_size(folder: Path) -> int:
    """The bytes of all files below. Links of the cache to its blobs are not counted."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _where(source: str | None, count: int | None) -> str:
    if count is not None:
        return size_text(count)
    return "another server's" if is_served(source) else "not on this machine"
