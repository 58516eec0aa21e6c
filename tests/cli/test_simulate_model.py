"""``penstock simulate-model`` as a process: it ends in order whenever it is told to."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

BOUND_S = 60


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sent_as_soon_as_the_address_is_told_ends_it_in_order(told: signal.Signals) -> None:
    command = [sys.executable, "-m", "penstock", "simulate-model", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("simulated model on http://127.0.0.1:")
            process.send_signal(told)
            assert process.wait(BOUND_S) == 0
            assert process.stderr is not None
            assert process.stderr.read() == "simulated model stopped\n"
        finally:
            process.kill()


def test_an_address_that_is_taken_is_refused_with_its_fix() -> None:
    command = [sys.executable, "-m", "penstock", "simulate-model", "--port", "1", "--host", "192.0.2.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert done.returncode == 1
    assert "cannot use 192.0.2.1:1" in done.stderr
    assert "--port 0" in done.stderr
