"""The host names that this server answers to. The check stops DNS rebinding: a foreign page whose name resolves to this
machine.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from typing import TYPE_CHECKING

from .errors import ApiError

if TYPE_CHECKING:
    from starlette.types import Scope

    from .config import ServerConfig


@functools.lru_cache(64)
def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to the address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Hosts:
    """The check of `Host` headers.

    IP addresses and this machine's own names always pass, because no foreign page can have them. Without
    `allowed_hosts` every name passes if the server has keys, which no foreign page knows, or if it listens at an
    address that other machines reach, where it may have any name. With `allowed_hosts` a request without a name is
    refused.
    """

    def __init__(self, config: ServerConfig) -> None:
        wanted = {name.lower().rstrip(".") for name in config.allowed_hosts}
        self.names = {"localhost", socket.gethostname().lower(), config.host.lower()}
        self.names.update(name for name in wanted if not name.startswith("*"))
        self.suffixes = (".localhost", *(name[1:] for name in wanted if name.startswith("*.")))
        self.all = "*" in wanted or (not wanted and (bool(config.api_keys) or not is_loopback(config.host)))
        self.only_loopback = not wanted
        """Check only requests to a loopback address. The program that runs the application may listen elsewhere."""
        self.allows = functools.lru_cache(64)(self._allows)

    def check(self, scope: Scope) -> None:
        """Raise `ApiError` 403 unless the request's `Host` is one of this server's names."""
        if self.all:
            return
        if self.only_loopback:
            server = scope.get("server")
            if server is None or not is_loopback(str(server[0])):
                return
        named = False
        for header, value in scope["headers"]:
            if header != b"host" or not value.strip():
                continue
            named = True
            if not self.allows(value):
                raise ApiError(
                    403,
                    f"This server does not answer to the name {value.decode('latin-1')!r}; its setting allowed_hosts "
                    "(MODEL_MANAGER_SERVER_ALLOWED_HOSTS) adds names",
                    code="host_not_allowed",
                )
        # Every browser names the server. Where names are listed, a request without one has none of them.
        if not named and not self.only_loopback:
            raise ApiError(
                403,
                "The request has no Host header, and this server answers only to the names of its setting "
                "allowed_hosts (MODEL_MANAGER_SERVER_ALLOWED_HOSTS): send Host, as HTTP/1.1 requires",
                code="host_not_allowed",
            )

    def _allows(self, header: bytes) -> bool:
        """Whether a `Host` header of this value passes."""
        value = header.decode("latin-1")
        ending = "]" if value.startswith("[") else ":"
        name = value.removeprefix("[").partition(ending)[0].lower().rstrip(".")
        if name in self.names or name.endswith(self.suffixes):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
