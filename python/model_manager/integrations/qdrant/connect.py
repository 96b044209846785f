"""The client of a Qdrant, and the progress bar."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from httpx import InvalidURL
from qdrant_client import AsyncQdrantClient, QdrantClient

from ..._arguments import a_text, argument_error, type_error
from ..._embedder import without_key
from ..._extras import tqdm_class
from ...errors import ArgumentError, InputError
from .store import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

tqdm = tqdm_class()

DEFAULT_PATH = "qdrant_data"
"""Folder of the embedded Qdrant, relative to the working directory."""
_MEMORY = ":memory:"
_REQUEST_SECONDS = 60  # on a busy server a batch of long texts takes longer than the client's default of 5 s


def connect(path: str | os.PathLike[str] | None, url: str | None, api_key: str | None) -> QdrantClient:
    """A client for the configured server, else for an embedded Qdrant."""
    if path is not None and url is not None:
        raise InputError("give either the path of an embedded Qdrant or the url of a server")
    if url == "":  # often a variable that is not set: a folder of this machine is no server
        raise argument_error("url", "url is empty: give the address of a server, or leave it out")
    name = "url" if url else "QDRANT_URL"
    url = _url(path, url)
    if url:
        key = _key(api_key)
        address = _address(name, url, key)
        try:
            # The first request shows whether the versions fit; the check would connect now.
            return QdrantClient(url=address, api_key=key, timeout=_REQUEST_SECONDS, check_compatibility=False)
        except (ValueError, InvalidURL):  # urllib3 and httpx read it more strictly
            raise _no_address(name, url) from None
    folder = embedded_folder(path, None)
    try:
        if folder is None:
            return QdrantClient(location=_MEMORY, force_disable_check_same_thread=True)
        # `Store` serializes its use, which is what SQLite needs.
        return QdrantClient(path=folder, force_disable_check_same_thread=True)
    except (RuntimeError, OSError, ValueError) as error:
        raise StoreError(f"the embedded Qdrant in {folder!r} cannot be opened: {error}") from error


def embedded_folder(path: str | os.PathLike[str] | None, url: str | None) -> str | None:
    """The folder of the embedded Qdrant that `connect` opens. None: it connects to a server, or makes one in memory."""
    if _url(path, url):
        return None
    folder = os.fspath(path) if path is not None else DEFAULT_PATH
    return None if folder == _MEMORY else folder


def _url(path: str | os.PathLike[str] | None, url: str | None) -> str | None:
    """The server's address, if one is configured and no `path` is given."""
    return url or (os.environ.get("QDRANT_URL") if path is None else None)


def _key(given: str | None) -> str | None:
    """The key of the server, without the line end of a mounted secret. An error does not show it."""
    name = "api_key" if given else "QDRANT_API_KEY"
    key = a_text(name, given or os.environ.get("QDRANT_API_KEY") or "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise argument_error(name, f"{name} (hidden): a key holds only printable ASCII characters")
    return key or None


def _address(name: str, url: str, key: str | None) -> str:
    """The address with a scheme. Without one the client takes the host for the scheme; a key is sent encrypted then, as
    the client does for ``localhost:6333``.
    """
    address = a_text(name, url).strip()
    if "//" not in address:
        address = f"{'http' if key is None else 'https'}://{address}"
    try:
        parts = urlsplit(address)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, or a port that is none
        fits = False
    if not fits:
        raise _no_address(name, url)
    return address


def _no_address(name: str, url: str) -> ArgumentError:
    return argument_error(name, f"{name}={without_key(url)!r}: must look like http://localhost:6333")


@contextmanager
def progress_bar(wanted: bool | None, total: int | None) -> Iterator[Callable[[int], object]]:
    """A function that advances the progress bar, if there is one."""
    if not (_is_watched() if wanted is None else wanted):
        yield lambda _count: None
        return
    with tqdm(total=total, desc="Indexing", unit="document", smoothing=0.1) as bar:
        yield bar.update


def _is_watched() -> bool:
    """Whether somebody sees standard error: it is a terminal, or belongs to a notebook."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")


def check_client(client: Any, path: Any, url: Any, api_key: Any) -> None:
    """Refuse what is no synchronous client, and a client with the address of another one."""
    if isinstance(client, str | os.PathLike):
        raise type_error("client", "a QdrantClient", client, "; a folder is path=, a server's address url=")
    if isinstance(client, AsyncQdrantClient):
        raise type_error("client", "a QdrantClient", client, "; asearch uses that too")
    if client is not None and not callable(getattr(client, "get_collection", None)):
        raise type_error("client", "a QdrantClient", client)
    if client is not None and (path, url, api_key) != (None, None, None):
        raise InputError("give either a client, or path, url and api_key for a new one")
