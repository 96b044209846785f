"""``cache``, ``preload`` and ``explain``: what outlives a process, and what was learned of its use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from .. import Config, ModelManager
from .._embedder import is_served, slot_for, without_key
from .._sizes import size_text
from . import lines
from .output import column_option, complete_model, complete_slot, json_option, manager, show_json, show_table
from .texts import Command, option, say

_DISK = "MODEL_MANAGER_CACHE_DISK"


class _CacheGroup(Command, click.Group):
    """The commands of the cache."""


@click.group(
    cls=_CacheGroup,
    help=say(
        "Vectors that outlive a process: those in the folder of MODEL_MANAGER_CACHE_DISK (else model_manager/vectors in"
        " the user's cache folder), and on the servers of MODEL_MANAGER_CACHE_URL.",
        "Süreçten uzun yaşayan vektörler: MODEL_MANAGER_CACHE_DISK klasöründekiler (yoksa kullanıcının önbellek"
        " klasöründeki model_manager/vectors) ve MODEL_MANAGER_CACHE_URL sunucularındakiler.",
    ),
)
def cache() -> None:
    pass


def _opened(*, writing: bool = False, servers: bool = False) -> ModelManager:
    """A manager whose cache is on disk, in the usual folder where none is configured.

    With `writing`, a setting that switches the disk off counts too: where `servers` are configured that take the
    vectors, the manager has no disk, else this raises an error.
    """
    config = Config()
    if config.cache_disk is not False:
        return ModelManager(config)
    off = os.environ.get(_DISK, "").strip()
    if writing and off:
        if servers and config.cache_url:
            return ModelManager(config)
        raise click.ClickException(f"{_DISK}={off} forbids to store vectors on disk; set it to true or a folder")
    return manager(cache_disk=True)


def _folder(found: ModelManager) -> str:
    """The folder of a manager whose cache is on disk."""
    configured = found.config.cache_disk
    if isinstance(configured, str):
        return configured
    # As in the core, which has refused an environment that has neither variable.
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", "")) / ".cache")
    return str(caches / "model_manager" / "vectors")


def _say_who_reads(found: ModelManager) -> None:
    """Say in which processes the vectors on disk count, where the settings of this one leave them out."""
    if Config().cache_disk is False and found.config.cache_disk is not False:
        folder = _folder(found)
        click.echo(
            say(
                f"They are in {folder}, which only processes with {_DISK}=true read.",
                f"Yerleri {folder}; onları yalnızca {_DISK}=true ile çalışan süreçler okur.",
            ),
            err=True,
        )


@cache.command(cls=Command, help=say("Show what is stored and where.", "Neyin nerede saklandığını göster."))
@json_option
def info(as_json: bool) -> None:
    with _opened() as found:
        verified = found.cache_verify()
        servers = found._cache_probe()
        tiers = found.cache_info()["tiers"]
        shown: list[dict[str, Any]] = [
            {
                "tier": "disk",
                "place": _folder(found),
                "entries": tiers["disk"]["entries"],
                "bytes": tiers["disk"]["bytes"],
                "damaged": verified["damaged"],
                "limit": found.config.cache_disk_bytes,
            }
        ]
        shown += [{"tier": "redis", "place": place, "working": answers} for place, answers in servers]
    if as_json:
        show_json({"tiers": shown})
        return
    state = {
        True: say("answers", "yanıt veriyor"),
        False: say("does not answer", "yanıt vermiyor"),
        None: "",
    }
    rows = (
        (
            *(one["tier"], one["place"], one.get("entries", "")),
            *(size_text(one["bytes"]) if "bytes" in one else "", state[one.get("working")]),
        )
        for one in shown
    )
    columns = say("tier|place|vectors|size|state", "katman|yer|vektör|boyut|durum").split("|")
    show_table(say("Cache", "Önbellek"), columns, rows)


@cache.command(cls=Command, help=say("Remove everything that is stored.", "Saklanan her şeyi sil."))
def clear() -> None:
    with _opened() as found:
        found.cache_clear(tiers=True)
    click.echo(say("The cache is empty.", "Önbellek boş."))


@cache.command(
    cls=Command,
    help=say(
        "Read everything on disk and compare the checksums. Exit code 1 when something is damaged; a damaged vector is"
        " never used.",
        "Diskteki her şeyi oku ve sağlama toplamlarını karşılaştır. Bozuk bir şey varsa çıkış kodu 1; bozuk bir vektör"
        " hiçbir zaman kullanılmaz.",
    ),
)
@json_option
def verify(as_json: bool) -> int:
    with _opened() as found:
        verified = found.cache_verify()
    if as_json:
        show_json(verified)
    else:
        whole, damaged = verified["whole"], verified["damaged"]
        click.echo(say(f"{whole} vectors are whole, {damaged} damaged.", f"{whole} vektör sağlam, {damaged} bozuk."))
    return 1 if verified["damaged"] else 0


@cache.command(cls=Command, help=say("Write everything on disk to one file.", "Diskteki her şeyi bir dosyaya yaz."))
@click.argument("file", type=click.Path(dir_okay=False))
def export(file: str) -> None:
    with _opened() as found:
        count = found.cache_export(file)
    click.echo(say(f"{count} vectors were written.", f"{count} vektör yazıldı."))


@cache.command(
    "import",
    cls=Command,
    help=say("Add the vectors of a file that `export` wrote.", "`export` komutunun yazdığı dosyadaki vektörleri ekle."),
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
def import_(file: str) -> None:
    with _opened(writing=True) as found:
        count = found.cache_import(file)
        click.echo(say(f"{count} vectors are new.", f"{count} vektör yeni."))
        _say_who_reads(found)


@click.command(
    cls=Command,
    help=say(
        "Embed the texts of FILE and store their vectors, so that no user waits for them: processes with"
        " MODEL_MANAGER_CACHE_DISK=true find them there. FILE has one text a line; of"
        " a .jsonl file the texts are the lines' field --column or the lines themselves, of a .csv file the column"
        " --column.",
        "FILE içindeki metinlerin vektörlerini hesaplayıp sakla; böylece kimse onları beklemez:"
        " MODEL_MANAGER_CACHE_DISK=true ile çalışan süreçler onları bulur. FILE'ın her satırı bir"
        " metindir; bir .jsonl dosyasında metinler satırların --column alanı ya da kendisidir, bir .csv dosyasında"
        " --column sütunudur.",
    ),
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@option(
    "-m",
    "--model",
    shell_complete=complete_model,
    help=(
        "A slot, or a source: hub id, folder. Default: the slot of each text's language.",
        "Bir model yuvası ya da kaynak: hub adı, klasör. Varsayılan: her metnin dilinin yuvası.",
    ),
)
@column_option
@lines.input_format_option
def preload(file: str, model: str | None, column: str, input_format: str | None) -> None:
    texts = [line.text for line in lines.read_texts([file], column, input_format) if line.text.strip()]
    with _opened(writing=True, servers=True) as found:
        slot = None if model is None else slot_for(found, model)
        _refuse_served(found, {found.route(text) for text in texts} if slot is None else {slot})
        ticket = found.preload(texts, slot, when="now")
        ticket.wait()
        # The content of a model that was loaded for the first time is computed in the background.
        found.cache_flush(60)
        _check_stored(found, len(set(texts)))
        click.echo(say(f"{ticket.done} texts are stored.", f"{ticket.done} metin saklandı."))
        _say_who_reads(found)


def _refuse_served(found: ModelManager, slots: set[str]) -> None:
    """Raise an error for the model of a server, before it is asked for vectors."""
    states = found.stats()["slots"]
    for slot in sorted(slots):
        source = states[slot]["source"] if slot in states else None
        if source is not None and is_served(source):
            where = "" if slot == without_key(source) else f" ({without_key(source)})"
            raise click.ClickException(
                f"the vectors of {slot!r}{where} are never stored: it is the model of a server, whose content is not"
                " known; --model takes a model of a folder or of the hub"
            )


def _check_stored(found: ModelManager, count: int) -> None:
    """Raise an error unless `count` texts are on disk, where there is one, and each server took what it was sent."""
    tiers = found.cache_info()["tiers"]
    disk = tiers.get("disk")
    if disk is not None:
        stored = min(disk["hits"] + disk["writes"], disk["entries"] or 0)
        if stored < count:
            raise click.ClickException(
                f"{stored} of {count} texts are on disk: its folder cannot be written, the disk is full, or"
                f" MODEL_MANAGER_CACHE_DISK_BYTES={found.config.cache_disk_bytes} is too small"
            )
    failed = [
        name
        for name, tier in tiers.items()
        if tier["errors"]
        or tier["dropped"]
        or not tier["working"]
        # What is found on disk is not asked for elsewhere.
        or (disk is None and tier["hits"] + tier["writes"] < count)
    ]
    if failed:
        on_disk = "" if disk is None else "the texts are on disk, but "
        raise click.ClickException(f"{on_disk}{', '.join(failed)} did not store all of them; see `cache info`")


@click.command(
    cls=Command,
    help=say(
        "Say how long the model of SLOT stays in memory and why, from what earlier processes have learned.",
        "SLOT modelinin bellekte ne kadar ve neden kaldığını, önceki süreçlerin öğrendiklerinden söyle.",
    ),
)
@click.argument("slot", shell_complete=complete_slot)
@json_option
def explain(slot: str, as_json: bool) -> None:
    with manager() as found:
        explained = found.explain(slot)
    if as_json:
        show_json(explained)
    else:
        click.echo(f"{slot}: {explained['sentence']}")
        click.echo(f"Profile: {explained['profile']}")
