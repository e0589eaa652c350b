"""From a folder of events to a checked version, through the commands a person types; bad data in one line."""

import json
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from services.simulator.bank import Bank
from services.simulator.parquet import write_history
from services.simulator.settings import SimulatorSettings
from services.training import split
from services.training.__main__ import app
from services.training.data import DAY_MS, NEVER_MS, read_events
from services.training.errors import DataMissing, TrainingError
from services.training.fit import Recipe, Rows, calibrate, grow, plan
from services.training.repository import ModelRepository
from weir.errors import BadInput, WeirError
from weir.features.payments import FEATURE_SPEC, FEATURES

WEEK_MS = 7 * DAY_MS


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    """Fifty days of a small bank with much fraud."""
    folder = tmp_path_factory.mktemp("bank")
    settings = SimulatorSettings(seed=5, accounts=500, terminals=80, fraud_intensity=6)
    write_history(Bank(settings), folder, 50)
    return folder


@pytest.fixture
def copied(bank, tmp_path) -> Path:
    return Path(shutil.copytree(bank, tmp_path / "bank"))


def call(*words: object) -> str:
    """Standard output of a command; a WeirError comes out as itself."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, WeirError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def trained(bank, tmp_path_factory) -> tuple[Path, dict]:
    home = tmp_path_factory.mktemp("models")
    words = ("train", "risk", "--data", bank, "--quick", "--json", "--repository", home)
    return home, json.loads(call(*words))


def test_training_writes_a_version_that_verifies_and_beats_its_baselines(trained):
    home, about = trained
    served = ModelRepository(home).verify("risk", "1", features=FEATURES)
    assert served.about["feature_spec"] == FEATURE_SPEC
    assert "risk 1: whole" in call("models", "verify", "--repository", home)
    figures = about["metrics"]["test"]["metrics"]
    rule = about["metrics"]["baselines"]["rule"]["metrics"]
    assert figures["average_precision"]["value"] > rule["average_precision"]["value"]
    assert figures["auc_roc"]["value"] > 0.75
    for interval in figures.values():
        assert interval["low"] <= interval["value"] <= interval["high"]


def test_model_json_says_where_the_model_comes_from(trained, bank):
    _, about = trained
    made = about["trained"]
    assert made["data"]["fingerprint"] == read_events(bank).fingerprint
    assert made["command"].startswith("weir train ")
    assert set(made["split"]) == {"tune", "validation", "train", "test"}
    assert made["seed"] == 7
    assert about["metrics"]["test"]["bootstrap"]["seed"] == 7


def test_the_card_shows_all_three_scorers_and_the_fingerprint(trained):
    home, about = trained
    card = (home / "risk/1/MODEL_CARD.md").read_text()
    for words in (
        "simple rule",
        "logistic regression",
        "this model",
        about["trained"]["data"]["fingerprint"],
    ):
        assert words in card


def test_the_card_says_the_same_in_both_languages(trained):
    home, _ = trained
    english, chinese = (
        (home / "risk/1" / name).read_text(encoding="utf-8") for name in ("MODEL_CARD.md", "MODEL_CARD.zh.md")
    )

    def numbers(card: str) -> list[str]:
        """Every number, name and command, whatever the words between them say and in which order."""
        return sorted(re.findall(r"`[^`\n]+`|\d[\d.,]*\d|\d", card.replace("```", "")))

    assert numbers(english) == numbers(chinese)
    assert len(numbers(english)) > 100
    assert [line.count("|") for line in english.splitlines() if line.startswith("|")] == [
        line.count("|") for line in chinese.splitlines() if line.startswith("|")
    ]


def test_the_same_data_and_seed_give_the_same_model_to_the_byte(trained, bank, tmp_path):
    home, _ = trained
    call("train", "risk", "--data", bank, "--quick", "--repository", tmp_path, "--version", "4")
    one, two = ((path / "model.onnx").read_bytes() for path in (home / "risk/1", tmp_path / "risk/4"))
    assert one == two


def test_evaluation_of_the_written_version_repeats_the_figures_of_its_training(trained, bank):
    home, about = trained
    words = ("evaluate", "risk", "--model", "1", "--data", bank, "--json", "--repository", home)
    measured = json.loads(call(*words))
    for name, interval in about["metrics"]["test"]["metrics"].items():
        assert measured["metrics"][name]["value"] == pytest.approx(interval["value"], abs=1e-3)
    assert measured["rows"] == about["metrics"]["test"]["rows"]


@pytest.mark.parametrize("name", ["rule", "logistic"])
def test_baselines_are_measured_on_the_same_rows_by_the_same_command(trained, bank, name):
    _, about = trained
    measured = json.loads(call("evaluate", "risk", "--model", f"baseline:{name}", "--data", bank, "--json"))
    expected = about["metrics"]["baselines"][name]
    assert measured["metrics"] == expected["metrics"]
    assert measured["rows"] == expected["rows"]


def test_an_unknown_baseline_is_told_the_known_ones(bank):
    with pytest.raises(TrainingError, match="rule, logistic"):
        call("evaluate", "risk", "--model", "baseline:oracle", "--data", bank)


def test_models_list_shows_version_and_figures(trained):
    home, _ = trained
    assert call("models", "list", "--repository", home).startswith("risk 1")
    listed = json.loads(call("models", "list", "--repository", home, "--json"))
    assert listed[0]["version"] == "1"
    assert 0 < listed[0]["auc_roc"] < 1


def test_a_version_that_is_no_number_is_refused(bank, tmp_path):
    with pytest.raises(TrainingError, match="no number"):
        call("train", "risk", "--data", bank, "--quick", "--version", "best", "--repository", tmp_path)


# -- leaks --


def test_windows_stand_in_order_with_the_label_delay_between_them(bank):
    events = read_events(bank)
    parts = split.by_time(events.event_ms, delay_days=7)
    assert parts.train.end_ms + WEEK_MS == parts.validation.start_ms
    assert parts.validation.end_ms + WEEK_MS == parts.test.start_ms
    assert parts.test.end_ms >= events.event_ms[-1]


def test_a_fraud_reported_after_the_test_began_is_honest_to_the_one_who_trains(bank):
    events = read_events(bank)
    at = int(np.median(events.event_ms))
    known = events.known_frauds(at)
    assert 0 < known.sum() < events.is_fraud.sum()
    assert (events.reported_ms[known] <= at).all()


def test_no_label_reaches_a_feature_before_its_report(copied):
    """Without all that was reported from the middle of the test week on, features up to there are alike."""
    events = read_events(copied)
    test = split.by_time(events.event_ms, delay_days=7).test
    middle = (test.start_ms + test.end_ms) // 2
    until = events.event_ms < middle
    before, after = events.features()[until], events.features()[~until]
    for path in copied.glob("labels-*.parquet"):
        table = pq.read_table(path)
        known = pc.less(table["reported_time"], pa.scalar(middle, pa.timestamp("ms", "UTC")))
        pq.write_table(table.filter(known), path)
    fewer = read_events(copied)
    assert len(fewer.labels.is_fraud) < len(events.labels.is_fraud)
    assert np.array_equal(before, fewer.features()[until])
    assert not np.array_equal(after, fewer.features()[~until])


def handbook(folder: Path, days: int = 60, seed: int = 3, **changes) -> Path:
    """A folder in the Handbook's layout that covers its week; `changes` replace columns."""
    random = np.random.default_rng(seed)
    row_count = days * 300
    start = np.datetime64("2018-06-20", "ms")
    moment = np.sort(random.integers(0, days * DAY_MS, row_count))
    customer, terminal = random.integers(0, 120, row_count), random.integers(0, 40, row_count)
    amount = random.integers(100, 20_000, row_count)
    fraud = random.random(row_count) < np.where(amount > 18_000, 0.3, 0.005)
    columns = {
        "TRANSACTION_ID": np.arange(row_count, dtype=np.int32),
        "TX_DATETIME": start + moment.astype("timedelta64[ms]"),
        "CUSTOMER_ID": customer.astype(np.int32),
        "TERMINAL_ID": terminal.astype(np.int32),
        "TX_AMOUNT_CENTS": amount.astype(np.int32),
        "TX_FRAUD": fraud.astype(np.int8),
        "TX_FRAUD_SCENARIO": random.integers(0, 4, row_count).astype(np.int8),
    } | changes
    folder.mkdir(exist_ok=True)
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    pq.write_table(table, folder / "2018.parquet")
    return folder


