"""What a request may use at most, and what its answer cost: one decision for both lanes.

The realtime lane and the queue's acceptors reserve by ``measure``; whoever gets the model server's answer, in either
lane, reads it by ``read_whole`` and charges by ``local_charge`` what the server did not count.
"""

from __future__ import annotations

from typing import NamedTuple

from penstock.errors import InvalidRequest, NotFound
from penstock.lanes.bodies import output_tokens_max, read_answer
from penstock.lanes.counting import Bounds, local_usage
from penstock.lanes.generic import ROUTE, local_units, read_inference
from penstock.lanes.models import ServedModel
from penstock.lanes.requests import InferenceRequest
from penstock.quota.estimate import BODY_UNBOUNDED
from penstock.quota.events import Usage


class Measures(NamedTuple):
    """What a reserve says of a request's size: ``penstock.quota.operations.Reserve``'s fields of these names.

    Args:
        received_bytes: The body's length, where ``body_bytes`` is a bound in its place; else 0. For a job's message.
    """

    body_bytes: int
    prompts: int
    prompt_tokens: int | None
    outputs_bound: int
    received_bytes: int = 0

    def bounds(self, model: ServedModel) -> Bounds:
        """What an answer's usage is held against."""
        return Bounds(
            prompt=model.context * max(1, self.prompts), completion=self.outputs_bound, prompt_bytes=self.body_bytes
        )


def measure(request: InferenceRequest, model: ServedModel) -> Measures:
    """Measure a request before anything is reserved for it; a generic model's units are counted, and noted in it.

    Raises:
        InvalidRequest: The model does not answer this endpoint, or does not take so many units in one request.
    """
    check_protocol(request.route, model)
    known, body_bytes, received_bytes = request.prompt_tokens, request.body_bytes, 0
    if model.units is not None:
        known = request.prompt_tokens = model.units.known(request.body, body_bytes)
        if known is None:
            body_bytes, received_bytes = BODY_UNBOUNDED, body_bytes
        elif known > model.context:
            raise InvalidRequest(
                f"the request has {known} units, and this model takes {model.context} in one; send less"
            )
    outputs_bound = request.outputs * output_tokens_max(request, model)
    return Measures(body_bytes, request.prompts, known, outputs_bound, received_bytes)


def check_protocol(route: str, model: ServedModel) -> None:
    """A model of one protocol does not answer the other's requests.

    Raises:
        InvalidRequest: The route is the other's.
    """
    if (model.units is None) == (route == ROUTE):
        fix = "one of /v1, such as POST /v1/chat/completions" if route == ROUTE else "POST /v2/models/{name}/infer"
        raise InvalidRequest(f"the model does not answer this endpoint, but {fix}", param="model")


def model_not_found(name: str) -> NotFound:
    """For a model that nobody serves."""
    return NotFound(
        f"the model {name[:200]!r} does not exist; GET /v1/models lists those that do",
        param="model",
        code="model_not_found",
    )


def local_charge(request: InferenceRequest, model: ServedModel, bounds: Bounds, completion: int) -> Usage:
    """The charge where the model server's count is missing; ``completion`` tokens were counted here."""
    if model.units is not None:
        return local_units(request.prompt_tokens, request.body_bytes, model.bytes_per_token, most=bounds.prompt)
    return local_usage(request.body, completion, bounds, model.bytes_per_token)


def read_whole(data: bytes, request: InferenceRequest, model: ServedModel, bounds: Bounds) -> tuple[bytes, Usage]:
    """A whole answer as the client sees it, and what it is charged.

    Raises:
        UpstreamBroken: It is no answer of the model's protocol.
    """
    if model.units is not None:
        body, told = read_inference(data, model.name, model.units, request.prompt_tokens, most=bounds.prompt)
        return body, told or local_charge(request, model, bounds, 0)
    answer = read_answer(data, bounds, model.bytes_per_token)
    usage = local_charge(request, model, bounds, answer.tokens) if answer.usage is None else answer.usage
    return answer.body(model.name, usage), usage
