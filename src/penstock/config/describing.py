"""The JSON schema and the reference page, both generated from the settings and their docstrings.

Editors, the chart's values.schema.json and docs/reference/configuration.md use them; tests keep them equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from msgspec import NODEFAULT, inspect

from penstock.config.settings import Configuration, Model
from penstock.config.values import FileReference, Secret, Setting
from penstock.config.walking import (
    ANY_NAME,
    NAMES,
    NOTATIONS,
    SECRET_KEY_PATTERN,
    SECRET_NAME_PATTERN,
    VARIABLE_PATTERN,
    wanted_text,
)

_REFERENCES = (Secret, FileReference)
_WRITTEN = {
    Secret: "`{env: NAME}`, `{file: PATH}` or `{secret: NAME, key: KEY}`",
    FileReference: "`{file: PATH}` or `{secret: NAME, key: KEY}`",
}


def schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of penstock.yaml."""
    definitions: dict[str, Any] = {}
    root = inspect.type_info(Configuration)
    assert isinstance(root, inspect.StructType)
    top = _struct_schema(root, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "penstock.yaml",
        **top,
        "$defs": dict(sorted(definitions.items())),
    }


def _schema(type_: inspect.Type, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    type_ = given(type_)
    if isinstance(type_, inspect.Metadata):
        notation = _notation(type_)
        return _upstreams_schema(type_, definitions) if notation == "upstreams" else dict(NOTATIONS[notation].schema)
    if isinstance(type_, inspect.StructType):
        key = type_.cls.__name__
        if key not in definitions:
            definitions[key] = {}
            definitions[key] = _struct_schema(type_, definitions)
        return {"$ref": f"#/$defs/{key}"}
    if isinstance(type_, inspect.BoolType):
        return {"type": "boolean"}
    if isinstance(type_, inspect.ListType):
        return {"type": "array"}
    if isinstance(type_, inspect.DictType):
        if isinstance(type_.value_type, inspect.AnyType):
            return {"type": "object"}
        below = _schema(type_.value_type, name, definitions)
        pattern = NAMES.get(name, ANY_NAME)[0]
        return {"type": "object", "propertyNames": {"pattern": pattern}, "additionalProperties": below}
    if isinstance(type_, inspect.VarTupleType):
        return {"type": "array", "items": _schema(type_.item_type, name, definitions)}
    if isinstance(type_, inspect.EnumType):
        return {"enum": [member.value for member in type_.cls]}
    return {"type": "string", "minLength": 1}


def _struct_schema(type_: inspect.StructType, definitions: dict[str, Any]) -> dict[str, Any]:
    summary, meanings = described(type_.cls)
    properties: dict[str, Any] = {}
    for field in type_.fields:
        written = _schema(field.type, field.encode_name, definitions)
        default = _default(field)
        properties[field.encode_name] = {
            **written,
            "description": meanings[field.encode_name],
            **({"default": default} if default is not None else {}),
        }
    found: dict[str, Any] = {
        "type": "object",
        "description": summary,
        "properties": properties,
        "additionalProperties": False,
    }
    required = [field.encode_name for field in type_.fields if field.required]
    if type_.cls is Configuration:
        required = ["models"]
        properties["models"]["minProperties"] = 1
    if type_.cls is Model:
        found["anyOf"] = [{"required": ["upstream"]}, {"required": ["deploy"]}]
    if type_.cls in _REFERENCES:
        found |= _reference_schema(properties)
    return found | ({"required": required} if required else {})


def _reference_schema(properties: dict[str, Any]) -> dict[str, Any]:
    """Exactly one way, and a key beside a Secret and nowhere else."""
    if "env" in properties:
        properties["env"]["pattern"] = VARIABLE_PATTERN
    properties["file"] = {"type": "string", "minLength": 1, "description": properties["file"]["description"]}
    properties["secret"]["pattern"] = SECRET_NAME_PATTERN
    properties["key"]["pattern"] = SECRET_KEY_PATTERN
    ways = [name for name in properties if name != "key"]
    return {
        "oneOf": [{"required": [way]} for way in ways],
        "dependentRequired": {"secret": ["key"], "key": ["secret"]},
    }


def _upstreams_schema(type_: inspect.Metadata, definitions: dict[str, Any]) -> dict[str, Any]:
    assert isinstance(type_.type, inspect.VarTupleType)
    one = [NOTATIONS["url"].schema, _schema(type_.type.item_type, "upstream", definitions)]
    return {"anyOf": [*one, {"type": "array", "minItems": 1, "items": {"anyOf": one}}]}


def described(cls: type) -> tuple[str, dict[str, str]]:
    """A struct's first paragraph, and what its docstring and those of its bases say of each setting."""
    base = cls.__base__
    meanings = described(base)[1] if base is not None and base is not Setting and base is not object else {}
    text = re.sub(r"\n[ ]{4}", "\n", cls.__doc__ or "")
    summary, _, arguments = text.partition("\n\nArgs:\n")
    name = ""
    for line in arguments.splitlines():
        if match := re.match(r" {4}(\w+): (.*)", line):
            name = match[1]
            meanings[name] = match[2]
        elif line.strip():
            meanings[name] += f" {line.strip()}"
    return " ".join(summary.split()), meanings


def given(type_: inspect.Type) -> inspect.Type:
    """Without "or nothing"."""
    if isinstance(type_, inspect.UnionType):
        return next(member for member in type_.types if not isinstance(member, inspect.NoneType))
    return type_


def _notation(type_: inspect.Metadata) -> str:
    return str((type_.extra or {})["notation"])


def _default(field: inspect.Field) -> Any:
    """A default as it would be written; None where there is none, or it is a section."""
    value = field.default
    if value is NODEFAULT or value is None or not isinstance(value, str | int | float):
        return None
    return written_default(field, value)


def written_default(field: inspect.Field, value: Any) -> Any:
    """A default as it would be written in the file."""
    type_ = given(field.type)
    if isinstance(type_, inspect.Metadata) and NOTATIONS[_notation(type_)].write is not str:
        return NOTATIONS[_notation(type_)].write(value)
    if isinstance(value, tuple):
        return list(value)
    return value.value if isinstance(type_, inspect.EnumType) and hasattr(value, "value") else value


# --- the reference page ---------------------------------------------------------------------------------------

_HEAD = """# Configuration reference

Every setting of `penstock.yaml`. This page is printed by `penstock check --reference`, from the code; a test fails
if the two differ. How to write one, step by step: [setup](../02-core-components/api-service/setup.md).

How values are written:

| kind | examples |
|---|---|
| duration | `500ms`, `60s`, `10m`, `24h`, `7d`; above 0 |
| amount | `8192`, `8k`, `1.5M`, `2_000_000`; k, M and B are thousands, millions and billions |
| usd | `0.15`, `12.50`; parsed in decimal arithmetic, never rounded |
| limit | `200k tokens/minute`, `600 requests per minute`, `300 usd/month`, `32 concurrent`, `2M tokens enqueued` |
"""


def reference() -> str:
    """The reference page, Markdown."""
    root = inspect.type_info(Configuration)
    assert isinstance(root, inspect.StructType)
    paths: dict[type, list[str]] = {}
    structs: dict[type, inspect.StructType] = {}
    for path, struct in _sections(root, ""):
        paths.setdefault(struct.cls, []).append(f"`{path}`" if path else "The file")
        structs[struct.cls] = struct
    parts = [_section(", ".join(paths[cls]), struct) for cls, struct in structs.items()]
    for cls, title in ((Secret, "A secret, by reference"), (FileReference, "A file, by reference")):
        found = inspect.type_info(cls)
        assert isinstance(found, inspect.StructType)
        parts.append(_section(title, found))
    return "\n".join([_HEAD, *parts])


def _sections(struct: inspect.StructType, path: str) -> Iterator[tuple[str, inspect.StructType]]:
    yield path, struct
    for field in struct.fields:
        here = f"{path}.{field.encode_name}" if path else field.encode_name
        type_ = given(field.type)
        if isinstance(type_, inspect.DictType):
            here, type_ = f"{here}.NAME", type_.value_type
        if isinstance(type_, inspect.Metadata) and isinstance(type_.type, inspect.VarTupleType):
            type_ = type_.type.item_type
        if isinstance(type_, inspect.StructType) and type_.cls not in _REFERENCES:
            yield from _sections(type_, here)


def _section(title: str, struct: inspect.StructType) -> str:
    summary, meanings = described(struct.cls)
    rows = ["| setting | written as | default | meaning |", "|---|---|---|---|"]
    for field in struct.fields:
        default = _default(field)
        shown = "required" if field.required else f"`{default}`" if default is not None else ""
        meaning = meanings[field.encode_name].replace("|", "\\|")
        rows.append(f"| `{field.encode_name}` | {_written(field.type)} | {shown} | {meaning} |")
    return "\n".join([f"## {title}", "", summary, "", *rows, ""])


def _written(type_: inspect.Type) -> str:
    type_ = given(type_)
    if isinstance(type_, inspect.StructType):
        return _WRITTEN.get(type_.cls, "section")
    if isinstance(type_, inspect.DictType):
        if isinstance(type_.value_type, inspect.StrType):
            return "text by name"
        free = isinstance(type_.value_type, inspect.AnyType | inspect.DictType)
        return "free-form" if free else "sections by name"
    if isinstance(type_, inspect.VarTupleType):
        item = type_.item_type
        if isinstance(item, inspect.EnumType):
            return f"list of {', '.join(str(member.value) for member in item.cls)}"
        return "list of text" if isinstance(item, inspect.StrType) else "list of limits"
    if isinstance(type_, inspect.Metadata) and _notation(type_) == "upstreams":
        return wanted_text(type_)
    return _notation(type_) if isinstance(type_, inspect.Metadata) else wanted_text(type_)
