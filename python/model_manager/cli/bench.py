"""``bench``: the speed of a model on this machine, measured in a few seconds."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from typing import TYPE_CHECKING, Any

import click

from .. import ModelManager, isa, resident_bytes
from .._embedder import slot_for
from .._sizes import size_text
from .output import adapted, adapter_option, json_option, manager, model_option, show_json
from .texts import Command, option, say

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHORT = ("The weather is lovely today, shall we walk?", "Kargom ne zaman gelir, nasıl öğrenebilirim?")
_BATCH = 64


class _Seconds(click.FloatRange):
    """A number in a range that is neither NaN nor infinite, which compare in no useful way with a clock."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return found


@click.command(
    cls=Command,
    help=say(
        "Measure the speed of a model on this machine: one text at a time, then batches of short texts and of"
        " passages, without the cache.",
        "Bir modelin bu makinedeki hızını ölç: önce tek tek metinler, sonra kısa metin ve paragraf yığınları;"
        " önbellek kullanılmaz.",
    ),
)
@model_option
@adapter_option
@option(
    "--seconds",
    type=_Seconds(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help=("Seconds for each of the three measurements.", "Üç ölçümün her biri için saniye."),
)
@json_option
def bench(model: str | None, adapter: str | None, seconds: float, as_json: bool) -> None:
    with manager(cache_size=0) as models:
        slot = slot_for(models, adapted(models, model, adapter))
        started = time.perf_counter()
        models.load(slot)
        loaded = time.perf_counter() - started
        about = models.describe(slot)
        latencies = _latencies(models, slot, seconds)
        found: dict[str, Any] = {
            "model": about["source"],
            "dtype": about["dtype"],
            "isa": isa(),
            "threads": models.stats()["threads"],
            "load_seconds": round(loaded, 3),
            "one_text_p50_ms": round(statistics.median(latencies) * 1e3, 3),
            "one_text_p95_ms": round(sorted(latencies)[int(len(latencies) * 0.95)] * 1e3, 3),
        }
        for name, sentences in (("short", 1), ("passage", 6)):
            texts, tokens, took = _throughput(models, slot, sentences, seconds)
            found[f"{name}_texts_per_second"] = round(texts / took, 1)
            found[f"{name}_tokens_per_second"] = round(tokens / took)
        found["resident_bytes"] = resident_bytes()
    if as_json:
        show_json(found)
        return
    served = "://" in about["path"]
    computed = "by its server" if served else f"{found['dtype']}, {found['isa']}, {found['threads']} threads"
    click.echo(
        f"{found['model']}, {computed}\n"
        f"  loaded in     {found['load_seconds']:.2f} s, process {size_text(found['resident_bytes'])}\n"
        f"  one text      {found['one_text_p50_ms']:.2f} ms median, {found['one_text_p95_ms']:.2f} ms p95\n"
        f"  short texts   {found['short_texts_per_second']:,.0f}/s, {found['short_tokens_per_second']:,} tokens/s\n"
        f"  passages      {found['passage_texts_per_second']:,.0f}/s, {found['passage_tokens_per_second']:,} tokens/s"
    )


def _texts(sentences: int) -> Iterator[str]:
    """Texts without repetition: equal texts that wait at the same time are computed once."""
    for number in itertools.count():
        yield " ".join(f"{_SHORT[(number + part) % 2]} {number}" for part in range(sentences))


def _latencies(models: ModelManager, slot: str, seconds: float) -> list[float]:
    latencies: list[float] = []
    texts = _texts(1)
    models.embed(next(texts), slot)
    end = time.perf_counter() + seconds
    while not latencies or time.perf_counter() < end:
        started = time.perf_counter()
        models.embed(next(texts), slot)
        latencies.append(time.perf_counter() - started)
    return latencies


def _throughput(models: ModelManager, slot: str, sentences: int, seconds: float) -> tuple[int, int, float]:
    """The texts, their tokens as the model or its server counts them, and the seconds for them."""
    source = _texts(sentences)
    before = models.stats()["queue"]["tokens"]
    done = 0
    took = 0.0
    while took < seconds:
        texts = list(itertools.islice(source, _BATCH))
        started = time.perf_counter()
        models.embed(texts, slot)
        took += time.perf_counter() - started
        done += len(texts)
    return done, models.stats()["queue"]["tokens"] - before, took
