"""Writes the body that a model server gets, and reads the whole answers that it gives."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from penstock.errors import UpstreamBroken
from penstock.lanes.counting import Bounds, choice_tokens, reported_usage
from penstock.lanes.models import ServedModel
from penstock.lanes.requests import InferenceRequest
from penstock.quota.events import Usage
from penstock.quota.records import record

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
MESSAGE_CHARACTERS_MAX: Final = 1000
_decode_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


def output_tokens_max(request: InferenceRequest, model: ServedModel) -> int:
    """The most that one output of this request gets: the client's wish up to the context, else the model's default."""
    if request.max_tokens is None:
        return model.max_tokens
    return min(request.max_tokens, model.context)


def bound_outputs(request: InferenceRequest, model: ServedModel) -> None:
    """Write into a request's body how many tokens each of its outputs may have, if it has any."""
    body = request.body
    if request.outputs:
        body["max_tokens"] = tokens_max = output_tokens_max(request, model)
        if "max_completion_tokens" in body:
            body["max_completion_tokens"] = tokens_max


def upstream_body(request: InferenceRequest, model: ServedModel) -> bytes:
    """The body for the model server: its own name for the model, bounded output, and usage asked for."""
    body = request.body
    if model.units is not None:
        return _encode(body)
    body["model"] = model.upstream_model
    bound_outputs(request, model)
    if request.stream:
        options: dict[str, Any] = dict(body.get("stream_options") or {})
        options["include_usage"] = True
        options.pop("continuous_usage_stats", None)
        if model.reports_running_usage:
            options["continuous_usage_stats"] = True
        body["stream_options"] = options
    return _encode(body)


@record(frozen=True, slots=True)
class Answer:
    """A whole answer. ``usage`` is the server's checked report; ``tokens`` were counted here if there is none."""

    received: bytes
    fields: dict[str, msgspec.Raw]
    usage: Usage | None
    tokens: int = 0

    def body(self, name: str, charged: Usage) -> bytes:
        """What the client gets: the model by its own name, and the usage that it is charged."""
        fields, our_name = self.fields, _encode(name)
        if self.usage is not None and bytes(fields.get("model", b"")) == our_name:
            return self.received
        fields["model"] = msgspec.Raw(our_name)
        if self.usage is None:
            usage = {"prompt_tokens": charged.prompt, "total_tokens": charged.prompt + charged.completion}
            if "choices" in fields:
                usage["completion_tokens"] = charged.completion
            fields["usage"] = msgspec.Raw(_encode(usage))
        return _encode(fields)


def read_answer(body: bytes, bounds: Bounds, bytes_per_token: float) -> Answer:
    """Read a whole answer with status 200.

    Raises:
        UpstreamBroken: It is not a JSON object with choices or data.
    """
    try:
        fields = _decode_fields(body)
        usage = reported_usage(_decode(fields["usage"]) if "usage" in fields else None, bounds)
        if usage is not None and ("choices" in fields or "data" in fields):
            return Answer(body, fields, usage)
        choices = _decode(fields["choices"]) if "choices" in fields else []
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamBroken("the model server's answer is not a JSON object") from error
    if not isinstance(choices, list) or not ("choices" in fields or "data" in fields):
        raise UpstreamBroken("the model server's answer has neither choices nor data")
    tokens = sum(choice_tokens(choice, bytes_per_token, streamed=False) for choice in choices)
    return Answer(body, fields, None, tokens)


def sanitised_error(body: bytes, status: int, model: ServedModel) -> bytes:
    """The model server's own refusal in OpenAI's form: four fields, bounded, by the client's name of the model."""
    try:
        found = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    error = found.get("error", found) if isinstance(found, dict) else None
    if not isinstance(error, dict):
        error = {"message": error if isinstance(error, str) else None}
    message = _text(error.get("message"), model) or f"the model server refused the request with status {status}"
    fields = {
        "message": message,
        "type": _text(error.get("type"), model) or "invalid_request_error",
        "param": _text(error.get("param"), model),
        "code": _text(error.get("code"), model),
    }
    return _encode({"error": fields})


def error_body(message: str, code: str) -> bytes:
    """A failure that is not the client's, in OpenAI's form."""
    return _encode({"error": {"message": message, "type": "server_error", "param": None, "code": code}})


def error_event(message: str, code: str) -> bytes:
    """An error in the middle of a streamed answer."""
    return b"data: " + error_body(message, code) + b"\n\n"


def _text(found: Any, model: ServedModel) -> str | None:
    if not isinstance(found, str) or not found:
        return None
    shown = "".join(letter if letter.isprintable() else " " for letter in found[:MESSAGE_CHARACTERS_MAX])
    return shown.replace(model.upstream_model, model.name)
