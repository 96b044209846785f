"""The core's manager with asyncio, plain-text answers, pickling, and an orderly end of the process."""

from __future__ import annotations

import atexit
import functools
import os
import weakref
from collections.abc import Mapping

from . import _core
from ._arguments import check_plain, type_error
from ._async import AsyncTextStream, acomplete
from ._core import Manager
from ._environment import check_needed
from ._vectors import VectorsManager, aembed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Literal

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self, Unpack

    from ._async import Prompt
    from ._core import Config
    from ._preload import PreloadTicket
    from ._types import Explanation, GenerationParams, Inputs, Settings
    from .chunks import TextChunk

BUILT_IN_SLOTS = ("turkish_sentence", "english_sentence", "text_generator", "reranker")
"""The slots that every manager has: the last one from its first use on."""


def _settled(source: Any) -> Any:
    try:
        return _core._settled_source(source) if isinstance(source, str) else source
    except UnicodeEncodeError:
        # `register` says what is wrong with it.
        return source


class BaseManager(VectorsManager):
    """`Manager` plus everything that needs Python: `ModelManager` without the chatbot's names."""

    _registered: dict[str, tuple[str | None, dict[str, Any]]]
    """The arguments of every `register`, by slot, for pickling."""

    def __new__(cls, config: Config | None = None, **overrides: Unpack[Settings]) -> Self:
        """A manager with these settings, see `Manager`."""
        self = super().__new__(cls, config, **overrides)
        self._registered = {}
        _open_managers.add(self)
        # The process-wide manager is made while the package is imported. It reads its settings at its first use.
        # So does one of a derived class without arguments.
        if config is not None or overrides:
            check_needed(self.config, overrides)
        if not self._is_process_wide():
            self._preload_from_environment()
        return self

    def _is_process_wide(self) -> bool:
        return False

    def _preload_from_environment(self) -> None:
        """Start the preload that `MODEL_MANAGER_PRELOAD` asks for, once."""
        if file := os.environ.get("MODEL_MANAGER_PRELOAD"):
            from ._preload import start_from_environment

            start_from_environment(self, file)

    if not TYPE_CHECKING:  # type checkers see the signatures of Manager

        @functools.wraps(Manager.register)
        def register(self, name, source=None, **options):  # noqa: D102
            if options.setdefault("replace", False) is False:
                options["replace"] = name in BUILT_IN_SLOTS
            # The same folder after a change of the working directory, and in another process.
            source = _settled(source)
            if "adapter" in options:
                options["adapter"] = _settled(options["adapter"])
            if callable(options.get("loader")):
                check_plain(options["loader"], "the model")
            # Copies: what the caller changes later must not come out of a pickle.
            for key, kind in (("prompts", Mapping), ("cache", dict)):
                if isinstance(options.get(key), kind):
                    options[key] = _copied(options[key])
            if "fallback" in options:
                options["fallback"] = _copied(options["fallback"])
            super().register(name, source, **options)
            self._registered[name] = (source, {**options, "replace": True})

        @functools.wraps(Manager.unregister)
        def unregister(self, name):  # noqa: D102
            super().unregister(name)
            self._registered.pop(name, None)

    async def aembed(self, texts: Inputs, model: str | None = None, **options: Any) -> NDArray[np.float32]:
        """`embed` for asyncio: same arguments (except `progress`), result and errors. Cancelling the task cancels the
        work.
        """
        vectors: NDArray[np.float32] = await aembed(self, texts, model, **options)
        return vectors

    def chunk(
        self,
        text: str,
        model: str | None = None,
        *,
        max_tokens: int | None = None,
        overlap: int = 0,
        prompt: str | None = None,
        prompt_name: str | None = None,
        timeout: float | None = None,
    ) -> list[TextChunk]:
        """Split a text into chunks that the model reads whole, in the order of the text. Loads the model.

        Chunks end at the ends of paragraphs where that fits, else of lines, sentences, words or characters. Tokens are
        counted by the model's own tokenizer. White space around a chunk is left out; a blank text has no chunks.

        Args:
            text: The text, of any length up to `max_text_bytes`.
            model: Slot; None: the one of the text's language.
            max_tokens: The most tokens of a chunk, with the prompt and the special tokens; None: as many as the model
                reads.
            overlap: The most tokens at the end of a chunk that the next one begins with.
            prompt: The prompt that the chunks will be embedded with.
            prompt_name: The same by name; without both the model's default prompt.
            timeout: Seconds for the load.

        Raises:
            ArgumentError: A `max_tokens` that is more than the model reads, or leaves no place for text; an `overlap`
                that is not smaller than a chunk.
            InputError: A model of a server, whose tokenizer is not here.
        """
        from .chunks import TextChunk

        found = self._chunk(
            text,
            model,
            max_tokens=max_tokens,
            overlap=overlap,
            prompt=prompt,
            prompt_name=prompt_name,
            timeout=timeout,
        )
        return [TextChunk(*chunk) for chunk in found]

    def embed_chunks(
        self,
        text: str,
        model: str | None = None,
        *,
        max_tokens: int | None = None,
        overlap: int = 0,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool = True,
        timeout: float | None = None,
    ) -> tuple[list[TextChunk], NDArray[np.float32]]:
        """Late chunking: the chunks of a text, and a vector for each that knows the text around it.

        The model reads the whole text once, and a chunk's vector is pooled from the states of its own tokens, without
        prompt and special tokens. A text that is longer than the model reads is read in windows, of which neighbors
        share a quarter of their tokens; a token's state is taken from the window in which it stands farther from the
        edge.

        Args:
            text: The text, of any length up to `max_text_bytes`.
            model: Slot of a model that pools several states (mean, max and the like); None: the one of the text's
                language.
            max_tokens: As for `chunk`.
            overlap: As for `chunk`.
            prompt: Text that is put in front of the whole text, and of each window.
            prompt_name: The same by name; without both the model's default prompt.
            normalize: Scale vectors to length 1.
            timeout: Seconds for everything, loading included.

        Returns:
            The chunks as `chunk` gives them, and float32 of shape (chunks, dim).

        Raises:
            UnsupportedModelError: A model whose vector is the state of one token (cls, lasttoken).
            ModelManagerError: As for `chunk` and `embed`.
        """
        from .chunks import TextChunk

        found, vectors = self._embed_chunks(
            text,
            model,
            max_tokens=max_tokens,
            overlap=overlap,
            prompt=prompt,
            prompt_name=prompt_name,
            normalize=normalize,
            timeout=timeout,
        )
        return [TextChunk(*chunk) for chunk in found], vectors

    def generate(self, prompt: Prompt, model: str | None = None, **params: Unpack[GenerationParams]) -> str:
        """The answer to `prompt` as text: `complete` without the figures. A text is continued, messages are answered.

        Without a length the answer has `Config.max_tokens` at most, without a temperature `Config.temperature` is used.
        `do_sample=False` or `temperature=0` takes the likeliest token at every step. See `complete` for all parameters
        and errors.
        """
        return self.complete(prompt, model, **params)["text"]

    def chat(
        self, messages: Iterable[Mapping[str, Any]], model: str | None = None, **params: Unpack[GenerationParams]
    ) -> str:
        """The assistant's next turn, through the model's chat template; parameters and errors as for `complete`.

        `messages` have a ``role`` (system, developer, user, assistant, tool) and a ``content``: a str, or a list of
        parts ``{"type": "text", "text": ...}``, which are joined by line breaks. A call that only appends to an earlier
        conversation reuses what was computed for its turns.
        """
        return self.complete(conversation(messages), model, **params)["text"]

    async def agenerate(self, prompt: Prompt, model: str | None = None, **params: Unpack[GenerationParams]) -> str:
        """`generate` for asyncio. Cancelling the task ends the answer within one token. Concurrent calls are decoded
        together.
        """
        return (await acomplete(self, prompt, model, **params))["text"]

    async def achat(
        self, messages: Iterable[Mapping[str, Any]], model: str | None = None, **params: Unpack[GenerationParams]
    ) -> str:
        """`chat` for asyncio, see `agenerate`."""
        return (await acomplete(self, conversation(messages), model, **params))["text"]

    def astream(self, prompt: Prompt, model: str | None = None, **params: Unpack[GenerationParams]) -> AsyncTextStream:
        """`stream` for asyncio: ``async for piece in manager.astream(...)``, inside a running event loop.

        Wrong arguments raise here; errors of loading the model are raised with the first piece. `aclose`, or cancelling
        the task that waits for a piece, ends the answer within one token.
        """
        return AsyncTextStream(self, prompt, model, dict(params))

    def explain(self, name: str) -> Explanation:
        """What decides how long the slot stays in memory: numbers, and one sentence. Raises `UnknownModelError`."""
        from typing import cast

        return cast("Explanation", _Explained(super().explain(name)))

    def preload(
        self,
        texts: Iterable[str] | str | os.PathLike[str],
        model: str | None = None,
        *,
        when: Literal["idle", "now", "first_load"] = "idle",
        pin: bool = False,
    ) -> PreloadTicket:
        """Have the vectors of known texts in the cache before somebody asks for them.

        Args:
            texts: Texts, or the name of a file with one text a line, or of a ``.jsonl`` with texts or ``"text"``,
                or of a ``.csv`` with a column ``text``.
            model: A slot; None: by the language of each text.
            when: ``"idle"``: once the model is in memory for another reason, 32 at a time after half a second
                without other calls. ``"first_load"``: once it is in memory, whatever else is computed. ``"now"``: at
                once, loading the model.
            pin: Whether the vectors stay in memory when the cache is full, until it is cleared. They count in
                its bounds.

        Returns:
            A ticket with `done`, `total`, `wait` and `cancel`. `cache_size` must be as large as the texts are many;
            with `cache_disk` or `cache_url` they are read from there after a restart, without a model.

        Raises:
            InputError: A line of the file that is no text; it is named.
            ArgumentError: `pin` with more texts than `cache_size`; without `pin` that is a warning, unless a tier keeps
                them.
            ClosedError: The manager is closed.
        """
        from ._preload import start as start_preload

        return start_preload(self, texts, model, when, pin)

    # A manager is a shared resource: what is copied goes on with the same one. Only a pickle makes another.
    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        _check_constructor(type(self))
        return (restore, (type(self), self.config, self._registered, self._changes()))

    def _changes(self) -> dict[str, Any]:
        """What was set after the manager was made: attributes, and the arguments of `set_auto_cleanup`."""
        config = self.config
        made_with = (config.auto_cleanup, config.cleanup_interval, config.max_idle_time)
        return {} if self.auto_cleanup == made_with else {"auto_cleanup": self.auto_cleanup}

    def _repr_html_(self) -> str:
        from .integrations.jupyter import manager_html

        return manager_html(self)


