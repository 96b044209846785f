"""``models --known`` and ``doctor MODEL``: what runs, and whether one model does, before it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .._core import _families
from .._embedder import without_key
from .._sizes import size_text
from ..errors import ModelManagerError
from .output import manager, quiet, show_json, show_table
from .texts import say

if TYPE_CHECKING:
    from .. import ModelManager

KINDS = ("embedding", "generator", "reranker", "sparse")
_TURKISH_KINDS = {
    "embedding": "vektör",
    "generator": "metin üretimi",
    "reranker": "yeniden sıralama",
    "classifier": "sınıflandırma",
    "sparse": "seyrek vektör",
}


_TURKISH_EXAMPLES = {
    "a GTE model that transformers has saved": "transformers'ın kaydettiği bir GTE modeli",
}
"""The examples that are no ids of models."""


def show_known(as_json: bool) -> None:
    """The families of models that run, each with an example."""
    families = _families()
    if as_json:
        show_json(families)
        return
    columns = say("model_type|for|GGUF|for example", "model_type|kullanım|GGUF|örnek").split("|")
    rows = (
        (
            family["model_type"],
            ", ".join(map(_kind, family["kinds"])),
            ", ".join(f"{name} ({', '.join(map(_kind, kinds))})" for name, kinds in family["gguf"].items()),
            say(family["example"], _TURKISH_EXAMPLES.get(family["example"], family["example"])),
        )
        for family in families
    )
    show_table(say("Families of models that run", "Çalışan model aileleri"), columns, rows)
    click.echo(
        say(
            "`model-manager doctor MODEL` says whether one of them runs.",
            "`model-manager doctor MODEL`, bir modelin çalışıp çalışmadığını söyler.",
        )
    )


def inspect(model: str, kind: str | None, as_json: bool, adapter: str | None = None) -> int:
    """Say whether a model runs; the exit code."""
    with manager(lazy_loading=True) as found, quiet():
        report = _report(found, model, kind, adapter)
    if as_json:
        show_json(report)
    elif report["runs"]:
        show_table(report["model"], ("", ""), _rows(report))
        click.echo(say("It runs.", "Çalışır."))
    else:
        # The reason is the core's, which is English: a sentence of its own.
        verdict = say("It does not run: ", "Bu model çalışmaz. Çekirdeğin bildirdiği neden (İngilizce): ")
        click.echo(f"{verdict}{report['reason']}", err=True)
    return 0 if report["runs"] else 1


def _report(found: ModelManager, model: str, kind: str | None, adapter: str | None) -> dict[str, Any]:
    """What is known of a source, or of the source of a slot."""
    slot = found.stats()["slots"].get(model)
    source = model if slot is None or slot["source"] is None else slot["source"]
    if slot is not None and kind is None and slot["kind"] in KINDS:
        kind = slot["kind"]
    if slot is not None and adapter is None:
        adapter = slot["adapter"]
    report: dict[str, Any] = {
        "model": without_key(source),
        "runs": False,
        "reason": None,
        "profile": found.config.profile,
    }
    try:
        report |= found._inspect(source, kind, adapter)
    except ModelManagerError as error:
        report["reason"] = str(error)
    else:
        report["runs"] = True
    return report


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    prompts = [f"{name}: {prompt!r}" for name, prompt in report["prompts"].items()]
    weights, memory, number = report["weight_bytes"], report["memory_bytes"], report["parameters"]
    dtype = report["dtype"] or say("as in the file", "dosyadaki gibi")
    where = say("on this machine", "bu makinede") if report["local"] else say("to be downloaded", "indirilecek")
    rows = [
        (say("family", "aile"), report["family"]),
        (say("used for", "kullanım"), _kind(report["kind"])),
        (say("methods", "yöntemler"), ", ".join(report["tasks"])),
        (say("width of states", "durum genişliği"), str(report["hidden"] or "?")),
        (say("tokens of a text", "metin başına belirteç"), str(report["max_length"] or say("any number", "sınırsız"))),
        (say("tokenizer", "belirteçleyici"), report["tokenizer"] or "?"),
        (say("stored as", "saklandığı biçim"), report["stored"] or "GGUF"),
        (say("in memory as", "bellekteki biçim"), dtype),
        (say("parameters", "parametre sayısı"), f"{number / 1e6:,.1f} M" if number else "?"),
        (say("weights", "ağırlıklar"), f"{size_text(weights)}, {where}" if weights else where),
        (say("memory, about", "bellek, yaklaşık"), size_text(memory) if memory else "?"),
        (say("prompts", "istemler"), ", ".join(prompts) or say("none", "yok")),
    ]
    if report["adapter"]:
        rows.insert(1, (say("adapter", "uyarlayıcı"), report["adapter"]))
    if report["default_prompt_name"]:
        rows.append((say("default prompt", "varsayılan istem"), report["default_prompt_name"]))
    return rows


def _kind(name: str) -> str:
    return say(name, _TURKISH_KINDS.get(name, name))
