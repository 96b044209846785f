"""Former import path of `model_manager.server.routes.generation`."""

from .routes.generation.endpoints import *  # noqa: F403
from .routes.generation.events import EventStream  # noqa: F401
from .routes.generation.forms import Chat, Continuation  # noqa: F401
