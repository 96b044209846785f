"""``serve``: the OpenAI-compatible server."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

import click

from .._embedder import without_key
from .._extras import extra
from ..errors import ConfigError, InputError
from ..manager import BUILT_IN_SLOTS
from .output import complete_source
from .texts import Command, option, say

_WRONG_USAGE = 2


@click.command(
    cls=Command,
    help=say(
        "Serve models over HTTP with the API of OpenAI, for embeddings and text generation, until Ctrl-C or SIGTERM.",
        "Modelleri HTTP üzerinden sun. OpenAI'nin API'sindeki gibi vektör ve metin üretimi; Ctrl-C ya da SIGTERM'e"
        " kadar.",
    ),
)
@option(
    "-m",
    "--model",
    shell_complete=complete_source,
    help=(
        "Source of the embedding model: hub id, folder, … Served under its last part, or OLLAMA_MODEL_NAME.",
        "Vektör modelinin kaynağı: hub adı, klasör, … Son parçasının ya da OLLAMA_MODEL_NAME'in adıyla sunulur.",
    ),
)
@option(
    "--adapter",
    help=(
        "A LoRA adapter over --model: folder, hub id, or one of the model's own. Served as MODEL+ADAPTER.",
        "--model üzerine bir LoRA uyarlayıcısı: klasör, hub adı ya da modelin kendininki. Adı MODEL+UYARLAYICI olur.",
    ),
)
@option("--host", help=("Address to listen at; default: API_HOST.", "Dinlenecek adres; varsayılan: API_HOST."))
@option(
    "--port",
    type=click.IntRange(0, 65535),
    help=("Port; 0: a free one; default: API_PORT.", "Kapı (port); 0: boş olan biri; varsayılan: API_PORT."),
)
@option(
    "--workers",
    type=click.IntRange(min=1),
    help=("Worker processes, each with its own models.", "Süreç sayısı; her birinin modelleri ayrıdır."),
)
def serve(model: str | None, adapter: str | None, **given: Any) -> int:
    if adapter is not None and model is None:
        raise click.UsageError("--adapter changes a model: name it with --model")
    with extra("server"):
        from ..server import ServerConfig
        from ..server.config import default_models
        from ..server.main import run
    settings = {name: value for name, value in given.items() if value is not None}
    try:
        if model is not None:
            (served,) = default_models()
            name = os.environ.get("OLLAMA_MODEL_NAME", "").strip() or name_of(model, adapter) or served.name
            settings["models"] = (replace(served, source=model, adapter=adapter, name=name, slot=name),)
        run(ServerConfig(**settings))
    except (ConfigError, InputError) as error:
        click.echo(f"Error: {error}", err=True)
        return _WRONG_USAGE
    return 0


def name_of(source: str, adapter: str | None = None) -> str | None:
    """What clients call the model of a source: its last part, and that of its adapter. None where that would say
    nothing.
    """
    parts = [source] if adapter is None else [source, adapter]
    last = [re.split(r"[/\\]", without_key(part).rstrip("/\\"))[-1].removesuffix(".gguf") for part in parts]
    return None if {*last} & {"", ".", "..", *BUILT_IN_SLOTS} else "+".join(last)
