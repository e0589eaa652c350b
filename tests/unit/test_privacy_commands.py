"""`weir privacy`, as a person types it: nothing is spent unseen, nothing uncounted stands beside a model."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from services.simulator.bank import Bank
from services.simulator.parquet import write_history
from services.simulator.settings import SimulatorSettings
from services.training.command import Protocol, split_from, table_from
from services.training.data import read_events
from services.training.errors import TrainingError
from services.training.privacy import cli, run
from services.training.privacy.cli import app
from services.training.privacy.ledger import LEDGER, BudgetRefused, LedgerDamaged
from services.training.privacy.noise import Noise
from services.training.privacy.units import History, Unit
from services.training.settings import TrainingSettings
from weir.errors import WeirError
from weir.features.payments import FEATURE_SPEC, FEATURES


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    """Forty days of a small bank with much fraud."""
    folder = tmp_path_factory.mktemp("bank")
    write_history(Bank(SimulatorSettings(seed=5, accounts=300, terminals=60, fraud_intensity=6)), folder, 40)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """A usual model of single features, few draws: these tests are about what is told and spent."""
    for name, value in (("PAIRS_MAX", 0), ("THREADS", 1), ("BOOTSTRAP_DRAWS", 20)):
        monkeypatch.setenv(f"WEIR_TRAINING_{name}", str(value))


@pytest.fixture
def bank(simulated, tmp_path) -> Path:
    """A copy of it, with a budget of epsilon 4 for one account."""
    folder = Path(shutil.copytree(simulated, tmp_path / "bank"))
    call("budget", folder, "--epsilon", 4, "--delta", 1e-6)
    return folder


def call(*words: object) -> str:
    """Standard output of a command; a WeirError comes out as itself."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, WeirError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def spent(folder: Path) -> dict:
    return json.loads(call("spent", folder, "--json"))


def test_a_model_is_written_with_what_it_costs_and_the_ledger_says_the_same(bank, tmp_path):
    out = tmp_path / "risk.onnx"
    told = json.loads(call("train", bank, "--epsilon", 2, "--out", out, "--no-measure", "--json"))
    statement = json.loads((tmp_path / "risk.json").read_text())
    privacy = statement["privacy"]
    assert (privacy["epsilon"], privacy["delta"], privacy["unit"]) == (2.0, 1e-6, "account")
    assert privacy["private"] is True
    assert privacy["calibration"] == "none"
    assert told["privacy"] == privacy
    assert told["not_private"] == {}
    line = json.loads((bank / LEDGER).read_text().splitlines()[-1])
    assert (line["id"], line["mu"]) == (privacy["spend"], privacy["mu"])
    assert spent(bank)["epsilon_spent"] == pytest.approx(2.0)
    graph = onnx.load(out)
    assert {entry.key: entry.value for entry in graph.metadata_props}["weir.feature_spec"] == FEATURE_SPEC
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    (probability,) = session.run(["probability"], {"features": np.zeros((2, len(FEATURES)), np.float32)})
    assert ((probability > 0) & (probability < 1)).all()


def test_nothing_exact_about_the_events_stands_beside_the_model(bank, tmp_path):
    """A fingerprint or an exact count would tell one data set from its neighbour with certainty."""
    call("train", bank, "--epsilon", 1, "--out", tmp_path / "risk.onnx", "--no-measure")
    text = (tmp_path / "risk.json").read_text()
    events = read_events(bank)
    learnt = run.learning(split_from(events, TrainingSettings(), Protocol.LATER)).rows(events.event_ms)
    for secret in (events.fingerprint, events.payments.row_count, learnt.sum(), events.is_fraud.sum()):
        assert f'"{secret}"' not in text
        assert f" {secret}," not in text


def test_figures_are_printed_beside_the_usual_models_and_marked_as_not_private(bank, tmp_path):
    out = tmp_path / "risk.onnx"
    shown = call("train", bank, "--epsilon", 3, "--out", out, "--quick")
    assert "no budget covers them" in shown
    lines = {line.split()[0]: line for line in shown.splitlines() if "AUC" in line}
    assert set(lines) == {"private", "usual"}
    assert all(line.count(" to ") == 2 for line in lines.values())


