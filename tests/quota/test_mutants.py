"""The maker of mutants breaks what it says it breaks, and the reviewed list names mutants that exist."""

from __future__ import annotations

import pytest

from tests.quota.mutants import HERE, PACKAGE, SLOWEST_LAST, Mutant, all_mutants, explained, mutants_of, survivors_of

SAMPLE = '''
TABLE = {}

def f(a, b):
    """Not a write."""
    fresh = a
    again = 1
    if 0 < a <= b and a is not b:
        again += 2
        a.x = 1
        a[0] = b
        a.append(b)
        del b[1]
    elif a in b:
        again = 3
    return again
'''


def test_each_comparison_and_each_write_is_broken_once() -> None:
    found = [mutant.mutation for mutant in mutants_of("sample.py", SAMPLE)]
    assert sorted(found) == sorted(
        [
            "0 < a <= b  ->  0 <= a <= b",
            "0 < a <= b  ->  0 < a < b",
            "a is not b  ->  a is b",
            "a in b  ->  a not in b",
            "without: again = 1",
            "without: again = 3",
            "without: again += 2",
            "without: a.x = 1",
            "without: a[0] = b",
            "without: a.append(b)",
            "without: del b[1]",
        ]
    )


@pytest.mark.slow
def test_mutants_are_told_apart_and_can_be_compiled() -> None:
    mutants = all_mutants()
    assert len({mutant.key for mutant in mutants}) == len(mutants) > 300
    for mutant in mutants:
        compile(mutant.source, mutant.file, "exec")


@pytest.mark.slow
def test_every_explanation_is_of_a_mutant_that_exists() -> None:
    assert set(explained()) - {mutant.key for mutant in all_mutants()} == set()
    assert all(explained().values())


def test_mutants_meet_every_test_of_the_model() -> None:
    tests = {each.stem for each in HERE.glob("test_*.py")}
    assert tests - set(SLOWEST_LAST) == {"test_mutants"}


@pytest.mark.slow
def test_a_mutant_that_loops_for_ever_is_ended() -> None:
    loops = "\n\ndef current_since_ms(*_: object) -> int:\n    while True:\n        pass\n"
    mutant = Mutant("restore.py", 1, "current_since_ms", "loops", (PACKAGE / "restore.py").read_text() + loops)
    assert survivors_of([mutant], 1, ("tests/quota/test_restore.py",), bound_s=8) == []
