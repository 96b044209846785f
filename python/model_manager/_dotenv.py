"""Settings from a file named ``.env``, in the syntax that python-dotenv reads.

The chatbot's programs load their file when they start. A script that imports only this package does not, so the
process-wide manager reads the file in the working directory before its settings.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path

from ._core import Config
from ._environment import check_needed, warn
from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

logger = logging.getLogger(__name__)

SWITCH = "MODEL_MANAGER_DOTENV"
"""The variable that disables it."""

_KEY = re.compile(r"(?:export[^\S\r\n]+)?(?:'([^']+)'|(?!')([^=#\s]+))[^\S\r\n]*")
_VALUE = re.compile(
    r"""=[^\S\r\n]*(?![^\S\r\n])(?:  # all blanks, so that a quotation mark after them counts
        '(?P<single>(?:\\'|[^'])*)'
      | "(?P<double>(?:\\"|[^"])*)"
      | (?P<plain>(?!['"])[^\r\n]*)
    )""",
    re.VERBOSE,
)
_LINE_END = re.compile(r"[^\S\r\n]*(?:#[^\r\n]*)?(?:\r\n|\n|\r|\Z)")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)?")
_BLANK = re.compile(r"\s*")
_COMMENT = re.compile(r"\s+#.*")
_ESCAPE = {"single": re.compile(r"\\([\\'])"), "double": re.compile(r"\\([\\'\"abfnrtv])")}
_CONTROL = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_REFERENCE = re.compile(r"\$\{([^}:]*)(?::-([^}]*))?\}")


def load_into_environment() -> None:
    """Prepare the environment at the first use of the process-wide manager. The core calls this before it reads the
    settings.

    It sets the variables of the working directory's ``.env`` that the environment lacks, warns of those that are no
    settings or have no effect, and starts the preload of `MODEL_MANAGER_PRELOAD`. `MODEL_MANAGER_DOTENV=false` disables
    the file. Invalid lines are logged and skipped.
    """
    from .compat.chatbot import model_manager

    _load()
    warn(Config.fields)
    with contextlib.suppress(ConfigError):  # the core raises it when it reads the settings
        check_needed(Config())
    model_manager._preload_from_environment()


def _load() -> None:
    if os.environ.get(SWITCH, "").strip().lower() in ("false", "0", "no", "off"):
        return
    path = Path(".env")
    try:
        text = path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is None:
            raise  # not the system's: a signal handler has raised it, a time limit for example
        logger.warning("%s is not used: %s", path.absolute(), error)
        return
    for name, value in resolve(text, os.environ).items():
        if name in os.environ or value is None:
            continue
        try:
            os.environ[name] = value
        except (ValueError, UnicodeEncodeError) as error:
            logger.warning("%s: %r cannot be set: %s", path.absolute(), name, error)


def resolve(text: str, environment: Mapping[str, str]) -> dict[str, str | None]:
    """The variables of `text` with ``${NAME}`` and ``${NAME:-default}`` replaced. A name without ``=`` has None.

    A variable of `environment` takes precedence over one with the same name in `text`.
    """
    found: dict[str, str | None] = {}
    for name, value in _bindings(text):
        found[name] = None if value is None else _replaced(value, {**found, **environment})
    return found


def _replaced(value: str, known: Mapping[str, str | None]) -> str:
    def referenced(match: re.Match[str]) -> str:
        name, default = match.groups(default="")
        return known.get(name, default) or ""

    return _REFERENCE.sub(referenced, value)


def _bindings(text: str) -> Iterator[tuple[str, str | None]]:
    """Names and values in order. A line that is neither a binding nor a comment is logged."""
    at = _BLANK.match(text).end()  # type: ignore[union-attr]  # it matches the empty text
    while at < len(text):
        start = at
        name, value, end = None, None, at
        if key := _KEY.match(text, at):
            name, end = key[1] or key[2], key.end()
            if text.startswith("=", end):
                given = _VALUE.match(text, end)
                value, end = (_text_of(given), given.end()) if given else (None, start)
        line_end = _LINE_END.match(text, end)
        if line_end is None or (name is not None and end == start):
            number = text.count("\n", 0, start) + 1
            logger.warning(".env: line %d cannot be read and is skipped", number)
            line_end = _LINE.match(text, start)
        elif name is not None:
            yield name, value
        at = _BLANK.match(text, line_end.end()).end()  # type: ignore[union-attr]


def _text_of(match: re.Match[str]) -> str:
    kind = match.lastgroup or "plain"
    value = match[kind]
    if kind == "plain":
        return _COMMENT.sub("", value).rstrip()
    return _ESCAPE[kind].sub(lambda escape: _CONTROL.get(escape[1], escape[1]), value)
