"""Known texts: embedded while nothing else is computed, so that their first users find them in the cache."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import _text_files
from ._arguments import a_flag, a_number, a_text, an_iterable, argument_error, one_of
from .errors import ClosedError, InputError, MissingFileError, ModelManagerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._core import Manager

logger = logging.getLogger(__name__)

CHUNK = 32
"""Texts embedded together. Calls of other users wait for one such chunk at most."""
LONE_SURROGATE = (
    "holds a lone surrogate, which no UTF-8 text can; clean it with text.encode('utf-8', 'replace').decode()"
)
"""What is wrong with a text that cannot be encoded, in the core's words."""
_SHOWN = 80
"""Characters of a file's name in an error."""
_PAUSE = 0.05
"""Seconds between two looks whether the manager is idle."""
_QUIET = 0.5
"""Seconds without a call of others after which it is idle: between two calls of a busy application it is not."""


_own: weakref.WeakKeyDictionary[Manager, int] = weakref.WeakKeyDictionary()
"""Calls that this module has made: those of a second list are none of others."""
_lock = threading.Lock()


class PreloadTicket:
    """Known texts on their way into the cache."""

    def __init__(self, total: int) -> None:
        self.total = total
        """Texts."""
        self.done = 0
        """Texts that are in the cache, or were found there."""
        self.error: Exception | None = None
        """Why it ended early."""
        self._ended = threading.Event()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Leave the other texts out."""
        self._cancelled.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; False when `timeout` seconds pass first. Raises what ended it early.

        Raises:
            ArgumentError: A `timeout` that is negative or no number.
        """
        seconds = None if timeout is None else a_number("timeout", timeout)
        if seconds is not None and not seconds >= 0:
            raise argument_error("timeout", f"timeout={timeout}: must be a number of seconds, not negative")
        # A longer wait than a lock can have is one without a limit.
        if not self._ended.wait(None if seconds is None or seconds > threading.TIMEOUT_MAX else seconds):
            return False
        if self.error is not None:
            raise self.error
        return True

    @property
    def ended(self) -> bool:
        """Whether all texts are done, or it was cancelled, or it failed."""
        return self._ended.is_set()

    def __repr__(self) -> str:
        return f"<PreloadTicket {self.done}/{self.total}{' ended' if self.ended else ''}>"


def read_texts(path: str | os.PathLike[str]) -> list[str]:
    """The texts of a file that are not blank; of ``.jsonl``, ``.ndjson`` and ``.csv`` those under ``"text"``.

    Raises:
        InputError: A line holds no text, or the file is another table, whose lines are rows.
    """
    name = os.fspath(path)
    try:
        with Path(name).open("rb") as file:
            return [line.text for line in _text_files.texts(name, file, "text") if line.text.strip()]
    except _text_files.FormatError as error:
        raise _text_files.FormatError(
            f"{error}; to take its lines as they are, give `preload` a list of them"
        ) from None


