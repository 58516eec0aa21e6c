"""Strict schemas for kubeconform, made of what the projects themselves publish as Go modules.

``python -m tests.chart.schemas FOLDER`` writes them: for each version of Kubernetes one file for each kind, from the
API description in its own module, and one for each kind of the custom resources that the chart uses. Unknown fields
are refused everywhere but where the API takes anything.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

KUBERNETES: Final = ("1.34.0", "1.35.0", "1.36.3")
CUSTOM: Final = {
    "github.com/kedacore/keda/v2@v2.21.0": "config/crd/bases/keda.sh_*.yaml",
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": "example/prometheus-operator-crd/*.yaml",
    "sigs.k8s.io/gateway-api@v1.6.3": "config/crd/standard/*.yaml",
    "github.com/external-secrets/external-secrets@v1.3.2": "config/crds/bases/external-secrets.io_externalsecrets.yaml",
}


class _Loader(yaml.CSafeLoader):
    """Reads the plain `=` that one description has among its values as text."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda _, node: str(node.value))


def module(name: str) -> Path:
    """The folder of a Go module, downloaded and checked by Go's own means."""
    told = subprocess.run(["go", "mod", "download", "-json", name], capture_output=True, text=True, check=False)
    found = json.loads(told.stdout or "{}")
    if told.returncode or "Dir" not in found:
        raise SystemExit(f"{name} cannot be downloaded: {found.get('Error') or told.stderr.strip()}")
    return Path(found["Dir"])


def strict(schema: Any) -> Any:
    """The same schema, which refuses what it does not name, wherever it names anything."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if "properties" in found and "additionalProperties" not in found:
        found["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        found = {"oneOf": [{"type": "string"}, {"type": "integer"}]}
    return found


def of_kubernetes(version: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each kind of the API, as kubeconform names its file, with every reference within the file itself."""
    path = module(f"k8s.io/kubernetes@v{version}") / "api" / "openapi-spec" / "swagger.json"
    published = json.loads(path.read_text())["definitions"]
    definitions = {name: _quantities(name, strict(definition)) for name, definition in published.items()}
    for name, definition in definitions.items():
        for kind in published[name].get("x-kubernetes-group-version-kind", []):
            group = f"{kind['group'].split('.')[0]}-" if kind["group"] else ""
            needed = _reachable(name, definitions)
            yield f"{kind['kind'].lower()}-{group}{kind['version']}".lower(), {
                **definition, "definitions": {each: definitions[each] for each in needed},
            }  # fmt: skip


def of_custom_resources() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each kind of the custom resources that the chart may write."""
    for name in CUSTOM:
        for definition in custom_resource_definitions(name):
            spec = definition["spec"]
            for version in spec["versions"]:
                schema = strict(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                yield f"{spec['names']['kind']}-{spec['group'].split('.')[0]}-{version['name']}".lower(), schema


def custom_resource_definitions(name: str) -> Iterator[dict[str, Any]]:
    """Those that a module of ``CUSTOM`` publishes, as its project installs them."""
    for path in sorted(module(name).glob(CUSTOM[name])):
        for document in yaml.load_all(path.read_text(), Loader=_Loader):
            if document and document.get("kind") == "CustomResourceDefinition":
                yield document


def _quantities(name: str, definition: dict[str, Any]) -> dict[str, Any]:
    """Quantities and their like may be written as numbers."""
    if name.endswith(("resource.Quantity", "intstr.IntOrString")):
        return {"oneOf": [{"type": "string"}, {"type": "number"}]}
    return definition


def _reachable(name: str, definitions: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    open_names = [name]
    while open_names:
        for each in _references(definitions[open_names.pop()]):
            if each not in found:
                found.add(each)
                open_names.append(each)
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for each in schema:
            yield from _references(each)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value.removeprefix("#/definitions/")
            else:
                yield from _references(value)


def write(folder: Path) -> None:
    """Write all of them; the folder of a version is there when it is whole."""
    for version in KUBERNETES:
        _write(folder / f"v{version}", of_kubernetes(version))
    _write(folder / "custom", of_custom_resources())


def _write(folder: Path, schemas: Iterator[tuple[str, dict[str, Any]]]) -> None:
    if folder.is_dir():
        return
    draft = folder.with_name(f"{folder.name}.draft")
    draft.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, schema in schemas:
        (draft / f"{name}.json").write_text(json.dumps(schema))
        count += 1
    draft.rename(folder)
    sys.stderr.write(f"{folder.name}: {count} schemas\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
