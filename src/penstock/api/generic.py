"""Requests to generic models, ``/v2/models/{name}/infer``: what must hold of one before anything is reserved for it."""

from __future__ import annotations

import re
from typing import Any, Final

from penstock.api.bodies import MODEL_CHARACTERS_MAX, Shape
from penstock.errors import InvalidRequest

_PATH: Final = re.compile(r"/v2/models/(.+)/infer")
_OUTSIDE: Final = ("shared_memory", "binary_data")
"""Parameters by which a tensor would be somewhere else than in the body."""


def inferred_model(path: str) -> str | None:
    """The model that an inference's path names; None of any other path.

    Example:
        >>> inferred_model("/v2/models/resnet/infer"), inferred_model("/v2/models/resnet")
        ('resnet', None)
    """
    found = _PATH.fullmatch(path)
    return None if found is None else found[1]


def read_inference_request(body: dict[str, Any], *, model: str) -> Shape:
    """Check a request.

    Raises:
        InvalidRequest: With the parameter's name.
    """
    inputs = body.get("inputs")
    if type(inputs) is not list or not inputs:
        raise _wrong("inputs", "must be a list of at least one tensor")
    for tensor in inputs:
        _check_tensor("inputs", tensor)
        if not _is_shape(tensor.get("shape")) or type(tensor.get("data")) is not list:
            raise _wrong("inputs", "each tensor needs a shape of integers, and its data as a list")
    outputs = body.get("outputs")
    if outputs is not None:
        if type(outputs) is not list:
            raise _wrong("outputs", "must be a list")
        for tensor in outputs:
            _check_tensor("outputs", tensor)
    if not 0 < len(model) <= MODEL_CHARACTERS_MAX:
        raise _wrong("model", f"must be a model's name, 1 to {MODEL_CHARACTERS_MAX} characters")
    return Shape(model, 1, 0, None, False, False, True)


def _check_tensor(where: str, tensor: Any) -> None:
    if type(tensor) is not dict or type(tensor.get("name")) is not str:
        raise _wrong(where, "each tensor must be an object with a name")
    parameters = tensor.get("parameters")
    if parameters is not None and (
        type(parameters) is not dict or any(name.startswith(_OUTSIDE) for name in parameters)
    ):
        raise _wrong(where, "tensors are sent in the body as JSON, and not in shared memory or as binary data")


def _is_shape(shape: Any) -> bool:
    return type(shape) is list and all(type(size) is int and size >= 0 for size in shape)


def _wrong(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {what}", param=name)
