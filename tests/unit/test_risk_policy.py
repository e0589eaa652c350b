"""The policy and reasons files: what is refused, in which words, and what a reload may change."""

import hashlib
import logging
import os
from pathlib import Path

import pytest

from services.risk.errors import PolicyError
from services.risk.policy import PolicyFile, parse_policy
from services.risk.reasons import ReasonTable
from weir.features.spec import FEATURES

HERE = Path(__file__).parents[2] / "services" / "risk"
GOOD = (HERE / "policy.toml").read_text(encoding="utf-8")
RULE = '[[rule]]\nid = "extra"\nwhen = [{ WHEN }]\nthen = "review"\ntext_en = "t"\ntext_zh = "t"\n'


def with_rule(when: str) -> str:
    return GOOD + RULE.replace("WHEN", when)


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def test_the_shipped_policy_is_valid_and_carries_its_files_hash():
    shipped = PolicyFile(HERE / "policy.toml", FEATURES)
    assert shipped.policy.sha256 == hashlib.sha256((HERE / "policy.toml").read_bytes()).hexdigest()
    assert len(shipped.in_force.rules.ids) == len(shipped.policy.rule_list)
    assert shipped.policy.degraded.approve_below is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version = ", "not valid TOML"),
        (replaced("review_at = 0.05", "review_at = 1.5"), "thresholds.review_at: "),
        (replaced("review_at = 0.05", "review_at = nan"), "thresholds.review_at: "),
        (replaced("review_at = 0.05", "review_at = 0.7"), "thresholds: review_at must not be"),
        (replaced("review_at = 0.05", ""), "thresholds.review_at: Field required"),
        (replaced("[cost]", "colour = 1\n[cost]"), "thresholds.colour: Extra inputs are not permitted"),
        (replaced('default = "review"', 'default = "approve"'), "degraded.default: "),
        (replaced("amount_max = 10_000_000.00", "amount_max = -1"), "limits.amount_max: "),
        (replaced("amount_max = 10_000_000.00", "amount_max = 0.00001"), "limits.amount_max: "),
        (replaced('id = "card_testing"', 'id = "Card testing"'), "rule[2].id: "),
        (replaced('id = "card_testing"', 'id = "burst_of_payments"'), "burst_of_payments stands twice"),
        (replaced('then = "decline"', 'then = "approve"'), "rule[2].then: "),
        (with_rule('feature="no_such", op=">", value=1'), "condition 1: the model has no feature 'no_such'"),
        (with_rule('feature="amount", op="~", value=1'), "rule[7].when[1].op: "),
        (with_rule('feature="amount", field="amount", op=">", value=1'), "give either feature or field"),
        (with_rule('op=">", value=1'), "give either feature or field"),
        (with_rule('field="amount", op=">", value="x"'), "value must be a number"),
        (with_rule('field="amount", op=">", value=[1]'), "`in` takes a list"),
        (with_rule('field="amount", op="in", value=[]'), "`in` takes a list"),
        (with_rule('field="amount", op=">", value=1.00001'), "at most 4 decimals"),
        (with_rule('field="channel", op="==", value="FAX"'), "no channel 'FAX'; there are POS, ECOM"),
        (with_rule('field="channel", op=">", value="POS"'), "channel is compared by == or in"),
        (with_rule('field="currency", op="==", value="euro"'), "no currency 'euro'"),
        (GOOD + "".join(RULE.replace("extra", f"r{k}").replace("WHEN", 'field="amount", op=">", value=1')
                        for k in range(64)), "rule: "),
        (GOOD.replace("[[rule]]", "[[rules]]"), "rules: Extra inputs"),
        ("\ufffe", "policy.toml: "),
    ],
)  # fmt: skip
def test_an_invalid_policy_is_one_line_with_file_and_field(tmp_path, text, says):
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PolicyError) as caught:
        PolicyFile(path, FEATURES)
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_one_line():
    with pytest.raises(PolicyError, match="not valid TOML"):
        parse_policy(b"\xff\xfe\x00", Path("policy.toml"))


