"""``cache``, ``preload`` and ``explain``: what outlives a process, and what was learned of its use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .._embedder import slot_for
from .._sizes import size_text
from . import lines
from .output import column_option, complete_slot, json_option, manager, model_option, show_json, show_table
from .texts import Command, say

if TYPE_CHECKING:
    from .. import ModelManager


class _CacheGroup(Command, click.Group):
    """The commands of the cache."""


@click.group(
    cls=_CacheGroup,
    help=say(
        "Vectors that outlive a process: those in the folder of MODEL_MANAGER_CACHE_DISK (else the usual one), and on"
        " the servers of MODEL_MANAGER_CACHE_URL.",
        "Süreçten uzun yaşayan vektörler: MODEL_MANAGER_CACHE_DISK klasöründekiler (yoksa olağan klasör) ve"
        " MODEL_MANAGER_CACHE_URL sunucularındakiler.",
    ),
)
def cache() -> None:
    pass


def _opened() -> ModelManager:
    """A manager whose cache is on disk, in the usual folder where none is configured."""
    found = manager()
    if found.config.cache_disk is not False:
        return found
    found.close()
    return manager(cache_disk=True)


@cache.command(cls=Command, help=say("Show what is stored and where.", "Neyin nerede saklandığını göster."))
@json_option
def info(as_json: bool) -> None:
    with _opened() as found:
        folder = found.config.cache_disk
        verified = found.cache_verify()
        servers = found._cache_probe()
        tiers = found.cache_info()["tiers"]
        usual = say("the usual folder", "olağan klasör")
        shown: list[dict[str, Any]] = [
            {
                "tier": "disk",
                "place": usual if folder is True else folder,
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
    with _opened() as found:
        count = found.cache_import(file)
    click.echo(say(f"{count} vectors are new.", f"{count} vektör yeni."))


@click.command(
    cls=Command,
    help=say(
        "Embed the texts of FILE and store their vectors, so that no user waits for them. FILE has one text a line; of"
        " a .jsonl file the texts are the lines' field --column or the lines themselves, of a .csv file the column"
        " --column.",
        "FILE içindeki metinlerin vektörlerini hesaplayıp sakla; böylece kimse onları beklemez. FILE'ın her satırı bir"
        " metindir; bir .jsonl dosyasında metinler satırların --column alanı ya da kendisidir, bir .csv dosyasında"
        " --column sütunudur.",
    ),
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@model_option
@column_option
@lines.input_format_option
def preload(file: str, model: str | None, column: str, input_format: str | None) -> None:
    texts = [line.text for line in lines.read_texts([file], column, input_format) if line.text.strip()]
    with _opened() as found:
        ticket = found.preload(texts, None if model is None else slot_for(found, model), when="now")
        ticket.wait()
        # The content of a model that was loaded for the first time is computed in the background.
        found.cache_flush(60)
        _check_stored(found, len(set(texts)))
    click.echo(say(f"{ticket.done} texts are stored.", f"{ticket.done} metin saklandı."))


def _check_stored(found: ModelManager, count: int) -> None:
    """Raise an error unless `count` texts are on disk, and each server took what it was sent."""
    tiers = found.cache_info()["tiers"]
    disk = tiers["disk"]
    stored = min(disk["hits"] + disk["writes"], disk["entries"] or 0)
    if stored < count:
        raise click.ClickException(
            f"{stored} of {count} texts are on disk: its folder cannot be written, the disk is full, or"
            f" MODEL_MANAGER_CACHE_DISK_BYTES={found.config.cache_disk_bytes} is too small"
        )
    failed = [name for name, tier in tiers.items() if tier["errors"] or tier["dropped"] or not tier["working"]]
    if failed:
        raise click.ClickException(
            f"the texts are on disk, but {', '.join(failed)} did not store all of them; see `cache info`"
        )


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
