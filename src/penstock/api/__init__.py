"""The API answers: OpenAI-compatible HTTP in front of the lanes, and the operations port.

``application`` and ``operations_application`` build ASGI applications of what wiring gives them; ``serve`` listens.
"""

from penstock.api.application import Application, application
from penstock.api.operations import operations_application
from penstock.api.server import serve, stop_on_signals
from penstock.api.services import Bounds, KeyCheck, Lane, ModelCard, Readiness, Services

__all__ = [
    "Application",
    "Bounds",
    "KeyCheck",
    "Lane",
    "ModelCard",
    "Readiness",
    "Services",
    "application",
    "operations_application",
    "serve",
    "stop_on_signals",
]
