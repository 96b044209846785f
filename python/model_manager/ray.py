"""Ray: embed a dataset with a pool of actors, and serve models with Ray Serve.

>>> import ray.data
>>> from model_manager.ray import embed, deployment
>>> embed(ray.data.read_parquet("texts"), "intfloat/multilingual-e5-small").write_parquet("vectors")
>>> serve.run(deployment({"small": "intfloat/multilingual-e5-small"}))

Needs ``pip install 'model-manager-rs[ray]'``, for `deployment` also ``ray[serve]`` and the extra ``server``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ._arguments import a_number, a_text, an_int, argument_error, type_error
from ._extras import extra
from .batch import BatchEmbedder

with extra("ray"):
    import ray.data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .batch import OnError


def embed(
    dataset: ray.data.Dataset,
    model: str | None = None,
    *,
    column: str = "text",
    output: str = "embedding",
    workers: int | tuple[int, int] = (1, 8),
    cpus: float = 2,
    batch_size: int = 4096,
    config: Mapping[str, Any] | None = None,
    dimensions: int | None = None,
    prompt_name: str | None = None,
    on_error: OnError = "raise",
) -> ray.data.Dataset:
    """The dataset with one more column: the vector of each text, as a fixed-size list of float32. Lazy, as all of Ray's
    transformations.

    Each worker is an actor that loads the model once. Ray starts more of them while there is work, and replaces those
    of a node that is lost.

    Args:
        dataset: A dataset with a column of texts.
        model: A source that every node can read (hub id, `pkg:…`, a folder of a shared disk); None for the preferred
            sentence model of the worker's settings.
        column: The column of texts.
        output: The name of the new column.
        workers: The number of actors, or the least and the most.
        cpus: CPUs of an actor. Its threads are as many.
        batch_size: Rows of a batch.
        config: Settings of the workers' managers, the keywords of `Config`.
        dimensions: Keep the first dimensions of the vectors.
        prompt_name: One of the model's prompts; None for its prompt for documents, if it has one.
        on_error: See `BatchEmbedder`.

    Raises:
        ArgumentError: `workers`, `cpus` or `batch_size` out of range.
        TypeError: An argument of another type.
        ConfigError: A wrong setting.
    """
    least, most = _pool(workers)
    cpus = _cpus(cpus)
    batch_size = an_int("batch_size", batch_size, 1)
    settings = {"threads": max(1, math.floor(cpus)), **(config or {})}
    function = BatchEmbedder(
        model,
        column=column,
        output=output,
        config=settings,
        dimensions=dimensions,
        prompt_name=prompt_name,
        on_error=on_error,
    )
    return dataset.map_batches(
        _Worker,
        fn_constructor_args=(function,),
        batch_size=batch_size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=cpus,
    )


def _pool(workers: Any) -> tuple[int, int]:
    """The least and the most actors."""
    try:
        least, most = workers if isinstance(workers, tuple | list) else (workers, workers)
        least, most = an_int("workers", least, 1), an_int("workers", most, 1)
    except (TypeError, ValueError):
        least, most = 1, 0
    if least > most:
        raise argument_error("workers", f"workers={workers!r} must be a number above 0, or the least and the most")
    return least, most


def _cpus(given: Any) -> float:
    cpus = a_number("cpus", given)
    if not 0 < cpus < math.inf:
        raise argument_error("cpus", f"cpus={given} must be above 0")
    return cpus


class _Worker:
    """The actor: Ray wants a class."""

    def __init__(self, function: BatchEmbedder) -> None:
        self._function = function

    def __call__(self, batch: Any) -> Any:
        return self._function(batch)


def deployment(
    models: Mapping[str, str],
    *,
    config: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
    cpus: float = 2,
    models_per_replica: int = 3,
    **options: Any,
) -> Any:
    """The HTTP server of `model_manager.server` as a Ray Serve application, for ``serve.run``.

    A request with the header ``serve_multiplexed_model_id`` goes to a replica that has this model in memory. A replica
    has at most `models_per_replica` such models; the least recently used one is unloaded. Requests without the header
    go to any replica, which loads what they need.

    Args:
        models: Public names and sources.
        config: Settings of a replica's manager, the keywords of `Config`.
        server: Settings of the server, the keywords of `ServerConfig`.
        cpus: CPUs of a replica. Its threads are as many.
        models_per_replica: The most models of a replica that requests ask for by the header.
        options: Further options of ``serve.deployment``: ``autoscaling_config={"min_replicas": 1, "max_replicas": 4}``.

    Raises:
        ArgumentError: No models, or a number out of range.
        TypeError: `models` is no mapping of names to sources, or another argument of a wrong type.
        ConfigError, TypeError: A wrong setting of the manager or the server: a replica would end at its start, again
            and again.
    """
    from ray import serve

    from ._core import Config
    from .server import ServerConfig

    if not isinstance(models, Mapping):
        raise type_error("models", "a mapping of public names to sources", models)
    if not models:
        raise argument_error("models", "models is empty; give at least one public name and its source")
    for name, source in models.items():
        a_text("a name of models", name)
        a_text(f"models[{name!r}]", source)
    models_per_replica = an_int("models_per_replica", models_per_replica, 1)
    cpus = _cpus(cpus)
    settings = {"threads": max(1, math.floor(cpus)), **(config or {})}
    Config(**settings)
    ServerConfig(**(server or {}))
    options.setdefault("name", "model_manager")
    options.setdefault("ray_actor_options", {"num_cpus": cpus})

    class Replica(_Replica):
        # Ray finds the method of the object by the function's own name.
        load = serve.multiplexed(max_num_models_per_replica=models_per_replica)(_Replica.load)

    made: Any = serve.deployment(serve.ingress()(Replica), **options)
    return made.bind(dict(models), settings, dict(server or {}))


class _Replica:
    """A server with its own manager, in an actor."""

    def __init__(self, models: Mapping[str, str], config: Mapping[str, Any], server: Mapping[str, Any]) -> None:
        from .compat import ModelManager
        from .server import ServedModel, ServerConfig, create_app

        self._slots = dict(models)
        self._manager = ModelManager(**config)
        for name, source in self._slots.items():
            self._manager.register(name, source, kind="embedding")
        served = tuple(ServedModel(name) for name in self._slots)
        # Ray's proxy stands before the replica and answers to any host name.
        settings = {"models": served, "allowed_hosts": ("*",), **server}
        self._app = create_app(ServerConfig(**settings), self._manager)

    def __serve_build_asgi_app__(self) -> Any:
        from ray import serve

        async def app(scope: Any, receive: Any, send: Any) -> None:
            wanted = serve.get_multiplexed_model_id() if scope["type"] == "http" else ""
            if wanted in self._slots:
                await self.load(wanted)
            await self._app(scope, receive, send)

        return app

    async def load(self, name: str) -> _Loaded:
        """Load a model for Ray's multiplexing, which drops what this returns to unload it."""
        import asyncio

        await asyncio.to_thread(self._manager.load, name)
        return _Loaded(self._manager, name)

    def __del__(self) -> None:
        if manager := getattr(self, "_manager", None):
            manager.close()


class _Loaded:
    """A model in memory as Ray sees it: dropped, it is unloaded."""

    def __init__(self, manager: Any, name: str) -> None:
        self._manager = manager
        self._name = name

    def __del__(self) -> None:
        if not self._manager.closed:
            self._manager.unload(self._name)


def application(args: Mapping[str, Any]) -> Any:
    """`deployment` for a configuration file of Ray Serve: ``import_path: model_manager.ray:application``, with its
    arguments as ``args``.
    """
    return deployment(**args)