def test_the_handbooks_layout_becomes_known_after_the_delay_and_its_scenario_is_never_read(tmp_path):
    one = read_events(handbook(tmp_path / "a"))
    two = read_events(handbook(tmp_path / "b", TX_FRAUD_SCENARIO=None))
    assert one.fingerprint == two.fingerprint
    assert (one.reported_ms[one.is_fraud] == one.event_ms[one.is_fraud] + WEEK_MS).all()
    assert (one.reported_ms[~one.is_fraud] == NEVER_MS).all()


def test_known_compromised_cards_are_left_out_as_the_handbook_does(tmp_path):
    """Against the Handbook's own loop: frauds of the training week, and day by day those a delay back."""
    events = read_events(handbook(tmp_path / "a"))
    parts = split.handbook()
    kept = split.without_known_cards(events, parts.test, parts.train.start_ms)
    account, day = events.payments.account, events.event_ms // DAY_MS
    first = parts.train.start_ms // DAY_MS
    known = set(account[events.is_fraud & (day >= first) & (day < first + 7)].tolist())
    expected = np.zeros(len(day), bool)
    for index in range(7):
        known |= set(account[events.is_fraud & (day == first + 7 + index - 1)].tolist())
        today = day == first + 14 + index
        expected |= today & ~np.isin(account, np.array(sorted(known), np.uint64))
    assert (kept == expected).all()
    assert 0 < kept.sum() < parts.test.rows(events.event_ms).sum()


