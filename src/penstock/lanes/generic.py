"""Generic models, which speak the Open Inference Protocol: what a request to one costs, and what it answers.

Such a model has no tokens. Its configuration says what counts as a unit, and units stand wherever tokens do: in
limits, prices and the ledger, as those of the prompt. A unit is a request, a byte of the body, an element of a named
input, or what the model server reports. All but the last are exact before anything is sent, so that is what is held;
of the last the model's ``context`` is the bound.

Source:
    Open Inference Protocol (KServe V2), "Inference", https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Any, Final

import msgspec

from penstock.errors import InvalidRequest, UpstreamBroken
from penstock.quota.events import Usage, UsageSource

ROUTE: Final = "infer"
_encode: Final = msgspec.json.Encoder().encode
_decode_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode: Final = msgspec.json.Decoder().decode


class Per(StrEnum):
    """What a unit is."""

    REQUEST = "request"
    BYTE = "byte"
    ELEMENT = "element"
    USAGE = "usage"


@dataclass(frozen=True, slots=True)
class Units:
    """How a model's requests are counted; ``tensor`` is the input whose elements are."""

    per: Per
    tensor: str = ""

    def known(self, body: Mapping[str, Any], body_bytes: int) -> int | None:
        """Units of a request, exactly; None if only the answer tells.

        Raises:
            InvalidRequest: The input that is counted is not there.

        Example:
            >>> pixels = {"inputs": [{"name": "pixels", "shape": [2, 3], "data": [0, 0, 0, 0, 0, 0]}]}
            >>> Units(Per.ELEMENT, "pixels").known(pixels, 99), Units(Per.BYTE).known(pixels, 99)
            (6, 99)
        """
        match self.per:
            case Per.REQUEST:
                return 1
            case Per.BYTE:
                return body_bytes
            case Per.ELEMENT:
                return self._elements(body)
            case Per.USAGE:
                return None

    def _elements(self, body: Mapping[str, Any]) -> int:
        named = [tensor for tensor in body["inputs"] if tensor["name"] == self.tensor]
        if not named:
            message = f"inputs: {self.tensor} is missing, by whose elements this model is charged; add it"
            raise InvalidRequest(message, param="inputs")
        return sum(elements(tensor["data"]) for tensor in named)


def elements(data: Any) -> int:
    """Elements of a tensor's data, flat or nested."""
    return sum(map(elements, data)) if type(data) is list else 1


def local_units(known: int | None, body_bytes: int, bytes_per_token: float, *, most: int) -> Usage:
    """The charge where the model server did not say: what is known of the request, or its length as text's."""
    count = ceil(body_bytes / bytes_per_token) if known is None else known
    return Usage(min(count, most), 0, 0, UsageSource.LOCAL)


def read_inference(body: bytes, name: str, units: Units, known: int | None, *, most: int) -> tuple[bytes, Usage | None]:
    """A whole answer as the client sees it, and what it cost; None if the server was to say, and did not.

    Args:
        name: What clients call the model.
        most: Units that a request may have.

    Raises:
        UpstreamBroken: It is not an answer of the protocol.
    """
    try:
        fields = _decode_fields(body)
        parameters = _decode(fields["parameters"]) if "parameters" in fields else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamBroken("the model server's answer is not a JSON object") from error
    if "outputs" not in fields:
        raise UpstreamBroken("the model server's answer has no outputs")
    if "model_name" in fields and bytes(fields["model_name"]) != (ours := _encode(name)):
        fields["model_name"] = msgspec.Raw(ours)
        body = _encode(fields)
    if units.per is not Per.USAGE:
        assert known is not None
        return body, Usage(known, 0)
    told = parameters.get("units") if isinstance(parameters, dict) else None
    return body, Usage(told, 0) if type(told) is int and 0 <= told <= most else None
