"""The processors of our Bento distribution against a real broker, which is frozen, blocked and cut off."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.system.services import RabbitMQ, found_program

BENTO = Path(__file__).parents[2] / "src" / "bento"


@pytest.mark.slow
@pytest.mark.timeout(900)  # without a build cache Go compiles for minutes
def test_each_publish_has_its_own_outcome_whatever_the_broker_does(tmp_path: Path) -> None:
    go = found_program("go", "/usr/local/go/bin/go", "/usr/lib/go/bin/go")
    broker = RabbitMQ(tmp_path)
    broker.start()
    try:
        environment = {
            **broker.environment(),
            "HOME": os.environ["HOME"],
            "CI": "true",
            "CGO_ENABLED": "0",  # as `make bento` builds, whose compiled packages are then used again
            "AMQP_URL": broker.url,
            "MANAGEMENT_URL": broker.management_url.replace("://", f"://{broker.user}:{broker.password}@"),
            "BROKER_PROCESS_GROUP": str(broker.pid),
            "RABBITMQCTL": str(broker.rabbitmqctl()),
        }
        done = subprocess.run(
            [go, "test", "-mod=readonly", "-trimpath", "-count=1", "."],
            cwd=BENTO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
    finally:
        broker.stop()
