"""The schema and the reference page say what the code does."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from msgspec import inspect

from penstock.config import examine_text
from penstock.config.describing import described, reference, schema
from penstock.config.reading import read_text
from penstock.config.settings import Configuration

ROOT = Path(__file__).parents[2]
SOUND = """
models: {m: {upstream: http://m:8000, context: 8192}}
plans: {team: {limits: [200k tokens/minute]}}
organisations: {acme: {plan: team}}
"""


def plain(value: Any) -> Any:
    """As a JSON reader would see it."""
    if isinstance(value, dict):
        return {key: plain(below) for key, below in value.items()}
    if isinstance(value, list):
        return [plain(below) for below in value]
    return float(value) if isinstance(value, Decimal) else value


def refusals(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema())
    return [error.message for error in validator.iter_errors(plain(read_text(text, "f").values))]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_the_schema_accepts_the_example() -> None:
    assert refusals((ROOT / "penstock.yaml").read_text(encoding="utf-8")) == []
    assert refusals(SOUND) == []
    secret = "{url: 'http://m', credential: {secret: vllm, key: token}, ca: {secret: vllm, key: ca.pem}}"
    assert refusals(SOUND.replace("http://m:8000", secret)) == []
    assert refusals(SOUND.replace("upstream: http://m:8000", "running_usage: true, deploy: {image: a}")) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("context: 8192", "contxt: 8192"),
        (", context: 8192", ""),
        ("context: 8192", "context: many"),
        ("context: 8192", "context: 0"),
        ("context: 8192", "context: 8192, price: {input: -1}"),
        ("context: 8192", "context: 8192, timeouts: {total: 60}"),
        ("context: 8192", "context: 8192, kind: kserve"),
        ("http://m:8000", "htp://m:8000"),
        ("http://m:8000", "{url: 'http://m', credential: secret}"),
        ("http://m:8000", "{url: 'http://m', credential: {secret: vllm}}"),
        ("upstream: http://m:8000, ", ""),
        ("context: 8192", "context: 8192, running_usage: 1"),
        ("context: 8192", "context: 8192, deploy: {image: a, cache: {size: big}}"),
        ("http://m:8000", "{url: 'http://m', credential: {env: A, file: b}}"),
        ("http://m:8000", "[]"),
        ("200k tokens/minute", "200k tokens"),
        ("200k tokens/minute", "200k tokens/fortnight"),
        ("acme:", "Acme:"),
        ("plan: team", "teams: {}"),
        ("models:", "model:"),
    ],
)
def test_the_schema_refuses_what_the_check_refuses(old: str, new: str) -> None:
    assert old in SOUND
    text = SOUND.replace(old, new)
    assert examine_text(text).problems
    assert refusals(text)


def test_every_setting_is_described() -> None:
    seen: list[type] = []

    def visit(type_: Any) -> None:
        if isinstance(type_, inspect.StructType) and type_.cls not in seen:
            seen.append(type_.cls)
            summary, meanings = described(type_.cls)
            assert summary.endswith(".")
            assert set(meanings) == {field.encode_name for field in type_.fields}, type_.cls
            for field in type_.fields:
                visit(field.type)
        elif isinstance(type_, inspect.UnionType):
            for member in type_.types:
                visit(member)
        else:
            for name in ("type", "value_type", "item_type"):
                if hasattr(type_, name):
                    visit(getattr(type_, name))

    visit(inspect.type_info(Configuration))
    assert len(seen) > 15


def test_the_reference_page_is_what_the_code_prints() -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference(), "run: penstock check --reference > docs/reference/configuration.md"


def test_defaults_in_the_schema_are_written_as_a_file_would() -> None:
    properties = schema()["$defs"]["Timeouts"]["properties"]
    assert properties["total"]["default"] == "10m"
    assert schema()["$defs"]["Plan"]["properties"]["reserve"]["default"] == "strict"
