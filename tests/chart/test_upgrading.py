"""From the chart's version before to this one: what the API lets nobody change stays as it was.

``fixtures`` keeps each version as it was packaged. What an upgrade really does is seen in ``tests/cluster``.
"""

from __future__ import annotations

import pytest
import yaml

from tests.chart.rendering import CHART, EARLIER, MATRIX, NEW_SETTINGS, NEWEST, Object, helm, of_kind

pytestmark = [pytest.mark.kubernetes]
whatever_the_values = pytest.mark.parametrize("name", MATRIX)
MAY_CHANGE = {
    "StatefulSet": {
        "replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy", "minReadySeconds",
    },
    "Job": {"suspend", "parallelism"},
    "PersistentVolumeClaim": set[str](),
    "Deployment": {
        "replicas", "template", "strategy", "minReadySeconds", "revisionHistoryLimit", "paused",
        "progressDeadlineSeconds",
    },
}  # fmt: skip
"""Of a spec. Any other change is refused by the API server, once the object is there."""


def made(chart: str, name: str) -> dict[tuple[str, str], Object]:
    files = [file for file in MATRIX[name] if chart != str(EARLIER) or file != NEW_SETTINGS]
    given = [argument for file in files for argument in ("-f", str(file))]
    done = helm("template", "penstock", chart, "--namespace", "penstock", "--kube-version", NEWEST, *given)
    assert done.returncode == 0, done.stderr
    documents = [document for document in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if document]
    return {(each["kind"], each["metadata"]["name"]): each for each in of_kind(documents, *MAY_CHANGE)}


@whatever_the_values
def test_nothing_changes_that_may_not(name: str) -> None:
    before, after = made(str(EARLIER), name), made(str(CHART), name)
    both = before.keys() & after.keys()
    assert {kind for kind, _ in both} >= {"Deployment"}
    for kind, called in both:
        old, new = (
            {key: value for key, value in each[kind, called]["spec"].items() if key not in MAY_CHANGE[kind]}
            for each in (before, after)
        )
        assert old == new, (kind, called)


@whatever_the_values
def test_what_holds_data_is_still_there(name: str) -> None:
    """A StatefulSet or a claim of another name would begin with nothing in it."""
    before, after = made(str(EARLIER), name), made(str(CHART), name)
    holding = {(kind, called) for kind, called in before if kind in ("StatefulSet", "PersistentVolumeClaim")}
    assert holding <= after.keys()
    services = {called for kind, called in before if kind == "Deployment"}
    assert services <= {called for kind, called in after if kind == "Deployment"}


def test_this_version_is_another_one() -> None:
    versions = [yaml.safe_load(helm("show", "chart", chart).stdout)["version"] for chart in (EARLIER, CHART)]
    assert versions == ["0.1.0", "0.2.0"]
