"""What `penstock.quota` exports is there, and the examples in its docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

from penstock import quota

MODULES = sorted(each.name for each in pkgutil.iter_modules(quota.__path__, "penstock.quota."))


def test_every_public_operation_answer_and_definition_is_exported_in_order() -> None:
    assert quota.__all__ == sorted(quota.__all__)
    exported = {getattr(quota, name) for name in quota.__all__}
    for module_name in ("operations", "definitions", "events"):
        module = importlib.import_module(f"penstock.quota.{module_name}")
        own = {each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__}
        assert {each.__name__ for each in own - exported} <= {"ReserveArguments"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_some_examples_were_found() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [each for name in MODULES for each in finder.find(importlib.import_module(name)) if each.examples]
    assert len(found) > 12


def test_the_model_reads_no_clock_and_draws_no_random_number() -> None:
    code = "import sys, penstock.quota; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"asyncio", "socket", "datetime", "random", "secrets", "msgspec"}.isdisjoint(loaded)
