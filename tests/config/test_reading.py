"""Files become one tree, merged as Helm does, and nothing in them is guessed."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from penstock.config.reading import path_text, read_files, read_text


def write(folder: Path, **texts: str) -> list[Path]:
    paths = []
    for name, text in texts.items():
        path = folder / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def test_decimals_stay_decimals_and_names_stay_text() -> None:
    tree = read_text("a: 0.15\nb: 5e3\nno: off\n42: yes\nc: 1_000\nd: 12:30\ne: true\nf:\n", "f")
    assert tree.values == {
        "a": Decimal("0.15"),
        "b": Decimal(5000),
        "no": "off",
        "42": "yes",
        "c": 1000,
        "d": "12:30",
        "e": True,
        "f": None,
    }


def test_a_key_that_is_written_twice_is_a_problem_at_its_second_line() -> None:
    tree = read_text("a:\n  b: 1\n  c: 2\n  b: 3\n", "f.yaml")
    assert [(str(problem), problem.place) for problem in tree.problems] == [
        ("a.b: is written twice, first in line 2; keep one", "f.yaml:4")
    ]


def test_later_files_win_deeply_replace_lists_and_remove_by_null(tmp_path: Path) -> None:
    first = "a: {x: 1, y: [1, 2], z: {p: 1, q: 2}}\nb: 1\n"
    tree = read_files(write(tmp_path, first=first, second="a: {y: [3], z: {q: null}}\nc: 4\n"))
    assert tree.values == {"a": {"x": 1, "y": [3], "z": {"p": 1}}, "b": 1, "c": 4}
    assert tree.place(("a", "x")).endswith("first.yaml:1")
    assert tree.place(("a", "y", 0)).endswith("second.yaml:1")
    assert ("a", "y", 1) not in tree.places
    assert ("a", "z", "q") not in tree.places


def test_the_environment_is_not_interpolated() -> None:
    assert read_text("a: ${HOME}\nb: $HOME", "f").values == {"a": "${HOME}", "b": "$HOME"}


def test_anchors_and_merge_keys_work_as_in_other_yaml() -> None:
    text = "base: &base {x: 1, y: 2}\nmine:\n  <<: *base\n  y: 3\n"
    assert read_text(text, "f").values["mine"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    "text",
    ["a: &a [*a, *a]", "a: &a {b: *a, c: *a}", "a: &a {<<: *a, b: 1}", "a: &a {<<: [*a, *a], b: {<<: *a, c: *a}}"],
)
def test_an_alias_of_itself_is_a_problem_and_not_an_endless_walk(text: str) -> None:
    problems = read_text(text, "f").problems
    assert 1 <= len(problems) <= 4
    assert all("contains itself by an alias" in str(problem) for problem in problems)


def test_aliases_of_aliases_cannot_fill_the_memory() -> None:
    lines = ["a0: &a0 [1, 2]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]
    (problem,) = read_text("\n".join(lines), "f").problems
    assert "wanted fewer; repeat less by aliases" in str(problem)


def test_what_is_nested_too_deeply_is_a_problem() -> None:
    (problem,) = read_text("a: " + "[" * 40 + "]" * 40, "f").problems
    assert "is nested deeper than 32" in str(problem)


def test_broken_yaml_names_its_line() -> None:
    (problem,) = read_text("a: 1\nb: [1, 2\nc: 3\n", "f.yaml").problems
    assert str(problem).startswith("f.yaml:3: cannot be read as YAML: ")
    assert "expected ',' or ']'" in str(problem)
    assert "\n" not in str(problem)


def test_two_documents_in_one_file_are_refused() -> None:
    (problem,) = read_text("a: 1\n---\nb: 2\n", "f").problems
    assert "more than one document" in str(problem)


def test_a_file_that_is_missing_or_no_mapping_or_not_utf8_is_a_problem(tmp_path: Path) -> None:
    (listed,) = write(tmp_path, listed="- a\n")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: \xe9\n")
    problems = [str(problem) for problem in read_files([tmp_path / "none.yaml", listed, latin, tmp_path]).problems]
    assert len(problems) == 4
    assert "there is no such file" in problems[0]
    assert "found a list, wanted a mapping; begin with `models:`" in problems[1]
    assert "is not UTF-8 (byte 3)" in problems[2]
    assert "cannot be read" in problems[3]


def test_unknown_tags_and_odd_numbers_are_problems() -> None:
    problems = [str(problem) for problem in read_text("a: !env HOME\nc: !!int x\n? [1]\n: 2\n", "f").problems]
    assert len(problems) == 3
    assert problems[0] == "a: has the tag !env, which means nothing here; remove it"
    assert problems[1] == "c: found 'x', which is no number; write digits"
    assert problems[2] == "found a list as a key, wanted a name"


def test_a_path_quotes_names_that_hold_dots() -> None:
    assert path_text(("models", "qwen2.5:7b", "upstream", 0)) == 'models."qwen2.5:7b".upstream[0]'
    assert path_text(("models", "meta-llama/Llama", "context")) == "models.meta-llama/Llama.context"
