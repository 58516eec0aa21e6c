"""What is said of a management API that does not answer: by its own name, and with what to check."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
import yaml

from penstock.config import load
from penstock.errors import StoreUnavailable
from penstock.wiring.broker import open_management


def test_a_management_api_that_is_away_is_named_with_its_setting(tmp_path: Path) -> None:
    async def ask(port: int) -> None:
        stores = {
            "redis": {"url": "redis://localhost"},
            "postgresql": {"url": "postgresql://localhost/penstock"},
            "rabbitmq": {"url": "amqp://localhost", "management": f"http://127.0.0.1:{port}"},
        }
        file = tmp_path / "penstock.yaml"
        file.write_text(yaml.safe_dump({"models": {"m": {"upstream": "http://m", "context": 4096}}, "stores": stores}))
        async with open_management(load([file]), None, {}) as api:
            await api.ask("GET", "overview")

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(
            StoreUnavailable, match=r"the broker cannot be reached: .*; check stores\.rabbitmq\.management"
        ):
            asyncio.run(ask(held.getsockname()[1]))
