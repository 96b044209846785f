"""``rerank``: lines of text by their relevance to a query."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .._embedder import reranker_for
from .output import json_option, manager, reading, show_json
from .texts import Command, option, say

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command(
    cls=Command,
    help=say(
        "Order lines of text by their relevance to QUERY, best first. Reads FILES or standard input.",
        "Metin satırlarını QUERY ile ilgilerine göre sırala, en iyisi önce. FILES'ı ya da standart girdiyi okur.",
    ),
)
@click.argument("query")
@click.argument("files", nargs=-1)
@option(
    "-m",
    "--model",
    help=(
        "A slot, or a source: hub id, folder. Default: the reranker of the settings.",
        "Bir model yuvası ya da kaynak: hub adı, klasör. Varsayılan: ayarlardaki sıralayıcı.",
    ),
)
@option(
    "-n",
    "--top-n",
    type=click.IntRange(min=1),
    help=("Only so many lines.", "Yalnız bu kadar satır."),
)
@json_option
def rerank(query: str, files: Sequence[str], model: str | None, top_n: int | None, as_json: bool) -> None:
    lines = []
    for name in files or ["-"]:
        with reading(name) as file:
            lines += [line.rstrip("\n") for line in file]
    documents = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    with manager(cache_size=0) as models:
        found, slot = reranker_for(models, model)
        results = found.rerank(query, [line for _, line in documents], slot, top_n=top_n)
    if as_json:
        show_json([{"line": documents[one.index][0], "score": one.score, "text": one.document} for one in results])
        return
    for one in results:
        click.echo(f"{one.score:.4f}\t{one.document}")