class _Explained(dict[str, object]):
    """What `explain` returns: a dict that notebooks show as a table."""

    def _repr_html_(self) -> str:
        from ._html import explanation_html

        return explanation_html(self)


def conversation(messages: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages as the core takes them. Raises `TypeError` for text and one message, which are iterable but are no
    conversation, and for other items. The core checks roles and contents.
    """
    if isinstance(messages, str | bytes):
        remedy = "; generate() continues a text"
        raise type_error("messages", 'a list of {"role": ..., "content": ...}', messages, remedy)
    if isinstance(messages, Mapping) or not hasattr(messages, "__iter__"):
        raise type_error("messages", 'a list of {"role": ..., "content": ...}', messages)
    found = list(messages)
    for number, message in enumerate(found):
        if not hasattr(message, "keys"):
            raise type_error(f"messages[{number}]", '{"role": ..., "content": ...}', message)
    return found


def _copied(given: Any) -> Any:
    """A copy of a mapping or an iterable, also of one that can be read once. Others are returned as they are."""
    if isinstance(given, Mapping):
        return {key: _copied(value) for key, value in given.items()}
    if isinstance(given, str | bytes) or not hasattr(given, "__iter__"):
        return given
    return list(given)


def _check_constructor(cls: type[BaseManager]) -> None:
    """Refuse to pickle a manager of a class that `restore` cannot make: it calls ``cls(config)``."""
    from inspect import Parameter, signature

    named = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    unpacking = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    for method in ("__new__", "__init__"):
        own = next((base for base in cls.__mro__ if method in vars(base)), object)
        if own is object or own.__module__.partition(".")[0] == __package__:
            continue
        _, *taken = signature(getattr(own, method)).parameters.values()
        first, rest = taken[:1], taken[1:]
        takes_config = any(
            one.kind is Parameter.VAR_POSITIONAL or (one.kind in named and one.name == "config") for one in first
        )
        needs_more = any(one.default is Parameter.empty and one.kind not in unpacking for one in rest)
        if not takes_config or needs_more:
            raise TypeError(
                f"cannot pickle a {cls.__qualname__}: it is made again as {cls.__qualname__}(config), and its {method}"
                f" takes other arguments; give the class a __reduce__, or let {method} take config alone"
            )


def restore(
    cls: type[BaseManager],
    config: Config,
    registered: dict[str, tuple[str | None, dict[str, Any]]],
    changes: Mapping[str, Any] | None = None,
) -> BaseManager:
    """Unpickle an independent manager: same settings, same registrations, nothing loaded."""
    manager = cls(config)
    for name, (source, options) in registered.items():
        manager.register(name, source, **options)
    for name, value in (changes or {}).items():
        if name == "auto_cleanup":
            manager.set_auto_cleanup(*value)
        else:
            setattr(manager, name, value)
    return manager


_open_managers: weakref.WeakSet[BaseManager] = weakref.WeakSet()


def _close_all() -> None:
    _core._at_exit()
    for manager in list(_open_managers):
        Manager.close(manager)


# Worker threads must not call into an interpreter that is being torn down.
atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_core._before_fork,
        after_in_parent=_core._after_fork_parent,
        after_in_child=_core._after_fork_child,
    )
