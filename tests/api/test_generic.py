"""Generic models: the Open Inference Protocol through the API, the real lane, and a simulated model server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from penstock.adapters.http import HttpClient
from penstock.api.application import application
from penstock.errors import InvalidRequest
from penstock.lanes.generic import Per, Units
from penstock.lanes.models import ServedModel, Upstream
from penstock.lanes.realtime import RealtimeLane
from tests.api.door import NARROW_TOKEN, Answer, Clock, listening
from tests.api.test_end_to_end import Whole

PIXELS = {"name": "pixels", "shape": [2, 3], "datatype": "FP32", "data": [0.5, 1, 2, 3, 4, 5]}
MASK = {"name": "mask", "shape": [2], "datatype": "BOOL", "data": [True, False]}


class Generic(Whole):
    """The same model name, counted by ``units``."""

    def __init__(self, units: Units) -> None:
        super().__init__()
        self._client = HttpClient()
        served = ServedModel(
            name="chat-small",
            upstreams=(Upstream(url=self.simulated.url),),
            upstream_model="simulated",
            context=500,
            max_tokens=1,
            units=units,
        )
        self.lane = RealtimeLane(
            self.door.store, self._client, Clock(), {"chat-small": served}, observer=self.door.watcher
        )
        self.services = replace(self.services, lane=self.lane)

    def infer(self, *inputs: dict[str, Any], simulate: str = "", **more: Any) -> Answer:
        parameters = {"parameters": {"simulate": simulate}} if simulate else {}
        body = {"inputs": list(inputs or (PIXELS, MASK)), **parameters}
        return self.door.ask("POST", "/v2/models/chat-small/infer", body, **more)


Opened = Callable[[Units], Generic]


@contextmanager
def opened(units: Units) -> Iterator[Generic]:
    generic = Generic(units)
    with listening(application(generic.services), around=generic.around) as (generic.door.port, _):
        yield generic
    assert not generic.door.store.inspected().holds


@pytest.fixture
def serve() -> Iterator[Opened]:
    with ExitStack() as stack:
        yield lambda units: stack.enter_context(opened(units))


@pytest.mark.parametrize(
    ("units", "charged"), [(Units(Per.REQUEST), 1), (Units(Per.ELEMENT, "pixels"), 6), (Units(Per.USAGE), 8)]
)
def test_an_inference_is_charged_by_its_rule_and_answered_under_our_name(
    serve: Opened, units: Units, charged: int
) -> None:
    generic = serve(units)
    answer = generic.infer()
    assert answer.status == 200
    assert answer.json()["model_name"] == "chat-small"
    assert answer.json()["outputs"] == [{"name": "elements", "shape": [2], "datatype": "INT64", "data": [6, 2]}]
    assert generic.used_tokens() == charged
    record = generic.door.watcher.last()
    assert (record.route, record.prompt_tokens, record.completion_tokens) == ("infer", charged, 0)
    assert record.tokens_held >= charged
    if units.per is not Per.USAGE:
        assert record.tokens_held == charged  # exact before anything was sent


def test_bytes_are_those_of_the_body(serve: Opened) -> None:
    generic = serve(Units(Per.BYTE))
    assert generic.infer(MASK).status == 200
    assert generic.used_tokens() == generic.door.watcher.last().tokens_held > 50


@pytest.mark.parametrize("fault", ["fault=no_usage", "fault=absurd_usage:negative"])
def test_units_that_the_server_does_not_tell_are_estimated_and_marked(serve: Opened, fault: str) -> None:
    generic = serve(Units(Per.USAGE))
    assert generic.infer(simulate=fault).status == 200
    record = generic.door.watcher.last()
    assert record.usage_source == "local"
    assert 0 < generic.used_tokens() == record.prompt_tokens <= 500


def test_an_error_before_an_answer_costs_nothing_and_a_lost_one_what_is_known(serve: Opened) -> None:
    generic = serve(Units(Per.ELEMENT, "pixels"))
    assert generic.infer(simulate="fault=refuse:500").status == 502
    assert generic.used_tokens() == 0
    assert generic.infer(simulate="fault=break_before").status == 502
    assert generic.used_tokens() == 6
    assert generic.infer(simulate="fault=garbage_body").status == 502


def test_more_units_than_the_model_takes_are_refused(serve: Opened) -> None:
    generic = serve(Units(Per.ELEMENT, "pixels"))
    answer = generic.infer({**PIXELS, "data": [0] * 501, "shape": [501]})
    assert (answer.status, "501 units" in str(answer.error()["message"])) == (400, True)
    assert generic.used_tokens() == 0


@pytest.mark.parametrize(
    ("tensor", "param"),
    [
        ({"name": "pixels"}, "inputs"),
        ({**PIXELS, "name": 5}, "inputs"),
        ({**PIXELS, "shape": [-1]}, "inputs"),
        ({**PIXELS, "shape": [True]}, "inputs"),
        ({**PIXELS, "data": "AAAA"}, "inputs"),
        ({**PIXELS, "parameters": {"shared_memory_region": "other"}}, "inputs"),
        ({**PIXELS, "parameters": {"binary_data_size": 4}}, "inputs"),
        (MASK, "inputs"),
    ],
)
def test_a_tensor_that_is_not_in_the_body_or_not_counted_is_refused(
    serve: Opened, tensor: dict[str, Any], param: str
) -> None:
    answer = serve(Units(Per.ELEMENT, "pixels")).infer(tensor)
    assert (answer.status, answer.error()["param"]) == (400, param)


def test_each_protocol_s_models_answer_their_own_endpoints_only(serve: Opened) -> None:
    generic = serve(Units(Per.REQUEST))
    chat = generic.door.chat()
    assert (chat.status, "/v2/models" in str(chat.error()["message"])) == (400, True)
    assert generic.infer(token=NARROW_TOKEN).status == 403
    assert generic.infer(token=None).status == 401


def test_a_model_is_described_and_ready_where_kserve_s_clients_look(serve: Opened) -> None:
    generic = serve(Units(Per.REQUEST))
    assert generic.door.ask("GET", "/v2/models/chat-small").json()["name"] == "chat-small"
    assert generic.door.ask("GET", "/v2/models/chat-small/ready").json() == {"name": "chat-small", "ready": True}
    assert generic.door.ask("GET", "/v2/models/none").status == 404
    generic.door.reasons = ("not now",)
    assert generic.door.ask("GET", "/v2/models/chat-small/ready").status == 503


def test_an_unknown_rule_needs_its_input() -> None:
    with pytest.raises(InvalidRequest):
        Units(Per.ELEMENT, "x").known({"inputs": [PIXELS]}, 1)
