"""What a runbook tells whoever is on call to look for is there to be found, and each fault has its page."""

import re

import pytest

from infra.local import layout
from tests.faults.schedule import Kind

PAGES = sorted((layout.ROOT / "docs" / "runbooks").glob("*.md"))
SOURCES = [
    path.read_text(encoding="utf-8")
    for folder in ("weir", "services")
    for path in (layout.ROOT / folder).rglob("*.py")
    if "_proto" not in path.parts
]
WORD = re.compile(r"`([a-z]+(?:_[a-z]+)+)`")
METRIC = re.compile(r"\b(weir_[a-z_]+?)(?:_bucket|_sum|_count)?\b(?=[`{\s\[)])")
POLICY = (layout.ROOT / "services" / "risk" / "policy.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_names_only_metrics_log_lines_and_settings_that_there_are(page):
    text = page.read_text(encoding="utf-8")
    metrics = {name for name in METRIC.findall(text) if not name.endswith("_")}
    words = set(WORD.findall(text)) - metrics - set(Kind)
    source = "\n".join(SOURCES)
    missing = {name for name in metrics if f'"{name}"' not in source}
    missing |= {word for word in words if word not in source and word not in POLICY}
    assert not missing


def test_every_fault_is_in_a_runbook():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {kind for kind in Kind if f"`{kind}`" not in text} == set()
