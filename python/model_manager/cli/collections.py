"""``index`` and ``search``: a Qdrant collection from the command line."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .._extras import extra
from .._text_files import form_of, no_column, rows
from ..errors import InputError
from .lines import file_errors, reading
from .output import (
    adapted,
    adapter_option,
    complete_model,
    complete_source,
    dimensions_option,
    json_option,
    manager,
    model_option,
    show_json,
    show_table,
    standard_output,
)
from .texts import Command, option, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from .. import ModelManager
    from ..integrations.qdrant import IndexReport, QdrantIndexer
    from ..integrations.qdrant.requests import Mode

_SHOWN_FAILURES = 20


def _collection_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options for the collection, the Qdrant and the model."""
    for add in (
        dimensions_option,
        adapter_option,
        model_option,
        option(
            "--url",
            help=("Address of a Qdrant server; default: QDRANT_URL.", "Qdrant sunucusunun adresi; yoksa QDRANT_URL."),
        ),
        option(
            "--path",
            type=click.Path(file_okay=False),
            help=(
                "Folder of an embedded Qdrant; default without a server: qdrant_data.",
                "Gömülü Qdrant'ın klasörü; sunucu yoksa varsayılan: qdrant_data.",
            ),
        ),
        option(
            "--language",
            type=click.Choice(("turkish", "english", "auto")),
            help=("Language of --sparse bm25.", "--sparse bm25'in dili."),
        ),
        option(
            "--sparse",
            shell_complete=complete_source,
            help=(
                "Search by words too: bm25 (without a model), or a model of sparse vectors.",
                "Sözcüklere göre de ara: bm25 (modelsiz) ya da seyrek vektör modeli.",
            ),
        ),
        option("-c", "--collection", required=True, help=("Name of the collection.", "Koleksiyonun adı.")),
    ):
        function = add(function)
    return function


def _indexer(models: ModelManager, settings: dict[str, Any], *, reads: bool = False) -> QdrantIndexer:
    """The indexer of a collection. A command that only `reads` makes no embedded Qdrant where there is none."""
    with extra("qdrant"):
        from ..integrations.qdrant import QdrantIndexer
        from ..integrations.qdrant.connect import embedded_folder
    folder = embedded_folder(settings["path"], settings["url"])
    if reads and folder is not None and not (Path(folder) / "meta.json").is_file():
        raise click.ClickException(
            f"collection {settings['collection']!r} does not exist: there is no Qdrant in the folder {folder}; --path"
            " names the folder of one, --url a server, and `model-manager index` makes one"
        )
    model = adapted(models, settings.pop("model"), settings.pop("adapter"))
    return QdrantIndexer(manager=models, model=model, **settings)


