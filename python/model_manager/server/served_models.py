"""The models of a server: their names, what is known of them, and their loads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .._bridge import in_thread
from .._embedder import without_key
from ..errors import InputError, ModelManagerError, WaitTimeoutError
from .config import DEFAULT_DIMENSIONS, DEFAULT_SOURCE, ServedModel, ServerConfig, default_models
from .errors import unknown_model
from .uses import is_source, other_use

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._types import Description, GeneratorDescription, SlotStatistics
    from ..compat import ModelManager

_INSTRUCTED = "qwen3-embedding"
"""A part of the source of models that take instructions. It decides without a load, and for models of other servers."""

Kind = Literal["embedding", "generator"]
Result = TypeVar("Result")


def _first_word(name: str) -> str:
    """The short name of a model: `qwen3` for `qwen3-embedding`."""
    return re.split(r"[-_.:\s]", name.rsplit("/", 1)[-1], maxsplit=1)[0]


def _is_instructed(source: str | None, description: Description | None) -> bool | None:
    """Whether a model takes instructions; None if its source does not say so and it is not described yet."""
    if _INSTRUCTED in (source or "").lower():
        return True
    if description is None:
        return None
    return any(prompt.startswith("Instruct:") for prompt in description["prompts"].values())


class ServedModels:
    """The served models: those of the settings and the other slots of the manager.

    Attributes:
        manager: The manager whose models are served.
        config: The settings.
    """

    def __init__(self, config: ServerConfig, manager: ModelManager) -> None:
        self.config = config
        self.manager = manager
        self._loads: dict[str, asyncio.Future[Any]] = {}
        self._descriptions: dict[str, tuple[int, Description]] = {}
        self._generators: dict[str, tuple[int, GeneratorDescription]] = {}
        self._by_name = {name: model for model in config.models for name in (model.name, *model.aliases)}
        for model in config.models:
            # With an adapter, a model gives other results than its source.
            if model.source is not None and model.adapter is None:
                self._by_name.setdefault(model.source, model)
        words = [_first_word(model.name) for model in config.models]
        self._by_word = {
            word: model for word, model in zip(words, config.models, strict=True) if words.count(word) == 1
        }
        self._register()

    def _register(self) -> None:
        for model in self.config.models:
            if model.key in self.manager.slots():
                self._check_source(model)
                continue
            if model.source is None:
                raise InputError(
                    f"the served model {model.name!r} has no source and the manager has no slot {model.key!r}; "
                    "register the slot or give ServedModel a source"
                )
            self.manager.register(model.key, model.source, kind="embedding", adapter=model.adapter)

    def is_missing(self, model: ServedModel) -> bool:
        """Whether its source is written as a folder or a file, and there is none."""
        source = self.source(model.key) or ""
        is_path = source.startswith(("/", "./", "../", "~")) or source.endswith(".gguf")
        return is_path and not os.path.lexists(os.path.expanduser(source))  # noqa: PTH111  without a home it stays as it is

    def _check_source(self, model: ServedModel) -> None:
        """Refuse a model whose slot holds another one, which would answer in its name."""
        if model.source is None or self.holds(model.key, model.source, model.adapter):
            return
        if model.source == DEFAULT_SOURCE and model in default_models():
            return  # the default source: it is for a manager without such a slot
        there = self.source(model.key)
        held = "an object of its own" if there is None else repr(there)
        state = self.state(model.key)
        if state is not None and state["adapter"] is not None:
            held += f" with the adapter {state['adapter']!r}"
        # The one of the environment has the name of its slot.
        remedy = (
            "choose another OLLAMA_MODEL_NAME"
            if model.name == model.key == os.environ.get("OLLAMA_MODEL_NAME", "").strip()
            else "give ServedModel another slot, or leave its source out to serve that one"
        )
        wanted = repr(without_key(model.source))
        if model.adapter is not None:
            wanted += f" with the adapter {model.adapter!r}"
        raise InputError(
            f"the served model {model.name!r} has the source {wanted}, and the manager's slot"
            f" {model.key!r} holds {held}; {remedy}"
        )

    @property
    def default(self) -> ServedModel:
        """The model of requests that name none."""
        return self.config.models[0]

    def served(self, name: str | None) -> ServedModel:
        """The embedding model with this public name, alias, source, slot or first word. Raises `ApiError` 404."""
        if not name:
            return self.default
        found = self._listed(name) or self._listed(name.removesuffix(":latest"))
        return found or self._unlisted(name)

    def _listed(self, name: str) -> ServedModel | None:
        """The model of the settings with this name, alias or source."""
        found = self._by_name.get(name)
        by_source = found is not None and name not in (found.name, *found.aliases)
        # The slot may hold another model by now.
        return None if found is not None and by_source and not self.holds(found.key, name) else found

    def _unlisted(self, name: str) -> ServedModel:
        """The model of the slot with this name or source, else the only served model with this first word."""
        plain = name.removesuffix(":latest")
        writers = self.generators()
        for slot, state in self.slots("embedding").items():
            if slot not in writers and (name == slot or plain == slot or is_source(name, state)):
                # The settings of a slot's model hold under all its names: its vectors are the same under each.
                return next((model for model in self.config.models if model.key == slot), ServedModel(slot))
        by_word = self._by_word.get(plain)
        if by_word is not None:
            return by_word
        other = other_use(name, self.manager.stats()["slots"], "embedding", "embeddings")
        raise other or unknown_model(name, [model.name for model in self.models()])

    def source(self, slot: str) -> str | None:
        """The source of a slot as it was registered, without its key; None for one with a loader of its own, and for a
        name that is no slot. A model of its fallback chain may have answered.
        """
        registered = self.manager._registered.get(slot)
        if registered is not None:
            return None if registered[0] is None else without_key(os.fspath(registered[0]))
        state = self.state(slot)
        return None if state is None else state["source"]

    def state(self, slot: str) -> SlotStatistics | None:
        """What `stats` says of a slot; None for one that the embedding program has removed."""
        return self.manager.stats()["slots"].get(slot)

    def holds(self, slot: str, source: str, adapter: str | None = None) -> bool:
        """Whether the slot exists and has this source and this adapter: with another one it gives other results."""
        state = self.state(slot)
        return state is not None and state["adapter"] == adapter and self.source(slot) == without_key(source)

    def slots(self, kind: Kind) -> dict[str, SlotStatistics]:
        """The manager's slots of one kind, with their state."""
        return {name: state for name, state in self.manager.stats()["slots"].items() if state["kind"] == kind}

    def generators(self) -> dict[str, SlotStatistics]:
        """The slots of the settings that write text, with their state; also those whose kind their load will show."""
        slots = self.manager.stats()["slots"]
        named = {name: slots[name] for name in self.config.generators if name in slots}
        return {name: state for name, state in named.items() if state["kind"] == "generator" or not state["kind_known"]}

    def models(self) -> list[ServedModel]:
        """All embedding models: those of the settings, then the manager's other slots."""
        slots = self.manager.stats()["slots"]
        keys = {model.key for model in self.config.models}
        writers = self.generators()
        others = [slot for slot in self.slots("embedding") if slot not in keys and slot not in writers]
        return [*(model for model in self.config.models if model.key in slots), *map(ServedModel, others)]

    def description(self, slot: str) -> Description | None:
        """The description of the slot's model, also after it has left; None before its first load."""
        return self._described(slot, self.manager.describe, self._descriptions)

    def _described(
        self, slot: str, describe: Callable[[str, bool], Result | None], known: dict[str, tuple[int, Result]]
    ) -> Result | None:
        """What `describe` finds of the slot's model in memory, or found of it before, which is in `known`."""
        registration = None
        with contextlib.suppress(ModelManagerError):
            registration = self.manager._registration(slot)
            if (found := describe(slot, False)) is not None:
                known[slot] = registration, found
        of, latest = known.get(slot, (None, None))
        # A slot that was registered again holds another model.
        return latest if of == registration else None

    async def describe_generator(self, slot: str) -> GeneratorDescription:
        """What the slot's generator is; loads it, and counts as a use without a `keep_alive`."""
        registration = self.manager._registration(slot)
        found = await in_thread(self.manager.describe_generator, slot)
        self._generators[slot] = registration, found
        return found

    def generator_description(self, slot: str) -> GeneratorDescription | None:
        """The description of the slot's generator, also after it has left; None before its first load."""
        return self._described(slot, self.manager.describe_generator, self._generators)

    def dimensions(self, model: ServedModel) -> int | None:
        """The length of the model's vectors when a request gives none; None while it is unknown. Loads nothing."""
        if model.dimensions is not None:
            return model.dimensions
        if (description := self.description(model.key)) is not None:
            return description["dimension"]
        # Clients of the default model expect a number before its first load. The slot may hold another model.
        state = self.state(model.key)
        return DEFAULT_DIMENSIONS if state is not None and state["source"] == DEFAULT_SOURCE else None

    async def takes_instructions(self, model: ServedModel) -> bool:
        """Whether texts for `model` get an instruction. With ``auto`` the first use may load the model to find out."""
        known = self.instructions_known(model)
        if known is None:
            await self.load(model.key)
            known = self.instructions_known(model)
        if known is None:
            # The model has left already (keep_alive 0), or it is no embedding model.
            registration = self.manager._registration(model.key)
            try:
                found = await in_thread(self.manager.describe, model.key)
            except InputError:
                return False  # the core reports what it is for the first text
            self._descriptions[model.key] = registration, found
            known = _is_instructed(found["source"], found)
        return bool(known)

    def instructions_known(self, model: ServedModel) -> bool | None:
        """`takes_instructions` without a load; None while it is unknown."""
        if model.instructions != "auto":
            return model.instructions == "on"
        registered = model.key in self.manager._registered
        # First what costs least, because every request asks.
        if registered and _INSTRUCTED in (self.source(model.key) or "").lower():
            return True
        description = self.description(model.key)
        # `source` asks for all statistics of a slot that was not registered.
        source = description["source"] if description is not None else self.source(model.key)
        return _is_instructed(source, description)

    async def load(self, slot: str) -> None:
        """Load a slot and wait for it, at most `request_timeout` seconds. Concurrent callers share one load."""
        clock = asyncio.get_running_loop().time
        end = clock() + self.config.request_timeout
        while True:
            joined = self._loads.get(slot)
            load = self._begin_load(slot) if joined is None else joined
            # This cancels nothing: others may wait for the same load.
            if not (await asyncio.wait({load}, timeout=max(0.0, end - clock())))[0]:
                raise WaitTimeoutError(
                    f"{slot!r} was not loaded within {self.config.request_timeout:g} s; the load goes on"
                )
            try:
                load.result()
            except WaitTimeoutError:
                # The time of the request that began the load; this one came later.
                if joined is not None and clock() < end:
                    continue
                raise
            break
        if slot in self.config.generators:
            # For lists of models, which may ask when it has left already.
            self.generator_description(slot)

    def _begin_load(self, slot: str) -> asyncio.Future[Any]:
        load: asyncio.Future[Any] = in_thread(self.manager.load, slot, self.config.request_timeout)
        self._loads[slot] = load
        load.add_done_callback(lambda _: self._loads.pop(slot, None))
        return load

    def load_seconds(self, slot: str) -> float:
        """How long the latest load of a slot took; 0 before its first load."""
        return self.manager.stats()["tracker"]["load_times"].get(slot, 0.0)

    def load_count(self, slot: str) -> int:
        """How often a slot was loaded."""
        return self.manager.stats()["tracker"]["load_counts"].get(slot, 0)
