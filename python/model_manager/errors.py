"""What can go wrong, as a tree under `ModelManagerError`.

Each class is also the built-in exception that a Python programmer would expect, so ``except FileNotFoundError`` finds a
missing model without importing anything from here. Every message names the thing (model, path, setting) and the remedy.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "ClosedError",
    "ConfigError",
    "DownloadError",
    "InputError",
    "InternalError",
    "InvalidFileError",
    "LoaderError",
    "MemoryBudgetError",
    "MissingFileError",
    "ModelIOError",
    "ModelManagerError",
    "ModelNotFoundError",
    "ModelPermissionError",
    "NoGeneratorError",
    "NotFiniteError",
    "OutOfMemoryError",
    "OverloadedError",
    "RemoteError",
    "RemoteRefusedError",
    "RequestCancelledError",
    "UnknownModelError",
    "UnsupportedModelError",
    "WaitTimeoutError",
]


class ModelManagerError(Exception):
    """Base of all errors of this package.

    Attributes:
        param: The argument or setting to blame, as it is written in a call; None where no single one is.
        code: The mistake's name for programs, such as ``context_length_exceeded``; None where it has none.
    """

    param: str | None = None
    code: str | None = None

    def __str__(self) -> str:
        # KeyError would show the repr of its message, OSError would look for an errno.
        return Exception.__str__(self)


class ConfigError(ModelManagerError, ValueError):
    """A setting (keyword or environment variable) is out of range or does not parse."""


class InputError(ModelManagerError, ValueError):
    """An argument has the right type but a wrong value: a lone surrogate, an unknown prompt name, a dimension out of
    range.
    """


class ArgumentError(InputError):
    """An argument has a wrong value and is alone to blame: `param` names it."""


class UnknownModelError(ModelManagerError, KeyError):
    """No slot has this name; `ModelManager.register` makes one."""


class ModelNotFoundError(ModelManagerError, FileNotFoundError):
    """The model's source (hub id, folder, `pkg:…`) leads nowhere."""


class MissingFileError(ModelManagerError, FileNotFoundError):
    """The model's folder lacks a file that is needed, such as tokenizer.json."""


class InvalidFileError(ModelManagerError, ValueError):
    """A file exists but does not hold what it should: cut short, damaged, of the wrong shape."""


class UnsupportedModelError(ModelManagerError, NotImplementedError):
    """The files are sound but describe a model that this package does not run."""


class ModelPermissionError(ModelManagerError, PermissionError):
    """The operating system refused access to a file or folder."""


class DownloadError(ModelManagerError, ConnectionError):
    """A download failed; the message has the URL and the status."""


class RemoteError(ModelManagerError, ConnectionError):
    """The server behind ``ollama://`` or ``openai+https://`` failed, refused or cannot be reached; the message says
    which, and while it is left alone for failing again and again, when it is tried again.
    """


class RemoteRefusedError(RemoteError):
    """The server refuses until something is set right (a key, a certificate, an address); the message says what. To ask
    again later does not help.
    """


class ModelIOError(ModelManagerError, OSError):
    """Any other failure of the operating system on a file."""


class WaitTimeoutError(ModelManagerError, TimeoutError):
    """A wait (for a load or for a result) ended at its timeout; what was waited for goes on."""


class OutOfMemoryError(ModelManagerError, MemoryError):
    """The system has no memory for what one request needs; others go on."""


class OverloadedError(ModelManagerError, RuntimeError):
    """The queue of a model is full: `max_queue` texts, or `max_generation_queue` requests for text. Retry later."""


class MemoryBudgetError(ModelManagerError, MemoryError):
    """The model does not fit into `memory_budget` beside those that cannot be evicted."""


class NotFiniteError(ModelManagerError, ArithmeticError):
    """A model produced NaN or infinity where a vector was due."""


class RequestCancelledError(ModelManagerError, RuntimeError):
    """The request was cancelled before its result was there."""


class ClosedError(ModelManagerError, RuntimeError):
    """The manager was closed."""


class LoaderError(ModelManagerError, RuntimeError):
    """A loader or an object that you registered raised; the original exception is the ``__cause__``."""


class NoGeneratorError(ModelManagerError, RuntimeError):
    """No text generator can be had; the message says why."""


class InternalError(ModelManagerError, RuntimeError):
    """A defect of this package, caught at a boundary: the request failed, the manager lives on. Please report it."""