@click.command(
    cls=Command,
    help=say(
        "Index documents in Qdrant. Reads FILES or standard input. .jsonl: one document per line, with text and id in"
        " the fields named below and all other fields as metadata; .csv: the same with a header; other files: one"
        " document per line. The id of a document without one is its file, as the command names it, and its line, of"
        " standard input a hash of it."
        " Unchanged documents are skipped,"
        " so the same command resumes an interrupted run. Exit code 1 when a document failed.",
        "Belgeleri Qdrant'a ekle. FILES'ı ya da standart girdiyi okur. .jsonl: her satır bir belge; metni ve kimliği"
        " aşağıdaki alanlarda, kalan alanlar üstveri; .csv: aynısı, başlık satırıyla; diğerleri: her satır bir belge."
        " Kimliği olmayan belgenin kimliği, komutta yazıldığı gibi dosyası ve satırı, standart girdide içeriğinin"
        " özetidir. Dizinde olanlar"
        " atlanır; yarıda kalan iş kaldığı"
        " yerden sürer. Bir belge eklenemezse çıkış kodu 1'dir.",
    ),
)
@click.argument("files", nargs=-1, type=click.Path())  # the type completes names
@_collection_options
@option(
    "-b",
    "--batch-size",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help=("Documents per request.", "İstek başına belge."),
)
@option(
    "--chunk",
    type=click.IntRange(min=0),
    default=0,
    help=(
        "Split documents into chunks of at most so many tokens; search then finds the best one of each.",
        "Belgeleri en çok bu kadar belirteçlik parçalara böl; arama her belgenin en iyi parçasını bulur.",
    ),
)
@option(
    "--overlap",
    type=click.IntRange(min=0),
    default=0,
    help=("Tokens that two chunks share.", "İki parçanın paylaştığı belirteç sayısı."),
)
@option(
    "--text-field",
    default="text",
    show_default=True,
    help=("Field of the text.", "Metnin alanı."),
)
@option(
    "--id-field",
    show_default="id",
    help=("Field of the id.", "Kimliğin alanı."),
)
@option(
    "--format",
    "form",
    type=click.Choice(("jsonl", "csv", "txt")),
    help=(
        "Format of all files; default: by their extensions.",
        "Bütün dosyaların biçimi; varsayılan: uzantılarına göre.",
    ),
)
@option(
    "--recreate",
    is_flag=True,
    help=("Delete the collection first.", "Önce koleksiyonu sil."),
)
@option(
    "--reembed",
    is_flag=True,
    help=(
        "Fill a new collection with this model's vectors of the stored texts, and switch the alias to it; resumable.",
        "Saklanan metinlerin bu modelle vektörlerini yeni koleksiyona yaz, takma adı ona çevir; yarıda kalan sürer.",
    ),
)
@option(
    "--alias",
    help=(
        "With --reembed: the name that searches use from then on; default: the collection, if that is an alias.",
        "--reembed ile: aramaların bundan sonra kullanacağı ad; koleksiyon zaten takma adsa gerekmez.",
    ),
)
@option(
    "--drop-old",
    is_flag=True,
    help=("With --reembed: delete the old collection at the end.", "--reembed ile: sonunda eski koleksiyonu sil."),
)
@option(
    "--fail-fast",
    is_flag=True,
    help=("Stop at the first document that fails.", "Eklenemeyen ilk belgede dur."),
)
@json_option
def index(
    files: Sequence[str],
    batch_size: int,
    text_field: str,
    id_field: str | None,
    form: str | None,
    recreate: bool,
    reembed: bool,
    alias: str | None,
    drop_old: bool,
    fail_fast: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    if reembed:
        if files or recreate or settings["chunk"]:
            raise click.UsageError("--reembed reads the collection: it takes no files, no --recreate and no --chunk")
        _reembed(settings, alias, batch_size, text_field, drop_old, as_json)
        return
    if alias is not None or drop_old:
        raise click.UsageError("--alias and --drop-old belong to --reembed")
    source = _Documents(files or ["-"], form, text_field, id_field)
    with manager(cache_size=0) as models, _indexer(models, settings) as indexer:
        if recreate:
            indexer.create_collection(recreate=True)
        indexer.add_documents(source, batch_size, on_error="raise" if fail_fast else "report")
        _show(indexer.report, as_json)
        if not indexer.report.ok:
            raise click.exceptions.Exit(1)


def _reembed(
    settings: dict[str, Any], alias: str | None, batch_size: int, text_field: str, drop_old: bool, as_json: bool
) -> None:
    with manager(cache_size=0) as models, _indexer(models, settings, reads=True) as indexer:
        done = indexer.reembed(alias, text_field=text_field, batch_size=batch_size, drop_old=drop_old)
    if as_json:
        show_json(done.to_dict())
    else:
        click.echo(str(done))


def _show(report: IndexReport, as_json: bool) -> None:
    if as_json:
        show_json(report.to_dict())
        return
    click.echo(str(report))
    for failure in report.failures[:_SHOWN_FAILURES]:
        click.echo(f"  {failure}", err=True)
    if report.failed > _SHOWN_FAILURES:
        click.echo(f"  and {report.failed - _SHOWN_FAILURES:,} more; --json lists all", err=True)


class _Documents:
    """The documents of files, read as needed. An invalid line becomes an `InputError` in place of a document."""

    def __init__(self, files: Sequence[str], form: str | None, text_field: str, id_field: str | None) -> None:
        if id_field == text_field:
            raise click.UsageError(f"--id-field {id_field}: this field holds the text")
        for name in files:
            path = Path(name)
            if name != "-" and (path.is_dir() or not path.exists()):  # a pipe is no regular file
                raise click.UsageError(f"{name} is a folder" if path.is_dir() else f"there is no file {name}")
        with self._errors():
            self._files = [(name, form_of(name, form)) for name in files]
        self._given = form
        self._text_field = text_field
        self._id_field = "id" if id_field is None else id_field
        self._needs_ids = id_field is not None

    @staticmethod
    def _errors() -> AbstractContextManager[None]:
        return file_errors("--format", "--text-field")

    def __iter__(self) -> Iterator[Any]:
        documents, with_ids = 0, 0
        for name, form in self._files:
            with self._errors(), reading(name) as file:
                for number, row in rows(name, file, self._text_field, self._given, all_columns=True):
                    if form == "csv" and self._needs_ids and isinstance(row, dict) and self._id_field not in row:
                        wrong = no_column(name, self._id_field, list(row))
                        raise click.ClickException(f"{wrong}. --id-field names another field")
                    if form == "txt" and not row.strip():
                        continue
                    documents += 1
                    with_ids += isinstance(row, dict) and self._id_field in row
                    yield self._document({self._text_field: row} if form == "txt" else row, name, number)
        if self._needs_ids and documents and not with_ids:
            # A misspelt name would store every document once more, under other ids.
            click.echo(
                f"Warning: no document has the field {self._id_field!r} of --id-field; ids are files and lines",
                err=True,
            )

    def _document(self, row: Any, name: str, number: int) -> dict[str, Any] | InputError:
        if isinstance(row, InputError):
            return row
        if not isinstance(row, dict):
            return InputError(f"{name}:{number}: is not a JSON object")
        if name == "-":  # each standard input has such lines, and would replace those of the one before
            content = json.dumps(row, sort_keys=True, default=str).encode()
            place = f"-:{hashlib.sha256(content).hexdigest()[:16]}"
        else:
            place = f"{_unicode(name)}:{number}"
        text = row.pop(self._text_field, None)
        given = row.pop(self._id_field, None)
        return {"text": text, "id": place if given in (None, "") else given, "metadata": row}


def _unicode(name: str) -> str:
    """The name of a file, with escapes for bytes that are no UTF-8: an id is a text."""
    return os.fsencode(name).decode(errors="backslashreplace")


@click.command(
    cls=Command,
    help=say(
        "Find documents by meaning. The ones nearest to QUERY come first.",
        "Belgeleri anlamına göre bul. QUERY'ye en yakın olanlar başta gelir.",
    ),
)
@click.argument("query")
@_collection_options
@option(
    "-n",
    "--limit",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help=("Maximum number of hits.", "En çok bu kadar sonuç."),
)
@option(
    "-s",
    "--score-threshold",
    type=float,
    help=(
        "Minimum cosine similarity of what is found by meaning; default: 0.7, and none with --sparse.",
        "Anlamca bulunanların en küçük kosinüs benzerliği; varsayılan: 0.7, --sparse ile sınır yok.",
    ),
)
@option(
    "--mode",
    type=click.Choice(("dense", "sparse", "hybrid")),
    help=(
        "Search by meaning, by words, or both; default: all that the options give.",
        "Anlama, sözcüklere ya da ikisine göre ara; varsayılan: seçeneklerin verdiği hepsi.",
    ),
)
@option(
    "--rerank",
    shell_complete=complete_model,
    help=("A reranker that orders the best candidates.", "En iyi adayları sıralayacak yeniden sıralama modeli."),
)
@option(
    "-w",
    "--where",
    multiple=True,
    metavar="FIELD=VALUE",
    help=(
        "Only documents with this metadata; repeat a field to allow several values.",
        "Yalnız bu üstveriye sahip belgeler; birden çok değer için alanı yinele.",
    ),
)
@json_option
def search(
    query: str,
    limit: int,
    score_threshold: float | None,
    mode: Mode | None,
    where: Sequence[str],
    as_json: bool,
    **settings: Any,
) -> None:
    threshold: float | Literal["default"] = "default" if score_threshold is None else score_threshold
    filters = _filters(where)
    if not query.strip():
        raise click.ClickException("the query is empty")
    with manager() as models, _indexer(models, settings, reads=True) as indexer:
        hits = indexer.search(query, limit, mode=mode, score_threshold=threshold, filters=filters)
    if as_json:
        show_json([hit.to_dict() for hit in hits])
    elif hits:
        rows = ((f"{hit.score:.3f}", hit.id, _shortened(hit.text)) for hit in hits)
        show_table(f"{len(hits)} of {settings['collection']}", ("score", "id", "text"), rows)
    else:
        from ..integrations.qdrant.requests import DEFAULT_SCORE_THRESHOLD

        used = mode or ("dense" if settings["sparse"] is None else "hybrid")
        least = DEFAULT_SCORE_THRESHOLD if score_threshold is None and used == "dense" else score_threshold
        if least is None:
            click.echo("Nothing matches.", err=True)
        else:
            what = "matches --where and reaches" if where else "reaches"
            click.echo(f"Nothing {what} a score of {least:g}; --score-threshold lowers it.", err=True)


def _filters(where: Sequence[str]) -> dict[str, list[Any]]:
    """Filters from ``field=value``: ``lang=tr`` and ``year="2024"`` are texts. ``year=2024`` is the number and the
    text, since columns of CSV hold texts.
    """
    filters: dict[str, list[Any]] = {}
    for condition in where:
        field, equals, value = condition.partition("=")
        if not field or not equals:
            raise click.UsageError(f"--where {condition}: must look like field=value")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        if isinstance(parsed, float) and not math.isfinite(parsed):  # NaN, Infinity and 1e999 are no JSON
            parsed = value
        found = filters.setdefault(field, [])
        found.append(parsed)
        if isinstance(parsed, bool | int | float):
            found.append(value)
    return filters


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    limit = 160 if standard_output().isatty() else sys.maxsize
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