def test_a_run_beyond_the_budget_is_refused_before_anything_is_computed(bank, tmp_path, monkeypatch):
    call("train", bank, "--epsilon", 3, "--out", tmp_path / "one.onnx", "--no-measure")
    before = spent(bank)
    monkeypatch.setattr(cli, "table_from", lambda *_: pytest.fail("the events were used"))
    with pytest.raises(BudgetRefused, match="is left of 4"):
        call("train", bank, "--epsilon", 3, "--out", tmp_path / "two.onnx")
    assert spent(bank) == before
    assert not (tmp_path / "two.onnx").exists()


def test_a_run_that_fails_has_spent(bank, tmp_path, monkeypatch):
    def fail(*_):
        raise TrainingError("the disk is full")

    monkeypatch.setattr(run, "write_pair", fail)
    with pytest.raises(TrainingError, match="disk is full"):
        call("train", bank, "--epsilon", 1, "--out", tmp_path / "one.onnx", "--no-measure")
    assert spent(bank)["runs"] == 1


@pytest.mark.parametrize(
    ("out", "words"),
    [("risk.onnx", "exists"), ("risk.txt", "end in .onnx"), ("no/risk.onnx", "no folder|not a")],
)
def test_a_file_that_cannot_be_written_costs_nothing(bank, tmp_path, out, words):
    (tmp_path / "risk.onnx").write_bytes(b"another model")
    with pytest.raises(TrainingError, match=words):
        call("train", bank, "--epsilon", 1, "--out", tmp_path / out)
    assert spent(bank)["runs"] == 0
    assert (tmp_path / "risk.onnx").read_bytes() == b"another model"


def test_without_a_budget_nothing_trains_and_the_command_to_set_one_is_told(simulated, tmp_path):
    with pytest.raises(BudgetRefused, match="weir privacy budget"):
        call("train", simulated, "--epsilon", 1, "--out", tmp_path / "risk.onnx")
    assert spent(simulated)["budget"] is None


def test_a_damaged_ledger_stops_every_command_that_would_spend(bank, tmp_path):
    (bank / LEDGER).write_text("")
    for words in (("spent", bank), ("train", bank, "--epsilon", 1, "--out", tmp_path / "risk.onnx")):
        with pytest.raises(LedgerDamaged, match="restored from a copy"):
            call(*words)


def test_a_delta_that_could_give_one_account_away_is_refused(simulated):
    with pytest.raises(TrainingError, match="giving one account away"):
        call("budget", simulated, "--epsilon", 1, "--delta", 0.01)


def test_an_epsilon_is_not_chosen_by_figures_of_events_that_have_a_budget(bank):
    with pytest.raises(BudgetRefused, match="simulated bank"):
        call("curve", bank)


def test_the_curve_shows_every_epsilon_for_both_units_beside_the_usual_model(simulated):
    shown = json.loads(call("curve", simulated, "--quick", "--runs", 2, "--json"))
    assert [point["epsilon"] for point in shown["points"]] == [None, None, *(2 * [0.5, 1.0, 2.0, 4.0, 8.0])]
    for point in shown["points"]:
        figure = point["average_precision"]
        assert 0 <= figure["lowest"] <= figure["mean"] <= figure["highest"] <= 1


def test_the_attack_compares_an_overfitted_a_usual_and_private_models(simulated):
    words = ("attack", simulated, "--accounts", 60, "--shadows", 2, "--json")
    attacks = json.loads(call(*words))["attacks"]
    assert {each["model"] for each in attacks} == {
        "overfitted", "usual", "private, one payment", "private, one account",
    }  # fmt: skip
    assert {each["attack"] for each in attacks} == {"loss", "likelihood"}


def test_own_features_alone_cover_an_account_whole_and_the_statement_says_so(simulated):
    events = read_events(simulated)
    table = table_from(events, TrainingSettings())
    own = run.Plan(1.0, 1e-6)
    made = own.fit(table, Noise(1))
    used = {FEATURES[table.features[0]] for table in made.model.tables}
    assert not any(name.startswith("terminal_") for name in used)
    assert "all its payments" in own.statement(made, spend=None)["covers"]
    assert own.statement(made, spend=None)["private"] is False
    wide = run.Plan(1.0, 1e-6, history=History.ALL)
    assert "not covered" in wide.covers
    assert "not covered" in run.Plan(1.0, 1e-6, Unit.PAYMENT).covers
