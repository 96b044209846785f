"""Settings that would be ignored in silence: misspelt environment variables, and those that need another setting."""

from __future__ import annotations

import os

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import Any, TypeAlias

    from ._core import Config

    Fields: TypeAlias = Callable[[], Iterable[Mapping[str, Any]]]

PREFIX = "MODEL_MANAGER_"
SERVER_PREFIX = "MODEL_MANAGER_SERVER_"

_OTHERS = ("MODEL_MANAGER_DOTENV", "MODEL_MANAGER_ISA", "MODEL_MANAGER_PRELOAD", "MODEL_MANAGER_REMOTE_KEY")
_SERVER_OTHERS = ("MODEL_MANAGER_SERVER_ALIASES", "MODEL_MANAGER_SERVER_MODEL")
"""Variables that belong to no single setting."""

_SECRETS = ("_KEY", "_PASSWORD", "_SECRET", "_TOKEN")
"""Ends of names that users give to variables of their own, for settings such as ``env:NAME``."""
_KUBERNETES = r"_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?"
"""Kubernetes gives every container the addresses of services. One named model-manager makes MODEL_MANAGER_PORT."""
_LONG = 12
"""Shorter names without the prefix resemble those of other programs by chance."""

_NEEDED = {"warm_restart": "cache_disk", "cache_secret": "cache_url"}
"""Settings without effect while the other one is off."""

_warned: set[str] = set()


def unknown(fields: Fields, prefix: str = PREFIX, *, similar: bool = False) -> dict[str, str]:
    """A sentence for each variable of the environment that begins with `prefix` and is no setting.

    Args:
        fields: Returns the settings, with the keys ``name`` and ``environment``.
        prefix: `PREFIX` for the settings of managers, `SERVER_PREFIX` for those of the server.
        similar: Also variables without the prefix whose names resemble a setting's.
    """
    server = prefix == SERVER_PREFIX
    names = [name for name in os.environ if name.startswith(prefix) and (server or not name.startswith(SERVER_PREFIX))]
    if not names and not similar:
        return {}
    settings = {field["environment"]: field["name"] for field in fields()}
    known = {*settings, *(_SERVER_OTHERS if server else _OTHERS)}
    found = {}
    for name in sorted(set(names) - known):
        if not _is_of_others(name):
            # What follows the prefix, compared with the names of settings too: some variables have another prefix.
            rests = {variable.removeprefix(prefix): variable for variable in known}
            rests |= {setting.upper(): variable for variable, setting in settings.items()}
            found[name] = _sentence(name, _closest(name.removeprefix(prefix), rests, 0.75))
    if similar:
        for name in sorted(os.environ):
            if len(name) >= _LONG and not name.startswith(PREFIX) and name not in known:
                meant = _closest(name, {variable: variable for variable in known}, 0.9)
                if meant is not None:
                    found[name] = _sentence(name, meant)
    return found


def warn(fields: Fields, prefix: str = PREFIX) -> None:
    """Log a warning for each of them, once in the process."""
    for name, sentence in unknown(fields, prefix).items():
        if name not in _warned:
            import logging

            _warned.add(name)
            logging.getLogger("model_manager").warning("%s", sentence)


def check_needed(config: Config, keywords: Collection[str] = ()) -> None:
    """Refuse a setting of these keywords that has no effect. One that the environment or a `Config` gives may be meant
    for other managers too: it is logged, once in the process.

    Raises:
        ConfigError: Its `param` is the setting.
    """
    for name, needed in _NEEDED.items():
        if not getattr(config, name) or getattr(config, needed):
            continue
        sentence = f"{name} has no effect without {needed}, which is not set; set {needed} too, or leave {name} out"
        if name in keywords:
            error = ConfigError(sentence)
            error.param = name
            raise error
        if name not in _warned:
            import logging

            _warned.add(name)
            logging.getLogger("model_manager").warning("%s", sentence)


def _is_of_others(name: str) -> bool:
    import re

    return name.endswith(_SECRETS) or re.fullmatch(rf"{PREFIX[:-1]}\w*?({_KUBERNETES})", name) is not None


def _closest(name: str, variables: Mapping[str, str], least: float) -> str | None:
    import difflib

    found = difflib.get_close_matches(name, variables, 1, least)
    return variables[found[0]] if found else None


def _sentence(name: str, meant: str | None) -> str:
    question = "" if meant is None else f"; did you mean {meant}?"
    return f"the environment variable {name} is no setting and is ignored{question}"
