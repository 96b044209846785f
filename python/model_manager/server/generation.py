"""Former import path of `model_manager.server.routes.generation`."""

from .routes.generation.endpoints import *  # noqa: F403
from .routes.generation.events import EventStream as EventStream
from .routes.generation.forms import Chat as Chat, Continuation as Continuation
