"""Environment variables that look like settings and are none: a misspelt one would be ignored in silence."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

PREFIX = "MODEL_MANAGER_"
SERVER_PREFIX = "MODEL_MANAGER_SERVER_"

_OTHERS = ("MODEL_MANAGER_DOTENV", "MODEL_MANAGER_ISA", "MODEL_MANAGER_PRELOAD", "MODEL_MANAGER_REMOTE_KEY")
_SERVER_OTHERS = ("MODEL_MANAGER_SERVER_ALIASES", "MODEL_MANAGER_SERVER_CONFIG", "MODEL_MANAGER_SERVER_MODEL")
"""Variables that belong to no single setting."""

_SECRETS = ("_KEY", "_PASSWORD", "_SECRET", "_TOKEN")
"""Ends of names that users give to variables of their own, for settings such as ``env:NAME``."""
_KUBERNETES = r"_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?"
"""Kubernetes gives every container the addresses of services. One named model-manager makes MODEL_MANAGER_PORT."""
_SIMILAR, _VERY_SIMILAR = 0.8, 0.9
_LONG = 12
"""Shorter names without the prefix resemble those of other programs by chance."""

_warned: set[str] = set()


def unknown(fields: Iterable[Mapping[str, Any]], prefix: str = PREFIX, *, similar: bool = False) -> dict[str, str]:
    """A sentence for each variable of the environment that begins with `prefix` and is no setting.

    Args:
        fields: The settings, with the keys ``name`` and ``environment``.
        prefix: `PREFIX` for the settings of managers, `SERVER_PREFIX` for those of the server.
        similar: Also variables without the prefix whose names resemble a setting's.
    """
    names = [name for name in os.environ if name.startswith(prefix)]
    if prefix == PREFIX:
        names = [name for name in names if not name.startswith(SERVER_PREFIX)]
    if not names and not similar:
        return {}
    settings = {field["environment"]: field["name"] for field in fields}
    known = [*settings, *(_OTHERS if prefix == PREFIX else _SERVER_OTHERS)]
    if similar:
        names += [name for name in os.environ if len(name) >= _LONG and not name.startswith(PREFIX)]
    found = {}
    for name in sorted(set(names).difference(known)):
        ours = name.startswith(PREFIX)
        if ours and _is_of_others(name):
            continue
        meant = _meant(name, settings, known, _SIMILAR if ours else _VERY_SIMILAR)
        if ours or meant is not None:
            question = "" if meant is None else f"; did you mean {meant}?"
            found[name] = f"the environment variable {name} is no setting and is ignored{question}"
    return found


def warn(fields: Iterable[Mapping[str, Any]], prefix: str = PREFIX) -> None:
    """Log a warning for each of them, once in the process."""
    for name, sentence in unknown(fields, prefix).items():
        if name not in _warned:
            import logging

            _warned.add(name)
            logging.getLogger("model_manager").warning("%s", sentence)


def _is_of_others(name: str) -> bool:
    import re

    return name.endswith(_SECRETS) or re.fullmatch(rf"{PREFIX[:-1]}\w*?({_KUBERNETES})", name) is not None


def _meant(name: str, settings: Mapping[str, str], known: Iterable[str], least: float) -> str | None:
    """The variable that was meant: that of the setting with this name, else the most similar one."""
    import difflib

    for prefix in (SERVER_PREFIX, PREFIX):
        for variable, setting in settings.items():
            if name == prefix + setting.upper():
                return variable
    return next(iter(difflib.get_close_matches(name, known, 1, least)), None)
