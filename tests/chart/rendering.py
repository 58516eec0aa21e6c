"""Runs helm and kubeconform, and finds things in what the chart makes of values."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "manifests" / "chart"
EARLIER: Final = Path(__file__).parent / "fixtures" / "penstock-0.1.0.tgz"
"""The chart's version before, as it was packaged."""
VALUES: Final = Path(__file__).parent / "values"
NEW_SETTINGS: Final = VALUES / "newest.yaml"
"""What ``EARLIER`` would refuse."""
TOOLS: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "penstock"
NEWEST: Final = "1.36.3"
MATRIX: Final[Mapping[str, tuple[Path, ...]]] = {
    "bundled": (ROOT / "penstock.yaml", VALUES / "bundled.yaml"),
    "plain": (ROOT / "penstock.yaml", VALUES / "plain.yaml"),
    "everything": (VALUES / "everything.yaml", NEW_SETTINGS),
}
"""Values files by name: together they turn every switch both ways."""

Object = dict[str, Any]


def tool(name: str) -> Path:
    """A program in the user's cache."""
    path = TOOLS / "bin" / name
    if not path.is_file():
        pytest.skip(f"{name} is not built; `make kubernetes-tools` builds it")
    return path


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run helm; the caller looks at its exit code."""
    return subprocess.run([tool("helm"), *arguments], capture_output=True, text=True, check=False, timeout=120)


def template(files: Iterable[Path], *, extra: str = "", version: str = NEWEST) -> subprocess.CompletedProcess[str]:
    """``helm template penstock``, with a further values file of the text ``extra``."""
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder, "extra.yaml")
        last.write_text(extra)
        given = [argument for file in (*files, last) for argument in ("-f", str(file))]
        return helm("template", "penstock", CHART, "--namespace", "penstock", "--kube-version", version, *given)


def render(name: str, *, extra: str = "") -> list[Object]:
    """Every object that the chart makes of the values of ``MATRIX``."""
    done = template(MATRIX[name], extra=extra)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if document]


def of_kind(objects: Iterable[Object], *kinds: str) -> Iterator[Object]:
    """Those of some kinds."""
    return (each for each in objects if each["kind"] in kinds)


def one(objects: Iterable[Object], kind: str, name: str) -> Object:
    """The one with this name."""
    (found,) = (each for each in of_kind(objects, kind) if each["metadata"]["name"] == name)
    return found


def pods(objects: Iterable[Object]) -> Iterator[tuple[str, Object]]:
    """Each pod template, with the name of what makes it."""
    for each in of_kind(objects, "Deployment", "StatefulSet", "Job"):
        yield f"{each['kind']}/{each['metadata']['name']}", each["spec"]["template"]


def containers(pod: Object) -> Iterator[Object]:
    """All of them, those that run first too."""
    yield from pod["spec"].get("initContainers", [])
    yield from pod["spec"]["containers"]
