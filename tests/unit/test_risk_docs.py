"""The reference pages of metrics and policy name what the code has, no more and no less."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.risk.policy import Cost, Degraded, Limits, Rule, Thresholds
from services.risk.reasons import Entry
from weir.obs.metrics import Metrics
from weir.obs.stream_metrics import StreamMetrics

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def section(page: str, title: str) -> str:
    text = (REFERENCE / page).read_text(encoding="utf-8")
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def first_column(text: str) -> list[str]:
    """The code words that stand first in the rows of a section's tables."""
    cells = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    return [word for cell in cells for word in re.findall(r"`([^`]*)`", cell)]


def test_every_shared_metric_is_documented_with_its_labels():
    registry = CollectorRegistry()
    Metrics("risk", registry).model("risk")
    StreamMetrics("risk", registry)
    families = {family.name: family for family in registry.collect()}
    rows = re.findall(r"^\| `(weir_\w+)` \| ([^|]*) \|", section("metrics.md", "Shared"), re.MULTILINE)
    assert {name.removesuffix("_total") for name, _ in rows} == set(families)
    for name, labels in rows:
        family = families[name.removesuffix("_total")]
        found = {label for sample in family.samples for label in sample.labels} - {"le"}
        # A counter that nobody has touched shows no labels yet.
        assert not found or found == set(re.findall(r"`(\w+)`", labels)), name


def test_every_policy_field_is_documented():
    tables = {"thresholds": Thresholds, "cost": Cost, "degraded": Degraded, "limits": Limits}
    fields = [f"{table}.{name}" for table, model in tables.items() for name in model.model_fields]
    assert first_column(section("policy.md", "Fields")) == ["version", *fields]


@pytest.mark.parametrize(("title", "model"), [("Rules", Rule), ("Reasons", Entry)])
def test_every_field_of_a_table_is_documented(title, model):
    documented = {word for word in first_column(section("policy.md", title)) if re.fullmatch(r"\w+", word)}
    assert documented - {"feature"} == set(model.model_fields)
