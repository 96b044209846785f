"""The asyncio calls that take a manager, for use without a method: `aembed`, `aresponse`, `start_response`."""

from ._async import aresponse, start_response
from ._vectors import aembed

__all__ = ["aembed", "aresponse", "start_response"]
