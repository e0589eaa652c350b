"""The reference page of the settings, and the examples that the docs give, hold against the classes."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.support.settings_tables import CLASSES, PAGE, page
from weir.config import WeirSettings

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    (path.relative_to(ROOT).as_posix(), text)
    for path in sorted((ROOT / "docs").rglob("*.md"))
    for text in re.findall(r"^```toml title=\"weir\.toml\"\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
]


def subclasses(settings: type[WeirSettings]) -> set[type[WeirSettings]]:
    found = set(settings.__subclasses__())
    return found.union(*(subclasses(each) for each in found)) if found else found


def test_the_page_has_every_setting_with_its_default_and_meaning() -> None:
    """Rewrite it with `python -m tests.support.settings_tables`."""
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text
    assert re.findall(r"<!-- settings of (\w+) -->", text) == [each.section for each in CLASSES]


def test_no_settings_class_is_left_out() -> None:
    """By the source, too, for a class that no test has imported."""
    ours = {each for each in subclasses(WeirSettings) if each.__module__.split(".")[0] != "tests"}
    assert ours <= set(CLASSES)
    in_source = {
        name
        for top in ("weir", "services", "infra")
        for path in (ROOT / top).rglob("*.py")
        for name in re.findall(r"^class (\w+)\(WeirSettings\)", path.read_text("utf-8"), re.MULTILINE)
    }
    assert in_source == {each.__name__ for each in CLASSES}


@pytest.mark.parametrize(("where", "text"), EXAMPLES, ids=[where for where, _ in EXAMPLES])
def test_an_example_in_the_docs_is_a_valid_settings_file(where: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "example.toml"
    file.write_text(text, encoding="utf-8")
    sections = set(tomllib.loads(text)) - {"roles"}
    known = {each.section: each for each in CLASSES}
    assert sections <= set(known), where
    for section in sections:
        known[section].load(file)


def test_the_docs_have_examples() -> None:
    assert any("your-own-servers" in where for where, _ in EXAMPLES)
