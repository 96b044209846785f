"""The exceptions, a tree under `ModelManagerError`.

Each class also derives from the built-in exception that fits, so ``except FileNotFoundError`` catches a missing model
without an import from here. Every message names the thing (model, path, setting) and the remedy.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "ClosedError",
    "ConfigError",
    "DeviceMemoryError",
    "DownloadError",
    "ForkedError",
    "InputError",
    "InputTypeError",
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
    "TaskError",
    "UnknownModelError",
    "UnsupportedModelError",
    "WaitTimeoutError",
]


class ModelManagerError(Exception):
    """Base of all errors of this package.

    Attributes:
        param: The argument or setting at fault, as it is written in a call; None where there is no single one.
        code: A name of the mistake for programs, such as ``context_length_exceeded``; None where it has none.
        transient: Whether the same call may succeed later. Callers that retry look at this alone.
    """

    param: str | None = None
    code: str | None = None
    transient: bool = False
    _place: tuple[int, ...] | None = None
    """Where in `param`, if the message begins with both."""
    _rest: str | None = None
    """The message after both."""

    def __str__(self) -> str:
        # KeyError would show the repr of its message, and OSError would look for an errno.
        return Exception.__str__(self)


class ConfigError(ModelManagerError, ValueError):
    """A setting (keyword or environment variable) is out of range or does not parse."""


class InputError(ModelManagerError, ValueError):
    """An argument has the right type but a wrong value: a lone surrogate, an unknown prompt name, a dimension out of
    range. A wrong type is a `TypeError`, whose `param` names the argument too.
    """


class ArgumentError(InputError):
    """An argument has a wrong value and is alone to blame: `param` names it."""


class InputTypeError(ArgumentError, TypeError):
    """An item of an argument has a wrong type: a document, a pair of texts, a row of a column. It is a `TypeError`, as
    every wrong type, and an `InputError`, which was raised before.
    """


class UnknownModelError(ModelManagerError, KeyError):
    """No slot has this name; `ModelManager.register` makes one."""


class TaskError(InputError):
    """The model of a slot does something else than what was asked for: a reranker does not embed, an embedding model
    gives no scores. The message says what it gives.
    """


class ModelNotFoundError(ModelManagerError, FileNotFoundError):
    """The model's source (hub id, folder, `pkg:…`) leads nowhere."""


class MissingFileError(ModelManagerError, FileNotFoundError):
    """The model's folder lacks a file that is needed, such as tokenizer.json."""


class InvalidFileError(ModelManagerError, ValueError):
    """A file exists but its content is wrong: truncated, damaged, or of the wrong shape."""


class UnsupportedModelError(ModelManagerError, NotImplementedError):
    """The files are valid but describe a model that this package does not run."""


class ModelPermissionError(ModelManagerError, PermissionError):
    """The operating system refused access to a file or folder."""


class DownloadError(ModelManagerError, ConnectionError):
    """A download failed; the message has the URL and the status."""

    transient = True


class RemoteError(ModelManagerError, ConnectionError):
    """The server behind ``ollama://`` or ``openai+https://`` failed, refused or cannot be reached. The message says
    which, and after repeated failures when the next request is sent.
    """

    transient = True


class RemoteRefusedError(RemoteError):
    """The server refuses until something is corrected: a key, a certificate, an address. The message says what. A retry
    does not help.
    """

    transient = False


class ModelIOError(ModelManagerError, OSError):
    """Any other failure of the operating system on a file."""


class WaitTimeoutError(ModelManagerError, TimeoutError):
    """A wait for a load or for a result reached its timeout. The load or the computation goes on."""

    transient = True


class OutOfMemoryError(ModelManagerError, MemoryError):
    """The system has no memory for what one request needs. Other requests go on."""


class DeviceMemoryError(ModelManagerError, MemoryError):
    """A card has no memory left for a model or a batch, after idle models were unloaded and batches halved."""


class OverloadedError(ModelManagerError, RuntimeError):
    """The queue of a model is full: `max_queue` texts, or `max_generation_queue` requests for text. Retry later."""

    transient = True


class MemoryBudgetError(ModelManagerError, MemoryError):
    """The model does not fit into `memory_budget` together with the models that cannot be evicted. It is `transient`
    where the model alone fits.
    """


class NotFiniteError(ModelManagerError, ArithmeticError):
    """A model produced NaN or infinity instead of a vector."""


class RequestCancelledError(ModelManagerError, RuntimeError):
    """The request was cancelled before it had a result."""


class ForkedError(RequestCancelledError):
    """The request was made before this process was forked, and belongs to its parent."""


class ClosedError(ModelManagerError, RuntimeError):
    """The manager was closed."""


class LoaderError(ModelManagerError, RuntimeError):
    """A registered loader or object raised an exception, which is the ``__cause__``."""


class NoGeneratorError(ModelManagerError, RuntimeError):
    """There is no text generator; the message says why."""


class InternalError(ModelManagerError, RuntimeError):
    """A defect of this package, caught at a boundary. The request failed, the manager goes on. Please report it."""