def _is_unicode(text: str) -> bool:
    """JSON may escape half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def start(
    manager: Manager,
    texts: Iterable[str] | str | os.PathLike[str],
    model: str | None,
    when: Literal["idle", "now", "first_load"],
    pin: bool = False,
    *,
    after_use: bool = False,
) -> PreloadTicket:
    """`BaseManager.preload`. With `after_use` the manager is left alone until somebody else has loaded a model."""
    one_of("when", when, ("idle", "now", "first_load"))
    a_flag("pin", pin)
    if manager.closed:
        raise ClosedError("this ModelManager is closed; construct a new one")
    if model is not None and not _is_unicode(a_text("model", model)):
        raise InputError(f"model={model!r} {LONE_SURROGATE}")
    # Path.exists raises for a text that is too long for a name.
    if isinstance(texts, str) and not os.path.exists(texts):  # noqa: PTH110
        shown = texts if len(texts) <= _SHOWN else f"{texts[:_SHOWN]}…"
        raise MissingFileError(f"there is no readable file {shown!r}; texts go into a list")
    if isinstance(texts, str | os.PathLike):
        known = read_texts(texts)
    else:
        known = list(an_iterable("texts", texts, "texts, or the name of a file"))
        for number, text in enumerate(known):
            if not _is_unicode(a_text(f"texts[{number}]", text)):
                raise InputError(f"texts[{number}] {LONE_SURROGATE}")
    if not after_use:
        _check_room(manager, known, model, pin)
    ticket = PreloadTicket(len(known))
    # The thread does not keep the manager alive: its end is the end of the work.
    arguments = (weakref.ref(manager), ticket, known, model, when, pin, after_use)
    threading.Thread(target=_run, args=arguments, name="mm-preload", daemon=True).start()
    return ticket


def start_from_environment(manager: Manager, file: str) -> None:
    """Preload the texts of `file`, the value of `MODEL_MANAGER_PRELOAD`. The first call for a manager does this.

    A file that cannot be read is logged: results do not depend on it, so the manager works without it.
    """
    # One step, without a lock: a signal handler may use the manager while this runs.
    token = object()
    if vars(manager).setdefault("_preloads", token) is not token:
        return
    try:
        start(manager, Path(file), None, "first_load", after_use=True)
    except BaseException as error:
        if not isinstance(error, ModelManagerError) and getattr(error, "errno", None) is None:
            # A signal handler has raised it (Ctrl-C): the next call begins again.
            vars(manager).pop("_preloads", None)
            raise
        logger.warning("MODEL_MANAGER_PRELOAD=%r is not preloaded: %s; correct or unset the variable", file, error)


def _run(
    reference: weakref.ref[Manager],
    ticket: PreloadTicket,
    texts: list[str],
    model: str | None,
    when: str,
    pin: bool,
    after_use: bool,
) -> None:
    try:
        if after_use and not _wait_for_use(reference):
            return
        if after_use and (manager := reference()) is not None:
            _check_room(manager, texts, model, pin)
            del manager
        quiet = _Quiet() if when == "idle" else None
        for slot, group in _by_slot(reference, texts, model):
            for first in range(0, len(group), CHUNK):
                if when != "now" and not _wait(reference, ticket, slot, quiet):
                    return
                manager = reference()
                if manager is None or manager.closed or ticket._cancelled.is_set():
                    return
                part = group[first : first + CHUNK]
                with _lock:
                    _own[manager] = _own.get(manager, 0) + 1
                manager._cache_texts(part, slot, pin)
                del manager
                ticket.done += len(part)
        if pin:
            _warn_unpinned(reference, len(set(texts)))
    except Exception as error:  # noqa: BLE001  reported by `wait`
        ticket.error = error
    finally:
        ticket._ended.set()


def _check_room(manager: Manager, texts: list[str], model: str | None, pin: bool) -> None:
    """Raise `ArgumentError` for more texts to pin than the cache holds; without `pin` and a tier, warn."""
    config, count, (room, setting) = manager.config, len(set(texts)), _room(manager, model)
    if count <= room:
        return
    problem = f"{count} texts are more than the cache holds, {setting}={room}; raise {setting}"
    if pin:
        raise argument_error("pin", f"pin=True: {problem}, or give fewer texts")
    if not config.cache_disk and not config.cache_url:
        logger.warning("preload: %s, or set cache_disk: some are not in memory when they are used", problem)


def _room(manager: Manager, model: str | None) -> tuple[int, str]:
    """Results that the cache of `model` holds, and the setting that says so; without `model` those of all caches, since
    texts go to several models.
    """
    shared = manager.config.cache_size
    models = manager.cache_info()["models"]
    if model is None:
        return shared + sum(figures["max_entries"] or 0 for figures in models.values()), "cache_size"
    figures = models.get(model)
    if figures is None or (figures["max_entries"] is None and not figures["off"]):
        return shared, "cache_size"
    return figures["max_entries"] or 0, "the size in register(cache=...)"


def _warn_unpinned(reference: weakref.ref[Manager], count: int) -> None:
    """Say so when the bounds of the cache left no place for some of the `count` texts."""
    manager = reference()
    if manager is None or manager.closed:
        return
    info = manager.cache_info()
    # Caches that slots have of their own do not count their pins.
    own = any(figures["max_entries"] is not None for figures in info["models"].values())
    if not own and info["pinned"] < count:
        logger.warning("preload: %d of %d texts are pinned; raise cache_size or cache_bytes", info["pinned"], count)


def _by_slot(reference: weakref.ref[Manager], texts: list[str], model: str | None) -> Iterator[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for text in texts:
        manager = reference()
        if manager is None:
            return
        groups.setdefault(model or manager.route(text), []).append(text)
    yield from groups.items()


class _Quiet:
    """Whether others leave the manager alone."""

    def __init__(self) -> None:
        self._others = -1
        self._since = 0.0

    def look(self, manager: Manager) -> bool:
        stats, now = manager.stats(), time.monotonic()
        with _lock:
            others = stats["queue"]["requests"] - _own.get(manager, 0)
        busy = stats["queue"]["queued"] or any(state["leases"] for state in stats["slots"].values())
        if busy or others != self._others:
            self._others, self._since = others, now
        return now - self._since >= _QUIET


def _wait_for_use(reference: weakref.ref[Manager]) -> bool:
    """Wait until a model was used. False when the manager is closed before.

    Every other call but those of the tracker would read the settings, which belongs to the owner's first use.
    """
    while (manager := reference()) is not None and not manager.closed:
        if manager.tracker.get_statistics()["last_access"]:
            return True
        del manager
        time.sleep(_PAUSE)
    return False


def _wait(reference: weakref.ref[Manager], ticket: PreloadTicket, slot: str, quiet: _Quiet | None) -> bool:
    """Wait until the slot's model is in memory, and others leave the manager alone. False when that is in vain."""
    while not ticket._cancelled.is_set():
        manager = reference()
        if manager is None or manager.closed:
            return False
        if manager.is_loaded(slot) and (quiet is None or quiet.look(manager)):
            return True
        del manager
        time.sleep(_PAUSE)
    return False