def test_a_missing_policy_is_one_line(tmp_path):
    with pytest.raises(PolicyError, match="No such file"):
        PolicyFile(tmp_path / "policy.toml", FEATURES)


class Watched:
    """A policy file that the test rewrites, and what its reloads told."""

    def __init__(self, path: Path) -> None:
        self.path, self.told = path, []
        path.write_text(GOOD, encoding="utf-8")
        self.file = PolicyFile(path, FEATURES, self.told.append)

    def write(self, text: str) -> bool:
        before = self.path.stat().st_mtime_ns
        self.path.write_text(text, encoding="utf-8")
        # Two writes may fall into one tick of the file system's clock.
        os.utime(self.path, ns=(before + 1_000_000, before + 1_000_000))
        return self.file.reload_if_changed()


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path / "policy.toml")


def test_a_changed_policy_is_taken_once(watched):
    assert not watched.file.reload_if_changed()
    assert watched.write(GOOD.replace('version = "2026-11-24"', 'version = "next"'))
    assert watched.file.policy.version == "next"
    assert not watched.file.reload_if_changed()
    assert watched.told == ["loaded"]


def test_a_touched_policy_is_not_a_new_one(watched):
    assert not watched.write(GOOD)
    assert watched.told == []


def test_a_broken_policy_keeps_the_last_good_one_and_is_reported_once(watched, caplog):
    policy, rules = watched.file.policy, watched.file.in_force.rules
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert not watched.write(GOOD.replace("review_at = 0.05", "review_at = 5"))
        # An unknown feature is found only when rules are compiled; it leaves the thresholds alone too.
        assert not watched.write(with_rule('feature="no_such", op=">", value=1'))
    assert (watched.file.policy, watched.file.in_force.rules) == (policy, rules)
    assert watched.told == ["refused", "refused"]
    assert watched.write(GOOD + "\n# mended\n")
    assert watched.told == ["refused", "refused", "loaded"]


def test_a_broken_policy_that_is_put_back_is_the_one_in_force(watched):
    assert not watched.write("broken")
    assert watched.write(GOOD)
    assert watched.file.policy.version == "2026-11-24"


def test_a_policy_that_vanishes_keeps_the_last_good_one(watched):
    policy = watched.file.policy
    watched.path.unlink()
    for _ in range(2):
        assert not watched.file.reload_if_changed()
    assert watched.file.policy is policy
    assert watched.told == ["refused"]


def test_a_policy_that_is_moved_into_place_is_seen(watched, tmp_path):
    stamp = watched.path.stat()
    other = tmp_path / "new.toml"
    other.write_text(GOOD.replace("2026-11-24", "2026-11-25"), encoding="utf-8")
    os.utime(other, ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))
    other.rename(watched.path)
    assert watched.file.reload_if_changed()
    assert watched.file.policy.version == "2026-11-25"


def test_the_shipped_reasons_cover_each_feature_twice():
    table = ReasonTable.load(HERE / "reasons.toml", FEATURES)
    assert [text.feature for text in table.texts] == [*FEATURES, *FEATURES]
    assert len({text.code for text in table.texts}) == 2 * len(FEATURES)
    for text in table.texts:
        assert text.text_en.isascii()
        assert any("\u4e00" <= letter <= "\u9fff" for letter in text.text_zh)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no reason for feature amount"),
        ('[amount]\ncode = "x"\n', "amount.code: "),
        ('[amount]\ncode = "X1"\n', "amount.raises_en: Field required"),
        ("[amount", "not valid TOML"),
    ],
)
def test_invalid_reasons_are_one_line_with_file_and_field(tmp_path, text, says):
    path = tmp_path / "reasons.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PolicyError) as caught:
        ReasonTable.load(path, ("amount",))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_features_with_one_code_are_refused(tmp_path):
    path = tmp_path / "reasons.toml"
    entry = 'code = "X1"\nraises_en = "a"\nraises_zh = "a"\nlowers_en = "a"\nlowers_zh = "a"\n'
    path.write_text(f"[a]\n{entry}[b]\n{entry}")
    with pytest.raises(PolicyError, match="code X1 stands twice"):
        ReasonTable.load(path, ("a", "b"))
