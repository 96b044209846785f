"""Settings of the server: keyword, else environment variable, else default. Validated once and immutable."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from .._environment import SERVER_PREFIX, warn
from ..errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ServedModel", "ServerConfig"]

DEFAULT_SOURCE = "Qwen/Qwen3-Embedding-0.6B"
"""The model that is served when the environment names none."""
DEFAULT_DIMENSIONS = 1024
"""The length of its vectors."""

_MIB = 1 << 20
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]+)?").fullmatch
"""An origin as browsers write it."""
_DEFAULT_PORT = re.compile("https://.*:443|http://.*:80").fullmatch
_KEY = re.compile(r"[!-~]([ -~]*[!-~])?").fullmatch
_HOST = re.compile(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*\.?", re.ASCII).fullmatch


@dataclass(frozen=True, slots=True)
class ServedModel:
    """An embedding model as clients see it: public names for a slot of the manager.

    Args:
        name: The name in requests, and the ``model`` in answers.
        slot: The manager's slot. None: the slot of the same name.
        source: The model that the slot loads (see `Manager.register`). None: the slot exists already. A slot that
            exists with another source is refused when the application is made.
        adapter: The adapter over the source (see `Manager.register`). None: none. It needs a source.
        aliases: Further names that clients may use. The first word of the name (`qwen3` of `qwen3-embedding`) is always
            an alias, unless two models have it.
        dimensions: Length of vectors when a request gives none. None: the model's own.
        instructions: Whether texts get an instruction in front: ``on``, ``off``, or ``auto``. ``auto`` means on for
            models whose own prompts have the form ``Instruct: …``, such as Qwen3-Embedding.
    """

    name: str
    _: KW_ONLY
    slot: str | None = None
    source: str | None = None
    adapter: str | None = None
    aliases: tuple[str, ...] | list[str] = ()
    dimensions: int | None = None
    instructions: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        _text("ServedModel.name", self.name)
        object.__setattr__(self, "slot", self.slot or self.name)
        if self.adapter is not None:
            _text("ServedModel.adapter", self.adapter)
            if self.source is None:
                raise config_error(
                    "adapter", f"ServedModel.adapter={self.adapter!r}: needs the source of the model that it changes"
                )
        if isinstance(self.aliases, str):
            raise config_error("aliases", "ServedModel.aliases must be a list, not one text")
        object.__setattr__(self, "aliases", tuple(_text("ServedModel.aliases", alias) for alias in self.aliases))
        if self.dimensions is not None:
            _whole("ServedModel.dimensions", self.dimensions, 1)
        if self.instructions not in ("auto", "on", "off"):
            raise config_error(
                "instructions", f"ServedModel.instructions={self.instructions!r}: must be 'auto', 'on' or 'off'"
            )

    @property
    def key(self) -> str:
        """The name of the slot."""
        return self.slot or self.name


def config_error(setting: str, message: str) -> ConfigError:
    """The error for a value of a setting, whose `param` is the setting."""
    error = ConfigError(message)
    error.param = setting.rpartition(".")[2]
    return error


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise config_error(name, f"{name}={value!r}: must be a text that is not blank")
    return value


def _whole(name: str, value: object, least: int, most: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise config_error(name, f"{name}={value!r}: must be a whole number {limits}")


def _seconds(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e9:
        raise config_error(name, f"{name}={value!r}: must be a number of seconds above 0")


def _number(text: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError:
        raise ValueError("must be a whole number") from None


def _duration(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number of seconds") from None


def _flag(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be true or false")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _some_words(text: str) -> tuple[str, ...]:
    """As `_words`, of a setting that protects the server: commas alone would turn the protection off."""
    words = _words(text)
    if not words:
        raise ValueError("holds nothing between its commas; leave the variable unset for none")
    return words


def _setting(environment: str, default: Any, parse: Callable[[str], Any], doc: str, *, secret: bool = False) -> Any:
    """A field whose default is the value of the environment variable. An empty variable counts as unset."""

    def read() -> Any:
        text = os.environ.get(environment, "")
        if not text.strip():
            return default
        try:
            return parse(text)
        except ValueError as error:
            shown = "…" if secret else repr(text)
            raise ConfigError(f"{environment}={shown}: {error}") from None

    return field(
        default_factory=read,
        repr=not secret,
        metadata={"environment": environment, "default": default, "doc": doc},
    )


def _ollama_source(url: str, name: str) -> str:
    """The source of the model `name` of the server at `url`, as Ollama's clients read it: TLS with https, the port of
    the scheme, 11434 without one, and the path in front of the API's own.
    """
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"OLLAMA_URL={url!r}: {error}") from None
    if not parts.hostname or parts.scheme not in ("", "http", "https") or parts.query or parts.fragment:
        raise ConfigError(f"OLLAMA_URL={url!r}: must be an address such as http://localhost:11434, or a host")
    host = f"{parts.netloc.rstrip(':')}:80" if parts.scheme == "http" and port is None else parts.netloc
    scheme = "ollama+https" if parts.scheme == "https" else "ollama"
    base = parts.path.strip("/")
    return f"{scheme}://{host}/{base}//{name}" if base else f"{scheme}://{host}/{name}"


def default_models() -> tuple[ServedModel, ...]:
    """The one model that the environment describes: `OLLAMA_MODEL_NAME`, `MODEL_MANAGER_SERVER_ALIASES`,
    `MODEL_MANAGER_SERVER_MODEL`, `OLLAMA_URL`, `EMBEDDING_DIMENSIONS`.
    """
    name = os.environ.get("OLLAMA_MODEL_NAME", "").strip() or "qwen3-embedding"
    source = os.environ.get("MODEL_MANAGER_SERVER_MODEL", "").strip()
    ollama = os.environ.get("OLLAMA_URL", "").strip()
    if not source and ollama:
        source = _ollama_source(ollama, name)
    dimensions = os.environ.get("EMBEDDING_DIMENSIONS", "").strip()
    try:
        length = int(dimensions) if dimensions else None
    except ValueError:
        raise ConfigError(f"EMBEDDING_DIMENSIONS={dimensions!r}: must be a whole number") from None
    if length is not None:
        _whole("EMBEDDING_DIMENSIONS", length, 1)
    aliases = _words(os.environ.get("MODEL_MANAGER_SERVER_ALIASES", ""))
    return (ServedModel(name, source=source or DEFAULT_SOURCE, aliases=aliases, dimensions=length),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of the server. Each is the keyword, else the environment variable, else the default.

    A setting of several values may be given as a list, and is a tuple afterwards.

    Raises:
        ConfigError: A value of the wrong type or out of range; the message names it.
    """

    host: str = _setting("API_HOST", "127.0.0.1", str, "Address to listen at; 0.0.0.0: all addresses of this machine.")
    port: int = _setting("API_PORT", 8000, _number, "Port to listen at; 0: a free one.")
    workers: int = _setting(
        "MODEL_MANAGER_SERVER_WORKERS", 1, _number, "Worker processes; each has its own models, queue and cache."
    )
    root_path: str = _setting(
        "MODEL_MANAGER_SERVER_ROOT_PATH",
        "",
        str,
        "Path prefix under which a proxy serves this server, such as /embeddings.",
    )
    api_keys: tuple[str, ...] | list[str] = _setting(
        "MODEL_MANAGER_SERVER_API_KEYS",
        (),
        _some_words,
        "API keys; a client must send one of them. None: open to all clients.",
        secret=True,
    )
    open_paths: tuple[str, ...] | list[str] = _setting(
        "MODEL_MANAGER_SERVER_OPEN_PATHS",
        ("/", "/health", "/ready"),
        _words,
        "Paths that need no key, for example /metrics.",
    )
    admin: bool = _setting("MODEL_MANAGER_SERVER_ADMIN", True, _flag, "Whether clients may load and unload models.")
    cors_origins: tuple[str, ...] | list[str] = _setting(
        "MODEL_MANAGER_SERVER_CORS_ORIGINS",
        (),
        _words,
        "Origins whose pages may call the server from a browser; none: CORS is off.",
    )
    allowed_hosts: tuple[str, ...] | list[str] = _setting(
        "MODEL_MANAGER_SERVER_ALLOWED_HOSTS",
        (),
        _some_words,
        "Allowed names in Host headers, including `*.example.com` and `*`; none: this machine's own names if the "
        "server listens at a loopback address without keys, else all.",
    )
    max_body_bytes: int = _setting(
        "MODEL_MANAGER_SERVER_MAX_BODY_BYTES", 64 * _MIB, _number, "Maximum size of a request body, bytes."
    )
    max_prompt_bytes: int = _setting(
        "MODEL_MANAGER_SERVER_MAX_PROMPT_BYTES",
        16 * _MIB,
        _number,
        "Maximum body of a request for generated text, bytes.",
    )
    max_body_values: int = _setting(
        "MODEL_MANAGER_SERVER_MAX_BODY_VALUES", 2_000_000, _number, "Maximum JSON values in a request body."
    )
    max_buffered_bytes: int = _setting(
        "MODEL_MANAGER_SERVER_MAX_BUFFERED_BYTES",
        512 * _MIB,
        _number,
        "Bytes of the bodies of all running requests; further requests are refused with 503.",
    )
    header_timeout: float = _setting(
        "MODEL_MANAGER_SERVER_HEADER_TIMEOUT",
        10.0,
        _duration,
        "Seconds for a client to send the headers of a request.",
    )
    keep_alive_timeout: float = _setting(
        "MODEL_MANAGER_SERVER_KEEP_ALIVE_TIMEOUT",
        75.0,
        _duration,
        "Seconds that an idle connection stays open between two requests: longer than a proxy in front keeps it.",
    )
    body_timeout: float = _setting(
        "MODEL_MANAGER_SERVER_BODY_TIMEOUT", 30.0, _duration, "Seconds for a client to send the whole request body."
    )
    max_inputs: int = _setting("MODEL_MANAGER_SERVER_MAX_INPUTS", 2048, _number, "Maximum texts in one request.")
    max_waiting: int = _setting(
        "MODEL_MANAGER_SERVER_MAX_WAITING",
        4096,
        _number,
        "Texts that may wait for vectors; further requests are refused with 429.",
    )
    request_timeout: float = _setting(
        "MODEL_MANAGER_SERVER_REQUEST_TIMEOUT", 300.0, _duration, "Seconds that a request may take, including loading."
    )
    drain_timeout: float = _setting(
        "MODEL_MANAGER_SERVER_DRAIN_TIMEOUT", 30.0, _duration, "Seconds for running requests to finish after SIGTERM."
    )
    warm_up: bool = _setting(
        "MODEL_MANAGER_SERVER_WARM_UP",
        False,
        _flag,
        "Load the served embedding models at start instead of with the first request.",
    )
    access_log: bool = _setting("MODEL_MANAGER_SERVER_ACCESS_LOG", False, _flag, "Log every request.")
    generators: tuple[str, ...] | list[str] = _setting(
        "MODEL_MANAGER_SERVER_GENERATORS", ("text_generator",), _words, "Slots of the served text generators."
    )
    max_choices: int = _setting(
        "MODEL_MANAGER_SERVER_MAX_CHOICES", 64, _number, "Maximum answers in one request: prompts times n."
    )
    token_ids: Literal["accept", "refuse"] = _setting(
        "MODEL_MANAGER_SERVER_TOKEN_IDS",
        "accept",
        str,
        "Token ids in place of texts: accept or refuse. Ids of another vocabulary give wrong answers.",
    )
    tracing: Literal["auto", "on", "off"] = _setting(
        "MODEL_MANAGER_SERVER_TRACING",
        "auto",
        str,
        "Spans of OpenTelemetry for requests: on, off, or auto: where the process has set a tracer provider.",
    )
    models: tuple[ServedModel, ...] | list[ServedModel] = field(default_factory=default_models)

    def __post_init__(self) -> None:
        warn(self.fields, SERVER_PREFIX)
        for name in ("api_keys", "open_paths", "cors_origins", "allowed_hosts", "generators", "models"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise config_error(name, f"{name} must be a list, not one text")
            object.__setattr__(self, name, tuple(value))
        _text("host", self.host)
        _whole("port", self.port, 0, 65535)
        _whole("workers", self.workers, 1, 1024)
        if self.token_ids not in ("accept", "refuse"):
            raise config_error("token_ids", f"token_ids={self.token_ids!r}: must be 'accept' or 'refuse'")
        if self.tracing not in ("auto", "on", "off"):
            raise config_error("tracing", f"tracing={self.tracing!r}: must be 'auto', 'on' or 'off'")
        for name in (
            "max_body_bytes",
            "max_choices",
            "max_prompt_bytes",
            "max_body_values",
            "max_buffered_bytes",
            "max_inputs",
            "max_waiting",
        ):
            _whole(name, getattr(self, name), 1)
        for name in ("header_timeout", "keep_alive_timeout", "body_timeout", "request_timeout", "drain_timeout"):
            _seconds(name, getattr(self, name))
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise config_error(
                "root_path", f"root_path={self.root_path!r}: must begin with a slash and not end with one"
            )
        if not all(isinstance(key, str) and _KEY(key) for key in self.api_keys):
            raise config_error(
                "api_keys", "api_keys: each must be printable ASCII text without spaces around it, as a header holds it"
            )
        for host in self.allowed_hosts:
            if not isinstance(host, str) or _HOST(host) is None:
                raise config_error(
                    "allowed_hosts",
                    f"allowed_hosts: {host!r} must be '*', a name such as example.com, or *.example.com, without a"
                    " port",
                )
        for origin in self.cors_origins:
            if not isinstance(origin, str) or _ORIGIN(origin) is None or _DEFAULT_PORT(origin):
                raise config_error(
                    "cors_origins",
                    f"cors_origins: {origin!r} must be '*' or an origin as browsers write it, such as"
                    " https://app.example.com or http://localhost:3000: in small letters, without a path and without"
                    " the default port",
                )
        for path in self.open_paths:
            if not isinstance(path, str) or not path.startswith("/"):
                raise config_error("open_paths", f"open_paths: {path!r} must begin with a slash")
        if not self.models or not all(isinstance(model, ServedModel) for model in self.models):
            raise config_error("models", "models must be a list of at least one ServedModel; the first is the default")
        names = [name for model in self.models for name in {model.name, *model.aliases}]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise config_error("models", f"models: {', '.join(twice)} names two models")

    @classmethod
    def fields(cls) -> list[dict[str, Any]]:
        """Every setting that has an environment variable: name, environment, default, doc."""
        return [{"name": f.name, **f.metadata} for f in dataclasses.fields(cls) if f.metadata]

    def to_dict(self) -> dict[str, Any]:
        """Every setting, including keys, as plain values; `from_dict` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ServerConfig:
        """The settings from the result of `to_dict`, also after a JSON round trip."""
        models = [ServedModel(**model) for model in values["models"]]
        return cls(**{**values, "models": models})
