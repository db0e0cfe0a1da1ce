"""docs/grafana.json asks for figures that exist, under labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from chairlift.frontend.api.metrics import Metrics
from tests.frontend.fake_client import FakeClient

pytestmark = pytest.mark.checkout
DASHBOARD = Path(__file__).parents[1] / "docs" / "grafana.json"
METRIC = re.compile(r"chairlift:[a-z0-9_]+")
GROUPING = re.compile(r"(?:by|ignoring) \(([a-z_, ]+)\)")
TEMPLATE = re.compile(r"\{\{(\w+)\}\}")


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return content


def targets() -> list[dict[str, str]]:
    """None where only the package is."""
    if not DASHBOARD.exists():
        return []
    return [target for panel in dashboard()["panels"] for target in panel["targets"]]


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """Of every sample that /metrics has, by its name, once each thing has happened."""
    metrics = Metrics(FakeClient())  # type: ignore[arg-type]  # stands in for the client
    metrics.answered("POST", "/v1/completions", 200)
    metrics.finished("stop")
    metrics.refused("overloaded")
    text = generate_latest(metrics.registry).decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {sample.name: {*sample.labels} for sample in samples}


def names_in(expression: str) -> Iterator[str]:
    yield from METRIC.findall(expression)


def test_there_are_queries() -> None:
    """A dashboard without any would pass every other test."""
    assert len(targets()) >= 20


@pytest.mark.parametrize("target", targets(), ids=lambda target: str(target["expr"])[:60])
def test_queries(target: dict[str, str], labels: dict[str, set[str]]) -> None:
    """Every name exists, and so does every label that it is grouped by or shown with."""
    expression = target["expr"]
    names = {*names_in(expression)}
    assert names and names <= labels.keys(), names - labels.keys()
    assert expression.count("(") == expression.count(")")
    wanted = {*TEMPLATE.findall(target["legendFormat"])}
    for group in GROUPING.findall(expression):
        wanted |= {*group.split(", ")}
    assert wanted <= set.union(*(labels[name] for name in names))


def test_the_variable_exists() -> None:
    """The list of jobs is asked of a figure that exists."""
    queries = [one["query"] for one in dashboard()["templating"]["list"] if one["type"] == "query"]
    assert queries == ["label_values(chairlift:steps_total, job)"]


def test_panels_do_not_overlap() -> None:
    """Each has its own place and number."""
    panels = dashboard()["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len({*places}) == len({panel["id"] for panel in panels}) == len(panels)
