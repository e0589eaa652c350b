"""Whole federations in one process: the same banks and coordinator, messages handed over as plain values."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from services.simulator.bank import Bank as SimulatedBank
from services.simulator.parquet import write_history
from services.simulator.settings import SimulatorSettings
from services.training.data import read_events
from services.training.evaluate import average_precision
from services.training.export import to_onnx
from services.training.federate import masks
from services.training.federate.bank import Bank, BankRows, purpose
from services.training.federate.errors import FederationStopped
from services.training.federate.local import CellRows, Steps
from services.training.federate.plan import Message, Plan
from services.training.federate.rounds import Coordinator, Outcome
from services.training.federate.trial import split_banks
from services.training.fit import Rows
from services.training.split import by_time
from services.training.train import Table
from weir.features.payments import FEATURE_SPEC, FEATURES

NAMES = ("A", "B", "C")
Tamper = Callable[[str, Message, Message], Message | None]


class InProcess:
    """Each bank's state and every message go through JSON, as between machines."""

    def __init__(self, rows: dict[str, BankRows], tamper: Tamper | None = None) -> None:
        self.members = [Bank(name, lambda plan, mine=mine: mine) for name, mine in rows.items()]
        self.tamper = tamper or (lambda name, request, reply: reply)
        self.seen: list[tuple[str, Message, Message]] = []

    def banks(self) -> list[int]:
        return list(range(1, len(self.members) + 1))

    def ask(self, requests):
        replies = {}
        for number, request in requests.items():
            bank = self.members[number - 1]
            reply = bank.answer(Message(json.loads(json.dumps(request.head)), request.vector))
            bank.state = json.loads(json.dumps(dict(bank.state)))
            tampered = self.tamper(bank.name, request, reply)
            if tampered is not None:
                self.seen.append((bank.name, request, tampered))
                replies[number] = Message(json.loads(json.dumps(tampered.head)), tampered.vector)
        return replies


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, Table]:
    """Three banks' payments of the same fifty days."""
    folder = tmp_path_factory.mktemp("banks")
    settings = SimulatorSettings(seed=5, accounts=450, terminals=80, fraud_intensity=6)
    write_history(SimulatedBank(settings), folder / "all", 50)
    split_banks(folder / "all", folder / "each", 3, seed=1)
    found = {}
    for name, each in zip(NAMES, sorted((folder / "each").iterdir()), strict=True):
        events = read_events(each)
        found[name] = Table(events, events.features(), FEATURES, by_time(events.event_ms, delay_days=7))
    return found


@pytest.fixture(scope="module")
def rows(tables) -> dict[str, BankRows]:
    layout = Plan.layout()
    return {
        name: BankRows(
            *(
                CellRows.of(table.known_rows(window, honest_max=10**6, seed=1), layout)
                for window in (table.split.train, table.split.validation)
            )
        )
        for name, table in tables.items()
    }


@pytest.fixture(scope="module")
def plan(tables) -> Plan:
    steps = Steps(trees=30, leaf_rows_min=10)
    return Plan(tables["A"].split, rounds=3, rounds_pair=1, pairs_max=4, steps=steps)


@pytest.fixture(scope="module")
def secure(plan, rows) -> tuple[Outcome, InProcess]:
    transport = InProcess(rows)
    return Coordinator(plan, transport).run(), transport


def precision(outcome: Outcome, tables: dict[str, Table]) -> float:
    """Average precision on all banks' test days."""
    score, fraud = [], []
    for table in tables.values():
        test = table.split.test.rows(table.events.event_ms)
        score.append(outcome.model.logit(table.x[test]))
        fraud.append(table.events.is_fraud[test])
    return average_precision(np.concatenate(score), np.concatenate(fraud))


def updates_only(change: Callable[[np.ndarray], np.ndarray], who: str = "C", dtype: str = "<f8") -> Tamper:
    """Bank `who` sends `change` of its update."""

    def tamper(name: str, request: Message, reply: Message) -> Message:
        if name != who or request.head["step"] != "train":
            return reply
        return Message(reply.head, change(np.frombuffer(reply.vector, dtype)).astype(dtype).tobytes())

    return tamper


