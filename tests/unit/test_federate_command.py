"""`weir federate`: what it refuses before it starts anything, and one bank dealt out to several."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from services.simulator.bank import Bank
from services.simulator.parquet import write_history
from services.simulator.settings import SimulatorSettings
from services.training.data import read_events
from services.training.errors import DataMissing, TrainingError
from services.training.federate.aggregate import Parts
from services.training.federate.cli import app
from services.training.federate.local import CellRows, cell_counts, pairs_of, start
from services.training.federate.plan import Plan
from services.training.federate.processes import environment, node_config, write_app
from services.training.federate.rounds import Outcome
from services.training.federate.trial import Trial, agreed_days
from services.training.split import Split, Window
from weir.errors import ConfigError, WeirError


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bank")
    write_history(Bank(SimulatorSettings(seed=5, accounts=200, terminals=40, fraud_intensity=8)), folder, 45)
    return folder


@pytest.fixture
def plan() -> Plan:
    days = [Window(start * 86_400_000, (start + 7) * 86_400_000) for start in range(0, 28, 7)]
    return Plan(Split(*days), rounds=3)


def call(*words: object) -> str:
    """Standard output of a command; a WeirError comes out as itself."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, WeirError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_splitting_deals_whole_accounts_and_loses_nothing(bank, tmp_path):
    dealt = json.loads(call("split", bank, "--banks", 3, "--out", tmp_path / "banks", "--json"))
    assert list(dealt) == ["bank-1", "bank-2", "bank-3"]
    parts = [
        set(pq.read_table(tmp_path / "banks" / name, columns=["account_id"])["account_id"].to_pylist())
        for name in dealt
    ]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]
    whole = read_events(bank)
    each = [read_events(tmp_path / "banks" / name) for name in dealt]
    assert sum(dealt.values()) == whole.payments.row_count
    assert sum(int(events.is_fraud.sum()) for events in each) == int(whole.is_fraud.sum())


