"""From the configuration's models to those that the lanes call."""

from __future__ import annotations

from pathlib import Path

from penstock.config import load
from penstock.lanes.models import ServedModel, Upstream
from penstock.wiring.models import served_models

CONFIGURATION = """
models:
  chat:
    upstream: [{url: 'http://one:8000', weight: 2, credential: {env: TOKEN}}]
    upstream_model: org/chat
    context: 4096
    max_tokens: 512
    bytes_per_token: 3.5
    running_usage: true
    timeouts: {connect: 1s, first_byte: 2s, between_chunks: 3s, total: 4s}
"""


def test_every_setting_of_a_model_reaches_the_lanes(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text(CONFIGURATION)
    served = served_models(load([file]), local_url="", environment={"TOKEN": "up"})
    assert served == {
        "chat": ServedModel(
            name="chat",
            upstreams=(Upstream(url="http://one:8000", headers={"authorization": "Bearer up"}, weight=2),),
            upstream_model="org/chat",
            context=4096,
            max_tokens=512,
            bytes_per_token=3.5,
            reports_running_usage=True,
            connect_s=1.0,
            first_byte_s=2.0,
            between_chunks_s=3.0,
            total_s=4.0,
        )
    }


def test_the_bundled_model_is_found_where_it_listens(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text("models: {small: {upstream: local, context: 2048}}\n")
    served = served_models(load([file]), local_url="http://127.0.0.1:5", environment={})
    assert served["small"].upstreams == (Upstream(url="http://127.0.0.1:5"),)
    assert not served["small"].reports_running_usage