def flipped(rows: dict[str, BankRows], who: str = "C") -> dict[str, BankRows]:
    train = rows[who].train
    return {**rows, who: replace(rows[who], train=replace(train, is_fraud=~train.is_fraud))}


def test_three_banks_come_to_one_model_with_pairs_that_ranks_frauds_first(secure, tables):
    outcome, _ = secure
    assert outcome.ended == "complete"
    assert outcome.rounds == 4
    assert not outcome.lost
    assert len(outcome.layout.pairs) == 4
    share = np.mean(np.concatenate([table.events.is_fraud for table in tables.values()]))
    assert precision(outcome, tables) > 5 * share


def test_under_masks_the_sum_is_what_it_is_in_the_clear(plan, rows, secure):
    """The update of each bank is the same in both, so the first secure round is the mean by rows."""
    one = replace(plan, rounds=1, rounds_pair=0)
    clear = InProcess(rows)
    Coordinator(replace(one, aggregation="robust"), clear).run()
    sent = [
        np.frombuffer(reply.vector, "<f8")
        for _, request, reply in clear.seen
        if request.head["step"] == "train"
    ]
    packed = np.sum(sent, axis=0)
    outcome = Coordinator(one, InProcess(rows)).run()
    size = outcome.layout.size
    moved = outcome.vector - Coordinator(one, clear).out.vector
    assert moved == pytest.approx(packed[1 : 1 + size] / packed[0], abs=1e-9)
    assert outcome.counts == pytest.approx(packed[1 + size :], abs=1e-6)


def test_the_coordinator_is_sent_no_update_under_masks(secure, plan, rows):
    _, transport = secure
    clear = InProcess(rows)
    Coordinator(replace(plan, aggregation="robust", rounds=1, rounds_pair=0), clear).run()
    plain = {n: r.vector for n, q, r in clear.seen if q.head["step"] == "train"}
    first = {n: r.vector for n, q, r in transport.seen if q.head["step"] == "train" and q.head["round"] == 1}
    for name in NAMES:
        words = np.frombuffer(first[name], "<u8").view(np.int64).astype(np.float64) / 2**24
        values = np.frombuffer(plain[name], "<f8")
        assert abs(np.corrcoef(words, values)[0, 1]) < 0.1


def test_no_message_holds_a_row_or_a_secret_in_the_clear(secure, rows):
    _, transport = secure
    secrets_of = {bank.name: bank.state for bank in transport.members}
    for name, _, reply in transport.seen:
        text = json.dumps(reply.head)
        for secret in secrets_of[name]["own"].values():
            assert secret["seed"] not in text
            assert secret["key"] not in text
        assert secrets_of[name]["seal_key"] not in text
        assert len(reply.vector) < rows[name].train.cells.nbytes


def test_the_same_banks_and_seed_give_the_same_model_however_they_are_numbered(secure, plan, rows):
    outcome, _ = secure
    again = Coordinator(plan, InProcess(dict(reversed(rows.items())))).run()
    assert (again.vector == outcome.vector).all()
    other = Coordinator(replace(plan, seed=8), InProcess(rows)).run()
    assert not (other.vector == outcome.vector).all()


def test_reasons_add_up_and_the_served_graph_says_the_same(secure, tables):
    outcome, _ = secure
    model, x = outcome.model, tables["A"].x[:500]
    graph = to_onnx(model, name="risk", feature_spec=FEATURE_SPEC).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    logit, contributions = session.run(["logit", "contributions"], {"features": x})
    assert logit[:, 0] == pytest.approx(model.logit(x), abs=1e-4)
    assert contributions == pytest.approx(model.contributions(x), abs=1e-4)
    plain = outcome.layout.logit(outcome.vector, outcome.layout.grid.cells(x))
    assert model.logit(x) == pytest.approx(plain, abs=1e-9)


