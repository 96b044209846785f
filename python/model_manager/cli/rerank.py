"""``rerank``: lines of text by their relevance to a query."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .._embedder import reranker_for
from .lines import input_format_option, naming, read_texts
from .output import (
    adapted,
    adapter_option,
    column_option,
    complete_model,
    json_option,
    manager,
    show_json,
    standard_output,
    visible,
)
from .texts import Command, option, say

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command(
    cls=Command,
    help=say(
        "Order lines of text by their relevance to QUERY, best first. Reads FILES or standard input. Of a"
        " .jsonl file the texts are the lines' field --column or the lines themselves, of a .csv file the column"
        " --column.",
        "Metin satırlarını QUERY ile ilgilerine göre sırala, en iyisi önce. FILES'ı ya da standart girdiyi okur. Bir"
        " .jsonl dosyasında metinler satırların --column alanı ya da kendisidir, bir .csv dosyasında --column"
        " sütunudur.",
    ),
)
@click.argument("query")
@click.argument("files", nargs=-1, type=click.Path())  # the type completes names
@option(
    "-m",
    "--model",
    shell_complete=complete_model,
    help=(
        "A slot, or a source: hub id, folder. Default: the reranker of the settings.",
        "Bir model yuvası ya da kaynak: hub adı, klasör. Varsayılan: ayarlardaki sıralayıcı.",
    ),
)
@adapter_option
@option(
    "-n",
    "--top-n",
    type=click.IntRange(min=1),
    help=("Only so many lines.", "Yalnız bu kadar satır."),
)
@column_option
@input_format_option
@json_option
def rerank(
    query: str,
    files: Sequence[str],
    model: str | None,
    adapter: str | None,
    top_n: int | None,
    column: str,
    input_format: str | None,
    as_json: bool,
) -> None:
    lines = [line for line in read_texts(files or ["-"], column, input_format) if line.text.strip()]
    with manager(cache_size=0) as models:
        found, slot = reranker_for(models, adapted(models, model, adapter, "reranker"))
        with naming(lines):
            results = found.rerank(query, [line.text for line in lines], slot, top_n=top_n)
    if as_json:
        show_json(
            [
                {
                    "file": lines[one.index].file,
                    "line": lines[one.index].number,
                    "score": one.score,
                    "text": one.document,
                }
                for one in results
            ]
        )
        return
    standard_output()
    for one in results:
        # One line a text.
        click.echo(f"{one.score:.4f}\t{visible(' '.join(lines[one.index].text.splitlines()))}")
