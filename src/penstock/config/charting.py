"""What the chart needs of the settings, generated so that chart and code cannot differ: its values, with every default
and what it means, and the defaults of what has no fixed name (each model's)."""

from __future__ import annotations

from typing import Any

import yaml
from msgspec import Struct, inspect

from penstock.config.describing import described, given, written_default
from penstock.config.kubernetes_settings import Cache, Deploy
from penstock.config.settings import Capacity, Configuration, Model

_HEAD = """# The values are those of penstock.yaml, checked by the same rules: helm install penstock . -f penstock.yaml
# Printed by `make manifests` from the code. Every setting: docs/reference/configuration.md
"""
_SECTIONS = ("server", "queue", "kubernetes")
"""Those with defaults that do not depend on a name."""


def chart_values() -> str:
    """The chart's values.yaml: each default, under what it means; what has none is written as a comment."""
    root = inspect.type_info(Configuration)
    assert isinstance(root, inspect.StructType)
    lines = [_HEAD.rstrip()]
    default, meanings = Configuration(), described(Configuration)[1]
    for field in root.fields:
        if field.encode_name in _SECTIONS:
            lines += ["", f"# {meanings[field.encode_name]}"]
            lines += _section(field.encode_name, field, getattr(default, field.name), "")
    return "\n".join(lines) + "\n"


def model_defaults() -> str:
    """Defaults of a model, and of a server that the chart deploys, as YAML that templates merge into each."""
    return yaml.safe_dump(
        {
            "model": _defaults(Model(context=1)),
            "capacity": _defaults(Capacity(tokens_per_second=1, concurrency=1)),
            "deploy": _defaults(Deploy(image="")),
            "cache": _defaults(Cache(size="1Gi")),
        },
        sort_keys=True,
    )


def _defaults(struct: Struct) -> dict[str, Any]:
    """Every default that is not nothing, as it would be written."""
    info = inspect.type_info(type(struct))
    assert isinstance(info, inspect.StructType)
    found: dict[str, Any] = {}
    for field in info.fields:
        value = getattr(struct, field.name)
        if isinstance(value, Struct):
            found[field.encode_name] = _defaults(value)
        elif not field.required and value not in (None, (), [], {}):
            found[field.encode_name] = written_default(field, value)
    return found


def _section(name: str, field: inspect.Field, default: Any, indent: str) -> list[str]:
    type_ = given(field.type)
    if not isinstance(type_, inspect.StructType):
        return [f"{indent}{line}" for line in _setting(name, field, default)]
    if default is None:
        keys = ", ".join(each.encode_name for each in type_.fields)
        return [f"{indent}# {name}: {{{keys}}}"]
    meanings, inner = described(type_.cls)[1], f"{indent}  "
    lines = [f"{indent}{name}:"]
    for each in type_.fields:
        lines.append(f"{inner}# {meanings[each.encode_name]}")
        lines += _section(each.encode_name, each, getattr(default, each.name), inner)
    return lines


def _setting(name: str, field: inspect.Field, default: Any) -> list[str]:
    if default is None:
        return [f"# {name}:"]
    value = written_default(field, default)
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000).removesuffix("\n...\n").rstrip("\n")
    return [f"{name}: {text}"]