def test_reasons_are_told_against_the_rows_of_all_banks(secure, tables):
    """Over all banks' training rows, the contributions of single features average to nothing."""
    outcome, _ = secure
    x = np.concatenate([t.x[t.split.train.rows(t.events.event_ms)] for t in tables.values()])
    alone = outcome.layout.pairs
    touched = {feature for pair in alone for feature in pair}
    means = outcome.model.contributions(x).mean(axis=0)
    assert np.abs(np.delete(means, list(touched))).max() < 1e-6


def test_an_outcome_survives_its_file(secure):
    outcome, _ = secure
    again = Outcome.from_dict(json.loads(json.dumps(outcome.as_dict())))
    assert (again.vector == outcome.vector).all()
    assert again.layout.id == outcome.layout.id
    assert again.votes == outcome.votes


# -- banks that drop out --


@pytest.mark.parametrize("step", ["train", "unmask", "judge"])
def test_a_bank_that_drops_out_is_named_and_the_run_goes_on_with_those_left(plan, rows, step):
    gone = []

    def tamper(name, request, reply):
        if name == "C" and request.head["step"] == step and request.head.get("round", 9) >= 2:
            gone.append(name)
        return None if name in gone else reply

    outcome = Coordinator(plan, InProcess(rows, tamper)).run()
    assert outcome.ended == "complete"
    assert outcome.rounds == 4
    assert outcome.lost == {"C": 4 if step == "judge" else 2}
    assert any("bank C is out" in line for line in outcome.notes)
    outcome.require_good()


def test_what_is_told_of_a_lost_bank_opens_none_of_the_rounds_in_which_it_sent(plan, rows):
    """The coordinator keeps all it is sent, and tries the key of the round in which C was lost on round 1."""

    def silent(name, request, reply):
        lost = name == "C" and request.head["step"] == "train" and request.head["round"] == 2
        return None if lost else reply

    transport = InProcess(rows, silent)
    run = Coordinator(plan, transport)
    assert run.run().lost == {"C": 2}
    asked = [(name, q, r) for name, q, r in transport.seen if q.head.get("round") in (1, 2)]
    first = next(each for each in asked if each[0] == "C" and each[1].head["step"] == "train")
    words, publics = np.frombuffer(first[2].vector, "<u8"), first[1].head["masks"]

    def told(what: str, round_: int) -> bytes:
        shares = {
            transport.members.index(bank) + 1: bytes.fromhex(reply.head[what]["3"])
            for name, request, reply in asked
            for bank in transport.members
            if bank.name == name and request.head["step"] == "unmask" and request.head["round"] == round_
        }
        return masks.joined(shares, run.threshold)

    def opened(private: bytes) -> np.ndarray:
        plain = words - masks.stream(told("seeds", 1), len(words))
        for other in (1, 2):
            secret = masks.agreed(private, bytes.fromhex(publics[str(other)]), purpose(run.run_id, 1))
            plain = plain + masks.stream(secret, len(words))
        return plain.view(np.int64).astype(np.float64) / 2**24

    clear = InProcess(rows)
    Coordinator(replace(plan, aggregation="robust", rounds=1, rounds_pair=0), clear).run()
    update = next(np.frombuffer(r.vector, "<f8") for n, q, r in clear.seen if n == "C" and "round" in q.head)
    # With the key of round 1, which nobody was told, it would be open: the attempt is the right one.
    assert opened(bytes.fromhex(transport.members[2].state["own"]["1"]["key"])) == pytest.approx(
        update, abs=1e-6
    )
    assert abs(np.corrcoef(opened(told("keys", 2)), update)[0, 1]) < 0.1


def test_a_round_without_the_lost_bank_is_exactly_the_round_of_the_others(plan, rows):
    one = replace(plan, rounds=1, rounds_pair=0)

    def silent(name, request, reply):
        return None if name == "C" and request.head["step"] == "train" else reply

    outcome = Coordinator(one, InProcess(rows, silent)).run()
    two = Coordinator(one, InProcess({name: rows[name] for name in "AB"})).run()
    assert (outcome.vector == two.vector).all()


