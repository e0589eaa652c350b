"""The same event always has the same id, and the fast path agrees with the standard library."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.ids import NAMESPACE, dead_letter_id, decision_id, decision_ids

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(words, st.lists(words, max_size=20), words)
def test_the_fast_ids_are_the_standard_librarys_uuid5(tenant, event_ids, kind):
    expected = [uuid.uuid5(NAMESPACE, f"{tenant}\0{kind}\0{event_id}") for event_id in event_ids]
    assert decision_ids(tenant, [e.encode() for e in event_ids], kind) == [u.bytes for u in expected]
    assert [decision_id(tenant, e, kind) for e in event_ids] == expected


def test_an_id_differs_by_tenant_kind_and_event():
    ids = {decision_id(t, e, k) for t in ("a", "ab") for e in ("b", "bc") for k in ("k", "c")}
    assert len(ids) == 8
    assert all(i.version == 5 for i in ids)


def test_the_namespace_never_changes():
    assert uuid.uuid5(uuid.NAMESPACE_URL, "weir:decision") == NAMESPACE
    assert str(decision_id("bank", "e-1", "payment_fraud")) == "0b808aa0-d1b0-5127-be35-ad983636e8ee"
    assert str(dead_letter_id("bank.transactions", 2, 17)) == "15483a28-ff17-5e29-9e0a-7f4d7dd49baa"


def test_a_nul_in_tenant_or_kind_is_refused():
    with pytest.raises(ValueError, match="NUL"):
        decision_ids("a\0b", [b"e"], "k")
