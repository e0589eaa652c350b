"""What the documentation says outside the site's own checks: links of files beside it, examples, names."""

import re
import subprocess
from pathlib import Path

import pytest

from infra.local.tools import find_promtool
from services.risk.policy import PolicyFile
from weir.errors import MissingPart
from weir.features.payments import FEATURES

ROOT = Path(__file__).parents[2]
BESIDE_THE_SITE = sorted([*ROOT.glob("*.md"), *ROOT.glob("services/*/README.md")])
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def block(page: str, opening: str) -> str:
    """The fenced example of a page that begins with `opening`."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return text.split(f"```{opening}\n", 1)[1].split("\n```", 1)[0] + "\n"


@pytest.mark.parametrize("path", BESIDE_THE_SITE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_beside_the_site_leads_to_a_file(path):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_a_chinese_page_has_its_english_twin():
    alone = [page for page in PAGES if page.name.endswith(".zh.md") and not _english(page).exists()]
    assert not alone


def test_a_translation_has_the_same_code_but_for_its_words():
    """Commands are the same in both; what a page shows in another language is a word, not a step."""
    for page in PAGES:
        if page.name.endswith(".zh.md"):
            blocks = [
                len(re.findall(r"^```", each.read_text("utf-8"), re.M)) for each in (page, _english(page))
            ]
            assert blocks[0] == blocks[1], page.name


def _english(page: Path) -> Path:
    return page.with_name(page.name.removesuffix(".zh.md") + ".md")


def test_the_rule_in_the_guide_is_one_that_the_worker_takes(tmp_path):
    rule = block("how-to/write-a-rule.md", "toml").split("\n", 1)[1]
    file = tmp_path / "policy.toml"
    shipped = (ROOT / "services" / "risk" / "policy.toml").read_text(encoding="utf-8")
    file.write_text(shipped + rule, encoding="utf-8")
    assert PolicyFile(file, FEATURES).in_force.rules.ids[-1] == "large_night_transfer"


def test_alerts_name_metrics_of_the_reference():
    reference = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    known = set(re.findall(r"weir_\w+", reference))
    used = set(re.findall(r"weir_\w+", block("how-to/watch.md", 'yaml title="weir-alerts.yml"')))
    assert {re.sub("_bucket$", "", name) for name in used} <= known


@pytest.mark.parametrize(
    ("title", "kind"), [("prometheus.yml", "config"), ("weir-alerts.yml", "rules")], ids=["scrape", "alerts"]
)
def test_promtool_accepts_the_examples(title, kind, tmp_path):
    try:
        promtool = find_promtool()
    except MissingPart as missing:
        pytest.skip(str(missing))
    file = tmp_path / title
    file.write_text(block("how-to/watch.md", f'yaml title="{title}"'), encoding="utf-8")
    done = subprocess.run([promtool, "check", kind, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