def test_with_fewer_than_the_minimum_left_the_run_ends_in_one_line(plan, rows):
    def tamper(name, request, reply):
        return None if name != "A" and request.head.get("round", 0) >= 2 else reply

    outcome = Coordinator(plan, InProcess(rows, tamper)).run()
    assert outcome.ended == "too_few"
    with pytest.raises(FederationStopped, match=r"1 banks are left and 2 are needed.*round 1 is kept") as end:
        outcome.require_good()
    assert "\n" not in str(end.value)


def test_a_bank_never_tells_both_secrets_of_another(secure):
    """Asked to take off a single bank's masks, or to answer a round twice, it refuses."""
    _, transport = secure
    bank = transport.members[0]
    for sent, lost, number in (([1], [2, 3], 1), ([1, 2, 3], [], 1), ([1, 2, 3], [2], 2), ([2, 3], [1], 4)):
        reply = bank.answer(Message({"step": "unmask", "round": number, "sent": sent, "lost": lost}))
        assert "more shares than" in reply.head["error"]


def test_a_threshold_that_half_of_the_banks_reach_is_refused(plan):
    bank = Bank("A", lambda plan: None)
    bank.answer(Message({"step": "hello", "run": "r", "plan": plan.as_json(), "you": 1}))
    keys = {str(number): {"seal": ""} for number in range(1, 5)}
    reply = bank.answer(Message({"step": "share", "keys": keys, "threshold": 2}))
    assert "threshold is too low" in reply.head["error"]


# -- banks that poison --


@pytest.mark.parametrize("poison", ["scaled", "flipped"])
def test_robust_aggregation_names_the_poisoner_and_stays_near_the_honest_model(plan, rows, tables, poison):
    robust = replace(plan, aggregation="robust")
    honest = Coordinator(robust, InProcess(rows)).run()
    assert not honest.outlier_rounds
    if poison == "scaled":
        end = 1 + Plan.layout().size

        def scale(values: np.ndarray) -> np.ndarray:
            return np.concatenate([values[:1], values[1:end] * 100, values[end:]])

        transport = InProcess(rows, updates_only(scale))
    else:
        transport = InProcess(flipped(rows))
    outcome = Coordinator(robust, transport).run()
    assert list(outcome.outlier_rounds) == ["C"]
    assert outcome.lost == {"C": 2}
    assert any("bank C is out: its updates lay far off in rounds 1, 2" in line for line in outcome.notes)
    assert precision(outcome, tables) > 0.7 * precision(honest, tables)


