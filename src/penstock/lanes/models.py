"""A model as the lanes call it: what the configuration says, resolved to plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from penstock.lanes.generic import Units

PATHS: Final = {
    "chat.completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/chat/completions",
}
"""Where each route is found on an OpenAI-compatible model server: a response is made of a chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One model server.

    Args:
        url: Base address; with or without ``/v1`` at its end.
        headers: Lower-case names; the credential.
        weight: Its share when all are equally busy.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    weight: int = 1

    def address(self, route: str) -> str:
        """The URL of ``route``.

        Example:
            >>> Upstream(url="http://vllm:8000/v1/").address("embeddings")
            'http://vllm:8000/v1/embeddings'
        """
        return self.url.rstrip("/").removesuffix("/v1") + PATHS[route]

    def inference_address(self, model: str) -> str:
        """The URL of a generic model's inference.

        Example:
            >>> Upstream(url="http://triton:8000").inference_address("resnet")
            'http://triton:8000/v2/models/resnet/infer'
        """
        return f"{self.url.rstrip('/')}/v2/models/{quote(model, safe='')}/infer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that clients can name.

    Args:
        name: What clients call it; ``upstream_model`` what its servers do.
        context: Tokens that one prompt and its completion may have together.
        max_tokens: Of one output when the client does not say; written upstream.
        bytes_per_token: For counting here what the server did not report.
        units: How its requests are counted, if it is a generic model; None of one that speaks OpenAI's protocol.
        reports_running_usage: Its servers understand ``stream_options.continuous_usage_stats`` (vLLM).
    """

    name: str
    upstreams: tuple[Upstream, ...]
    upstream_model: str
    context: int
    max_tokens: int
    bytes_per_token: float = 4.0
    reports_running_usage: bool = False
    connect_s: float = 5.0
    first_byte_s: float = 60.0
    between_chunks_s: float = 30.0
    total_s: float = 600.0
    units: Units | None = None
