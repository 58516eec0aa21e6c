"""OpenTelemetry's words for what is done with a model, as metrics and traces both use them.

Source:
    Semantic conventions for generative AI.
"""

from __future__ import annotations

from typing import Final

PROVIDER: Final = "penstock"
"""``gen_ai.provider.name``: model servers are asked under our names, whoever made the model."""

_OPERATIONS: Final = {
    "chat.completions": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}


def operation_name(route: str) -> str:
    """``gen_ai.operation.name`` of a route; its own name for what the conventions have no word for.

    Example:
        >>> operation_name("responses"), operation_name("infer")
        ('chat', 'infer')
    """
    return _OPERATIONS.get(route, route)