def test_under_masks_a_scaled_update_is_voted_down_and_undone(plan, rows):
    """Masked words are scaled by adding 99 times what the bank would have sent in the clear."""
    clear = InProcess(rows)
    Coordinator(replace(plan, aggregation="robust", rounds=1, rounds_pair=0), clear).run()
    mine = next(
        np.frombuffer(r.vector, "<f8") for n, q, r in clear.seen if n == "C" and q.head["step"] == "train"
    )
    extra = np.rint(99 * mine * 2**24).astype(np.int64).view(np.uint64)
    extra[[0]] = 0  # the weight stays, else the mean is only pulled to this bank

    def tamper(name, request, reply):
        if name == "C" and request.head["step"] == "train" and request.head["round"] == 1:
            return Message(reply.head, (np.frombuffer(reply.vector, "<u8") + extra).astype("<u8").tobytes())
        return reply

    start = Coordinator(plan, InProcess(rows)).out.vector
    outcome = Coordinator(plan, InProcess(rows, tamper)).run()
    assert outcome.ended == "voted_down"
    assert outcome.rounds == 0
    assert (outcome.vector == start).all()
    with pytest.raises(FederationStopped, match="most banks find the new model worse"):
        outcome.require_good()


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_under_masks_a_bank_with_all_labels_flipped_is_voted_down_though_nobody_sees_its_update(
    plan, rows, seed
):
    """Maybe only at the end, when the others hold the common model against one of their own rows."""
    outcome = Coordinator(replace(plan, seed=seed), InProcess(flipped(rows))).run()
    assert outcome.ended == "voted_down"
    last = list(outcome.votes[-1].values())
    assert max(last.count("worse"), last.count("alone")) >= 2
    assert not outcome.outlier_rounds
    with pytest.raises(FederationStopped, match="may be poisoned"):
        outcome.require_good()


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_honest_banks_of_one_kind_do_not_vote_their_common_model_down(plan, rows, seed):
    outcome = Coordinator(replace(plan, seed=seed), InProcess(rows)).run()
    assert outcome.ended in ("complete", "no_gain")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values[:-5], "an update here has"),
        (lambda values: np.where(np.arange(len(values)) == 9, np.nan, values), "not finite"),
    ],
)
def test_a_malformed_update_puts_its_bank_out_and_is_never_averaged(plan, rows, change, words):
    robust = replace(plan, aggregation="robust", rounds=1, rounds_pair=0)
    outcome = Coordinator(robust, InProcess(rows, updates_only(change))).run()
    assert outcome.lost == {"C": 1}
    assert any(words in line for line in outcome.notes)
    others = Coordinator(robust, InProcess({name: rows[name] for name in "AB"})).run()
    assert (outcome.vector == others.vector).all()


@pytest.mark.parametrize("aggregation", ["secure", "robust"])
def test_a_bank_with_other_features_or_cells_is_refused_at_the_door(plan, rows, aggregation):
    def tamper(name, request, reply):
        if name == "B" and request.head["step"] == "hello":
            return Message({**reply.head, "layout": "0" * 16})
        return reply

    short = replace(plan, aggregation=aggregation, rounds=1, rounds_pair=0)
    outcome = Coordinator(short, InProcess(rows, tamper)).run()
    assert any("features or cells are others" in line for line in outcome.notes)
    assert set(outcome.votes[-1]) == {"A", "C"}


def test_a_bank_that_takes_the_name_of_another_is_refused_at_the_door(plan, rows):
    def tamper(name, request, reply):
        if name == "B" and request.head["step"] == "hello":
            return Message({**reply.head, "name": "A"})
        return reply

    short = replace(plan, rounds=1, rounds_pair=0)
    outcome = Coordinator(short, InProcess(rows, tamper)).run()
    assert any("another bank is called A too" in line for line in outcome.notes)
    assert set(outcome.votes[-1]) == {"A", "C"}


def test_under_masks_words_of_another_layout_are_refused(plan, rows):
    short = replace(plan, rounds=1, rounds_pair=0)
    outcome = Coordinator(short, InProcess(rows, updates_only(lambda words: words[:-1], dtype="<u8"))).run()
    assert outcome.lost == {"C": 1}
    assert any("no update of this model" in line for line in outcome.notes)
    assert outcome.ended == "complete"


def test_a_bank_that_has_one_class_only_says_so_and_the_others_go_on(plan, rows):
    def none(_plan):
        return Rows.of(np.zeros((5, len(FEATURES)), np.float32), np.zeros(5, np.bool_))

    transport = InProcess(rows)
    transport.members[1].load = none
    outcome = Coordinator(replace(plan, rounds=1, rounds_pair=0), transport).run()
    assert outcome.lost == {"B": 1}
    assert any("5 rows to fit on hold 0 known frauds" in line for line in outcome.notes)
    assert outcome.ended == "complete"


def test_rounds_that_bring_nothing_end_the_run_early(plan, rows):
    still = replace(plan, rounds=9, rounds_pair=0, steps=Steps(trees=1, learning_rate=1e-9))
    outcome = Coordinator(still, InProcess(rows)).run()
    assert outcome.ended == "no_gain"
    assert outcome.rounds < 9
    assert any("gained nothing" in line for line in outcome.notes)
    outcome.require_good()
