"""The reference page of the schemas says what the schemas say."""

from tests.support.schema_tables import PAGE, page
from weir.codec import SUBJECTS


def test_the_page_lists_every_field_as_it_is() -> None:
    """Rewrite it with `python -m tests.support.schema_tables`."""
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text
    assert all(f"<!-- fields of {name} -->" in text for name in SUBJECTS)