def test_the_preceding_split_trains_on_all_whose_labels_are_known():
    first_ms = int(datetime(2018, 4, 1, 0, 0, 31, tzinfo=UTC).timestamp() * 1000)
    parts = split.handbook_preceding(first_ms)
    assert parts.as_dict() == {
        "tune": "2018-04-01..2018-07-17",
        "validation": "2018-07-25..2018-07-31",
        "train": "2018-04-01..2018-07-31",
        "test": "2018-08-08..2018-08-14",
    }


def test_the_handbook_protocol_fits_and_measures_its_week(tmp_path):
    words = ("--protocol", "handbook", "--quick", "--json", "--model", "fresh")
    measured = json.loads(call("evaluate", "risk", "--data", handbook(tmp_path / "a"), *words))
    assert measured["window"] == "2018-08-08..2018-08-14"
    assert measured["metrics"]["auc_roc"]["value"] > 0.6


# -- bad data --


def relabel(folder: Path, is_fraud: bool) -> None:
    for path in folder.glob("labels-*.parquet"):
        table = pq.read_table(path)
        column = pa.array([is_fraud] * len(table))
        pq.write_table(table.set_column(table.schema.get_field_index("is_fraud"), "is_fraud", column), path)


def without(folder: Path, kind: str, name: str) -> None:
    for path in folder.glob(f"{kind}-*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns([name]), path)


BAD = {
    "no fraud": (lambda folder: relabel(folder, False), TrainingError, "0 of them fraud"),
    "no amount": (lambda folder: without(folder, "transactions", "amount"), BadInput, "no column amount"),
    "no event id": (lambda folder: without(folder, "labels", "event_id"), BadInput, "no column event_id"),
    "no labels": (lambda folder: [p.unlink() for p in folder.glob("labels-*")], WeirError, "labels"),
    "empty": (lambda folder: [p.unlink() for p in folder.iterdir()], DataMissing, "no Parquet files"),
    "no folder": (lambda folder: shutil.rmtree(folder), DataMissing, "is not a folder"),
    "no parquet": (
        lambda folder: next(folder.glob("transactions-*")).write_bytes(b"PAR1 and then nothing"),
        BadInput,
        "not_parquet",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_told_in_one_line_and_writes_nothing(copied, tmp_path, case):
    change, kind, words = BAD[case]
    change(copied)
    with pytest.raises(kind, match=words) as caught:
        call("train", "risk", "--data", copied, "--quick", "--repository", tmp_path / "models")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "models").exists()


def test_one_class_and_a_missing_column_in_the_handbooks_layout_are_told(tmp_path):
    with pytest.raises(TrainingError, match="Both kinds"):
        read_events(handbook(tmp_path / "a", TX_FRAUD=np.ones(60 * 300, np.int8)))
    with pytest.raises(BadInput, match="no column TERMINAL_ID"):
        read_events(handbook(tmp_path / "b", TERMINAL_ID=None))


def test_too_short_a_history_says_how_many_days_it_takes(tmp_path):
    with pytest.raises(TrainingError, match="at least 35"):
        split.by_time(read_events(handbook(tmp_path / "a", days=20)).event_ms, delay_days=7)


def test_data_outside_the_handbooks_weeks_is_refused_for_its_protocol(bank):
    with pytest.raises(TrainingError, match="Handbook's test week"):
        call("evaluate", "risk", "--model", "fresh", "--data", bank, "--protocol", "handbook")


# -- fit --


def toy(row_count: int, seed: int, product: float = 0.0) -> Rows:
    """Three features, of which the third is noise; `product` weighs an effect that only the pair shows."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(row_count, 3)).astype(np.float32)
    logit = -3 + x[:, 0] + product * np.sign(x[:, 0] * x[:, 1])
    return Rows.of(x, random.random(row_count) < 1 / (1 + np.exp(-logit)))


QUICK = Recipe(bags=2, threads=1, rounds_max=120, learning_rate=0.15)
ABC = ("a", "b", "c")


def test_pairs_enter_only_where_they_pay():
    assert plan(toy(6000, 1), toy(6000, 2), ABC, QUICK).pairs == ()
    crossed = plan(toy(6000, 1, product=2), toy(6000, 2, product=2), ABC, QUICK)
    assert (0, 1) in crossed.pairs


def test_with_room_for_all_pairs_the_plan_names_those_that_trees_joined():
    train, later = toy(6000, 1, product=2), toy(6000, 2, product=2)
    all_of_them = plan(train, later, ABC, QUICK)
    joined = {
        table.features for table in grow(train, ABC, all_of_them, QUICK).tables if len(table.features) == 2
    }
    assert (0, 1) in joined <= set(all_of_them.pairs)
    assert plan(train, later, ABC, replace(QUICK, pairs_max=1)).pairs == ((0, 1),)


def test_calibration_repairs_a_shifted_share_of_fraud():
    train, later = toy(8000, 1), toy(8000, 2)
    made = plan(train, later, ABC, QUICK)
    model = grow(train, ABC, made, QUICK)
    twice = Rows(later.x, later.is_fraud, np.where(later.is_fraud, 3.0, 1.0))
    calibrated = calibrate(model, twice)
    share = np.average(twice.is_fraud, weights=twice.weight)
    assert np.average(model.probability(twice.x), weights=twice.weight) < 0.7 * share
    assert np.average(calibrated.probability(twice.x), weights=twice.weight) == pytest.approx(share, rel=0.02)
    order = np.argsort(model.logit(later.x))
    assert (np.diff(calibrated.probability(later.x)[order]) >= -1e-12).all()


def test_a_feature_left_out_is_in_no_table():
    rows = toy(6000, 1, product=2)
    recipe = replace(QUICK, left_out=("b",))
    model = grow(rows, ABC, plan(rows, toy(6000, 2, product=2), ABC, recipe), recipe)
    assert model.tables
    assert all(1 not in table.features for table in model.tables)
    assert (model.contributions(rows.x)[:, 1] == 0).all()


def test_thinned_honest_rows_weigh_for_those_left_out():
    rows = toy(5000, 4)
    thin = rows.thinned(1000, seed=1)
    assert thin.is_fraud.sum() == rows.is_fraud.sum()
    assert thin.weight.sum() == pytest.approx(len(rows.x))


def test_the_commands_are_the_ones_that_the_weir_command_line_loads():
    from services.training import cli

    assert all(isinstance(command, typer.Typer) for command in (cli.train, cli.evaluate, cli.models))
