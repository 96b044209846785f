"""``serve``: the OpenAI-compatible server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from .._extras import extra
from .texts import Command, option, say


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
    help=("Source of the embedding model: hub id, folder, …", "Vektör modelinin kaynağı: hub adı, klasör, …"),
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
def serve(model: str | None, **given: Any) -> None:
    with extra("server"):
        from ..server import ServerConfig
        from ..server.config import default_models
        from ..server.main import run
    settings = {name: value for name, value in given.items() if value is not None}
    if model is not None:
        settings["models"] = tuple(replace(served, source=model) for served in default_models())
    run(ServerConfig(**settings))
