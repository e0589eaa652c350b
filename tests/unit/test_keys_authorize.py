"""The shipped policy as a table: what each role may do is listed, and everything else is denied."""

import itertools
from pathlib import Path

import pytest

from services.keys.authorize import PURPOSE_OF, Action, Policy, Rule, check_name, check_word, enforce
from services.keys.settings import KeysServiceSettings
from weir.errors import AccessDenied, BadInput, ConfigError

POLICY_FILE = KeysServiceSettings.model_fields["policy_file"].default
POLICY = Policy.load(POLICY_FILE)
ROLES = ("risk-worker", "ledger", "reader", "analyst", "replay", "admin", "monitor", "stranger", "")
DECISIONS, DLQ, PLAIN = "weir.decisions/C3", "weir.risk.dlq/C3", "bank.transactions/C3"
REPLAYED = "weir.replay.decisions/C3"
DATA_KEYS = (DECISIONS, DLQ, PLAIN, REPLAYED)
READING = ("ledger", "delivery", "investigation", "replay", "curiosity")

ALLOWED = {
    ("risk-worker", Action.SEAL, DECISIONS, "sealing"),
    ("risk-worker", Action.SEAL, DLQ, "sealing"),
    ("risk-worker", Action.PSEUDONYMISE, "tenant/bank", "pseudonymising"),
    ("ledger", Action.OPEN, DECISIONS, "ledger"),
    ("reader", Action.OPEN, DECISIONS, "delivery"),
    ("analyst", Action.OPEN, DECISIONS, "investigation"),
    ("analyst", Action.OPEN, DLQ, "investigation"),
    ("analyst", Action.OPEN, DLQ, "replay"),
    ("analyst", Action.OPEN, REPLAYED, "investigation"),
    ("replay", Action.OPEN, DECISIONS, "replay"),
    ("replay", Action.OPEN, REPLAYED, "replay"),
    ("replay", Action.SEAL, REPLAYED, "sealing"),
    ("replay", Action.PSEUDONYMISE, "tenant/bank", "pseudonymising"),
    ("admin", Action.OPEN, DLQ, "replay"),
    ("admin", Action.LIST, "keys", "administration"),
    ("admin", Action.REWRAP, "keys", "administration"),
    ("admin", Action.ROTATE, DECISIONS, "administration"),
    ("admin", Action.ROTATE, DLQ, "administration"),
    ("admin", Action.ROTATE, PLAIN, "administration"),
    ("admin", Action.ROTATE, REPLAYED, "administration"),
    ("monitor", Action.LIST, "keys", "administration"),
}


def every_question():
    for role in ROLES:
        for resource, purpose in itertools.product(DATA_KEYS, READING):
            yield role, Action.OPEN, resource, purpose
        for action, resource in itertools.product((Action.SEAL, Action.ROTATE), DATA_KEYS):
            yield role, action, resource, PURPOSE_OF[action]
        for action in (Action.LIST, Action.REWRAP):
            yield role, action, "keys", PURPOSE_OF[action]
        yield role, Action.PSEUDONYMISE, "tenant/bank", PURPOSE_OF[Action.PSEUDONYMISE]


def allows(policy, question):
    role, action, resource, purpose = question
    try:
        enforce(policy, role=role, action=action, resource=resource, purpose=purpose)
    except AccessDenied:
        return False
    return True


@pytest.mark.parametrize("question", list(every_question()), ids=" ".join)
def test_the_policy_allows_exactly_what_the_table_lists(question):
    assert allows(POLICY, question) == (question in ALLOWED)


def test_the_table_asks_everything_that_it_allows():
    assert set(every_question()) >= ALLOWED


def test_a_denial_says_who_what_and_what_to_do():
    with pytest.raises(AccessDenied) as caught:
        enforce(POLICY, role="reader", action=Action.OPEN, resource=DLQ, purpose="delivery")
    assert str(caught.value).startswith("Role reader may not open weir.risk.dlq/C3 for the purpose delivery.")
    assert "\n" not in str(caught.value)


def rule(**changed):
    fields = {"role": "r", "actions": ["open"], "resources": ["a/C3"], "purposes": ["p"], **changed}
    return Rule.model_validate(fields)


@pytest.mark.parametrize(
    ("pattern", "resource", "matches"),
    [
        ("a/C3", "a/C3", True),
        ("a/C3", "a/C33", False),
        ("a/C3", "A/C3", False),
        ("a/*", "a/C1", True),
        ("a/*", "ab/C1", False),
        ("a*", "ab/C1", True),
        ("*", "anything", True),
    ],
)
def test_a_last_star_matches_any_rest_and_nothing_else_is_special(pattern, resource, matches):
    assert allows(Policy([rule(resources=[pattern])]), ("r", Action.OPEN, resource, "p")) == matches


@pytest.mark.parametrize(
    "text",
    [
        "version = 1",
        "version = 2\nallow = []",
        "version = 1\n[[allow]]\nrole = 'r'\nactions = ['fly']\nresources = ['*']\npurposes = ['p']",
        "version = 1\n[[allow]]\nrole = 'r'\nactions = ['open']\nresources = ['a*b']\npurposes = ['p']",
        "version = 1\n[[allow]]\nrole = 'r'\nactions = ['open']\nresources = []\npurposes = ['p']",
        "version = 1\n[[allow]]\nrole = 'r'\nactions = ['open']\nresources = ['*']\npurposes = ['p']\nif = 1",
        "version = ",
    ],
)
def test_a_broken_policy_is_refused_whole(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="Correct the policy") as caught:
        Policy.load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        Policy.load(Path("absent.toml"))


@pytest.mark.parametrize("word", ["", "A", "a b", "a\n", "1a", "a" * 65, "DE89370400440532013000"])
def test_words_and_names_that_could_carry_a_value_are_refused(word):
    with pytest.raises(BadInput) as caught:
        check_word("purpose", word)
    assert not word or word not in str(caught.value) or len(word) < 2
    for name in ("", "a/b", "a\0b", "ä", "a" * 250):
        with pytest.raises(BadInput):
            check_name("topic", name)
    assert check_word("purpose", "case-review-2") == "case-review-2"
    assert check_name("topic", "weir.decisions") == "weir.decisions"
