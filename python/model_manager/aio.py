"""The asyncio calls that take a manager, for use without a method: `aembed`, `aresponse`, `start_response`."""

from ._async import aembed, aresponse, start_response

__all__ = ["aembed", "aresponse", "start_response"]
