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
def serve(model: str | None, **given: Any) -> int:
    with extra("server"):
        from ..server import ServerConfig
        from ..server.config import default_models
        from ..server.main import run
    settings = {name: value for name, value in given.items() if value is not None}
    try:
        if model is not None:
            (served,) = default_models()
            name = os.environ.get("OLLAMA_MODEL_NAME", "").strip() or name_of(model) or served.name
            settings["models"] = (replace(served, source=model, name=name, slot=name),)
        run(ServerConfig(**settings))
    except (ConfigError, InputError) as error:
        click.echo(f"Error: {error}", err=True)
        return _WRONG_USAGE
    return 0


def name_of(source: str) -> str | None:
    """What clients call the model of a source: its last part. None where that would say nothing."""
    last = re.split(r"[/\\]", without_key(source).rstrip("/\\"))[-1].removesuffix(".gguf")
    return None if last in ("", ".", "..", *BUILT_IN_SLOTS) else last
