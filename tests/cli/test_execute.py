"""``penstock execute`` where it cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.cli import main


def test_a_configuration_without_stores_is_refused_since_there_is_no_queue_to_serve(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text("models: {m: {upstream: 'http://127.0.0.1:1', context: 100, max_tokens: 10}}\n")
    with pytest.raises(SystemExit) as ended:
        main(["execute", "-c", str(file), "--port", "0", "--operations-port", "0"])
    assert ended.value.code == 1
    assert "stores: not given" in capfd.readouterr().err