def test_a_split_is_the_same_for_the_same_seed_and_another_for_another(bank, tmp_path):
    one, same, other = (
        call("split", bank, "--out", tmp_path / name, "--seed", seed, "--json")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == same
    assert one != other


def test_a_split_writes_over_nothing_and_wants_events(bank, tmp_path):
    with pytest.raises(TrainingError, match="exists already"):
        call("split", bank, "--out", tmp_path)
    with pytest.raises(DataMissing, match="no transactions-"):
        call("split", tmp_path, "--out", tmp_path / "banks")
    assert not (tmp_path / "banks").exists()


@pytest.mark.parametrize(
    ("banks", "words"),
    [
        (["A=a", "B=b"], "2 banks are too few"),
        (["A=a", "A=b", "C=c"], "A is there twice"),
        (["A=a", "B", "C=c"], "write NAME=DIR"),
        (["A=a", 'B"x=b', "C=c"], "write NAME=DIR"),
    ],
)
def test_banks_are_checked_before_anything_starts(banks, words):
    with pytest.raises(ConfigError, match=words):
        call("risk", *(word for each in banks for word in ("--bank", each)))


def test_a_folder_without_events_is_named_before_anything_starts(tmp_path):
    banks = [word for name in "ABC" for word in ("--bank", f"{name}={tmp_path / name}")]
    with pytest.raises(DataMissing, match="is not a folder"):
        call("risk", *banks)


def test_each_bank_keeps_its_own_features_in_the_pool(bank, tmp_path):
    """Pooled in order of time, every row has the values that its own bank computes."""
    call("split", bank, "--out", tmp_path / "banks")
    folders = {each.name: each for each in sorted((tmp_path / "banks").iterdir())}
    trial = Trial.read(folders, validation_days=7, test_days=7)
    for index, folder in enumerate(folders.values()):
        assert (trial.pooled.x[trial.bank == index] == read_events(folder).features()).all()
    assert (np.diff(trial.pooled.events.event_ms) >= 0).all()
    assert (trial.whole.x == read_events(bank).features()).all()


def test_the_agreed_days_need_no_more_of_the_banks_than_their_times(bank, tmp_path):
    call("split", bank, "--out", tmp_path / "banks")
    folders = {each.name: each for each in sorted((tmp_path / "banks").iterdir())}
    days = {"validation_days": 7, "test_days": 7}
    split = agreed_days(folders, **days)
    assert split == Trial.read(folders, **days).pooled.split
    with pytest.raises(DataMissing, match="no payments"):
        agreed_days({"A": tmp_path}, **days)


def test_the_app_for_machines_of_their_own_holds_the_agreed_days(tmp_path):
    words = ("--first-day", "2026-01-01", "--last-day", "2026-03-31", "--result", tmp_path / "result")
    said = call("app", tmp_path / "app", *words, "--aggregation", "robust", "--rounds", 5)
    config = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    written = Plan.from_json(config["plan"])
    assert str(written.split.test) == "2026-03-25..2026-03-31"
    assert (written.rounds, written.aggregation) == (5, "robust")
    assert "2026-03-25..2026-03-31" in said
    with pytest.raises(TrainingError, match="exists already"):
        call("app", tmp_path / "app", *words)


@pytest.mark.parametrize("pairs", [3, 1000])
def test_the_app_tells_the_size_of_what_a_bank_packs(pairs, tmp_path):
    """1,000 pairs are more than the features have: a bank sends no more than there are."""
    words = ("--first-day", "2026-01-01", "--last-day", "2026-03-31", "--result", tmp_path / "result")
    said = call("app", tmp_path / "app", *words, "--pairs", pairs)
    layout = Plan.layout()
    every = pairs_of(layout)
    wider, _ = layout.with_pairs(start(layout), every[:pairs])
    row = CellRows(np.zeros((1, len(layout.features)), np.int16), np.ones(1, np.bool_), np.ones(1))
    single, joined = (
        Parts(1.0, start(each), cell_counts(row, each), gains).packed().nbytes / 1000
        for each, gains in ((layout, np.zeros(len(every))), (wider, np.empty(0)))
    )
    assert f"up to {single:,.0f} kB, in a round of {len(wider.pairs)} pairs {joined:,.0f} kB" in said
    for number, none in enumerate((("--rounds-pair", 0), ("--pairs", 0))):
        assert "pairs" not in call("app", tmp_path / f"alone-{number}", *words, *none)


def test_a_federation_has_its_own_number_of_pairs_whatever_training_alone_may_join(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIR_TRAINING_PAIRS_MAX", "64")
    words = ("--first-day", "2026-01-01", "--last-day", "2026-03-31", "--result", tmp_path / "result")
    for name, given, expected in (("usual", (), 16), ("more", ("--pairs", 30), 30)):
        call("app", tmp_path / name, *words, *given)
        written = tomllib.loads((tmp_path / name / "pyproject.toml").read_text())
        assert Plan.from_json(written["tool"]["flwr"]["app"]["config"]["plan"]).pairs_max == expected


def test_a_result_is_exported_and_what_is_none_is_refused(tmp_path):
    layout = Plan.layout()
    outcome = Outcome(layout, start(layout), np.ones(layout.cell_count), rounds=1)
    layout.single(outcome.vector, 0)[40:] = 2.0
    (tmp_path / "result.json").write_text(json.dumps(outcome.as_dict()))
    call("export", tmp_path / "result.json", "--onnx", tmp_path / "risk.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "risk.onnx", providers=["CPUExecutionProvider"])
    x = np.zeros((2, len(layout.features)), np.float32)
    x[1, 0] = 1e5
    assert session.run(["logit"], {"features": x})[0][:, 0] == pytest.approx([-5, -3])
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(TrainingError, match="not the result of a federation"):
        call("export", tmp_path / "none.json", "--onnx", tmp_path / "risk.onnx")
    with pytest.raises(DataMissing, match="is not there"):
        call("export", tmp_path / "away.json", "--onnx", tmp_path / "risk.onnx")
    (tmp_path / "zero.json").write_text(json.dumps(replace(outcome, rounds=0).as_dict()))
    with pytest.raises(TrainingError, match="no model to write"):
        call("export", tmp_path / "zero.json", "--onnx", tmp_path / "risk.onnx")


def test_a_plan_survives_its_json_and_its_flower_app(plan, tmp_path):
    assert Plan.from_json(plan.as_json()) == plan
    write_app(tmp_path / "app", plan, banks=3, out=tmp_path / "out", patience_s=30)
    written = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())
    config = written["tool"]["flwr"]["app"]["config"]
    assert Plan.from_json(config["plan"]) == plan
    assert config["banks"] == 3


def test_flower_is_told_to_send_nothing_home_and_sees_no_variable_of_the_caller(monkeypatch, tmp_path):
    monkeypatch.setenv("WEIR_KEYS_TOKEN", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    variables = environment(tmp_path)
    assert variables["FLWR_TELEMETRY_ENABLED"] == "0"
    assert variables["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert variables["HOME"] == str(tmp_path)
    assert not {"WEIR_KEYS_TOKEN", "HTTPS_PROXY"} & set(variables)


def test_a_path_that_flower_cannot_read_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="quotation mark"):
        node_config("A", tmp_path / "o'brien", tmp_path)
    assert node_config("A", Path("/data/bank a"), Path("/s")) == 'bank="A" data="/data/bank a" scratch="/s"'
