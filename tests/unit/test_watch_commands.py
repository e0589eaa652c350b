"""`weir watch`: from events to a table, a page, gauges and a candidate; what stops it, in one line."""

import fcntl
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from services.training.__main__ import app as training
from services.training.repository import ModelRepository
from services.training.watch import gauges, retrain
from services.training.watch.cli import app
from services.training.watch.errors import AlarmRaised, RetrainRefused, WatchRefused
from tests.support.training import small_bank
from weir.errors import BadInput, WeirError
from weir.inference.stages import LOG, PEOPLE, Stage, Stages

DAYS, FIRST_DAYS = 92, 64


def call(*words: object, commands=app) -> str:
    """Standard output of a command; a WeirError comes out as itself."""
    result = CliRunner().invoke(commands, [str(word) for word in words])
    if isinstance(result.exception, WeirError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    return small_bank(tmp_path_factory.mktemp("bank"), days=DAYS)


@pytest.fixture(scope="module")
def trained(bank, tmp_path_factory) -> Path:
    """A version of the bank's first days."""
    first = small_bank(tmp_path_factory.mktemp("first"), days=FIRST_DAYS)
    home = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIR_TRAINING_BOOTSTRAP_DRAWS", "20")
        patch.setenv("WEIR_TRAINING_THREADS", "1")
        call("train", "risk", "--data", first, "--quick", "--repository", home, commands=training)
    return home


@pytest.fixture
def models(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "models"))


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setenv("WEIR_TRAINING_BOOTSTRAP_DRAWS", "20")
    monkeypatch.setenv("WEIR_TRAINING_THREADS", "1")


@pytest.fixture
def dearer(bank, tmp_path) -> Path:
    """The bank, with every amount of the last four weeks times eight."""
    folder = Path(shutil.copytree(bank, tmp_path / "dearer"))
    newest = max(pc.max(pq.read_table(path)["event_time"]).as_py() for path in folder.glob("transactions-*"))
    start = pa.scalar(np.datetime64(newest.replace(tzinfo=None), "ms") - np.timedelta64(28, "D")).cast(
        pa.timestamp("ms", "UTC")
    )
    for path in folder.glob("transactions-*.parquet"):
        table = pq.read_table(path)
        late = pc.greater_equal(table["event_time"], start)
        eight = pc.multiply(pc.cast(table["amount"], pa.float64()), pc.if_else(late, 8.0, 1.0))
        amount = pc.cast(pc.round(eight, 2), table["amount"].type, safe=False)
        pq.write_table(
            table.set_column(table.column_names.index("amount"), table.field("amount"), amount), path
        )
    return folder


def risk(data: Path, models: Path, *words: object) -> dict:
    return json.loads(call("risk", "--data", data, "--model", "1", "--repository", models, "--json", *words))


def test_a_quiet_bank_is_judged_by_week_against_the_versions_own_window(bank, trained):
    found = risk(bank, trained)
    about = ModelRepository(trained).about("risk", "1")
    assert found["reference"] == about["trained"]["split"]["validation"]
    assert [each["ripe"] for each in found["weeks"]][-2:] == [False, False]
    assert found["weeks"][0]["ripe"]
    assert found["drift"]["features"]
    assert {"auc_roc", "observed_expected"} <= set(found["performance"]["reference"]["metrics"])
    assert not [each for each in found["alarms"] if each["kind"] == "score"]


def test_amounts_in_another_unit_are_told_and_end_with_the_alarms_code_in_one_line(dearer, trained):
    found = risk(dearer, trained)
    assert {"amount", "amount_log"} <= {each["what"] for each in found["alarms"]}
    with pytest.raises(AlarmRaised, match="amount") as error:
        call("risk", "--data", dearer, "--model", "1", "--repository", trained, "--fail-on-alarm")
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)


def test_nothing_later_than_as_of_is_known(dearer, trained, bank):
    """As of a day before the change, both folders give the same findings."""
    last = risk(dearer, trained)["as_of"][:10]
    before = str(np.datetime64(last) - np.timedelta64(30, "D"))
    one, two = (risk(folder, trained, "--as-of", before) for folder in (bank, dearer))
    for each in (one, two):
        each.pop("fingerprint")
    assert one == two


def test_only_the_newest_weeks_are_judged_when_asked(bank, trained):
    assert risk(bank, trained, "--weeks", 2)["weeks"] == risk(bank, trained)["weeks"][-2:]


def test_the_page_opens_without_anything_from_elsewhere_in_both_languages(bank, trained, tmp_path):
    for language, word in (("en", "Week by week"), ("zh", "按周")):
        out = tmp_path / language
        risk(bank, trained, "--out", out, "--language", language)
        page = (out / "watch.html").read_text(encoding="utf-8")
        assert word in page
        assert not re.search(r"<script|https?://|src=|@import", page)
        assert json.loads((out / "watch.json").read_text())["model"]["version"] == "1"


def test_the_terminal_says_which_weeks_are_not_ripe(bank, trained):
    told = call("risk", "--data", bank, "--model", "1", "--repository", trained)
    assert "labels still come in" in told
    assert "alarms" in told


def test_gauges_are_prometheus_text_with_no_label_that_grows(dearer, trained, tmp_path):
    path = tmp_path / "weir_model.prom"
    path.write_text("old")
    risk(dearer, trained, "--metrics-file", path)
    lines = path.read_text().splitlines()
    values = [line for line in lines if not line.startswith("#")]
    pattern = r'(weir_model_\w+)\{((?:\w+="[^"]*",?)+)\} (-?[\d.]+(?:e[+-]?\d+)?)'
    matches = [re.fullmatch(pattern, line) for line in values]
    assert all(matches)
    names = {match[1] for match in matches if match}
    assert names == set(gauges.GAUGES)
    for name in names:
        assert f"# TYPE {name} gauge" in lines
    labels = {label for match in matches if match for label in re.findall(r"(\w+)=", match[2])}
    assert labels <= {"model", "version", "feature", "kind", "window"}
    assert 'weir_model_drift_level{model="risk",version="1",feature="amount"} 2.0' in values
    assert [each.name for each in tmp_path.glob("*weir_model*")] == ["weir_model.prom"]


def test_gauges_that_cannot_be_written_leave_the_old_ones(tmp_path, monkeypatch):
    path = tmp_path / "weir_model.prom"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        gauges.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_groups_come_from_a_file_of_their_own(bank, trained, tmp_path):
    path = next(iter(sorted(bank.glob("transactions-*.parquet"))))
    ids = sorted(set(pq.read_table(path, columns=["account_id"])["account_id"].to_pylist()))
    file = tmp_path / "groups.csv"
    file.write_text("account_id,group\n" + "".join(f"{each},{'ab'[at % 2]}\n" for at, each in enumerate(ids)))
    found = risk(bank, trained, "--groups", file)["fairness"]
    assert {each["group"] for each in found["groups"]} == {"a", "b"}
    parquet = tmp_path / "groups.parquet"
    pq.write_table(
        pa.table({"account_id": ids, "group": [f"{'ab'[at % 2]}" for at in range(len(ids))]}), parquet
    )
    assert risk(bank, trained, "--groups", parquet)["fairness"] == found
    file.write_text(f"account_id,group\n{ids[0]},a\n{ids[0]},b\n")
    with pytest.raises(BadInput, match="twice") as error:
        risk(bank, trained, "--groups", file)
    assert ids[0] not in str(error.value)
    file.write_text("account,group\nx,a\n")
    with pytest.raises(BadInput, match="account_id and group"):
        risk(bank, trained, "--groups", file)


def test_a_version_of_other_features_is_not_watched_by_this_code(bank, models):
    path = models / "risk/1/model.json"
    path.write_text(path.read_text().replace('"feature_spec": "', '"feature_spec": "0'))
    with pytest.raises(WeirError, match="feature"):
        risk(bank, models)


def test_a_moment_before_all_payments_is_refused(bank, trained):
    with pytest.raises(WatchRefused, match="before --as-of"):
        risk(bank, trained, "--as-of", "1999-01-01")


def test_a_folder_for_the_gauges_that_is_not_there_is_told_before_anything_is_judged(trained, tmp_path):
    with pytest.raises(WatchRefused, match="--metrics-file"):
        risk(tmp_path / "no-events", trained, "--metrics-file", tmp_path / "nowhere/weir.prom")


# -- training again --


def again(data: Path, models: Path, *words: object) -> dict:
    head = ("retrain", "--data", data, "--model", "1", "--repository", models, "--quick", "--json")
    return json.loads(call(*head, "--pinned", *words))


def test_drift_trains_a_candidate_once_beside_the_served_version_which_stays(dearer, models):
    before = {path: path.read_bytes() for path in (models / "risk/1").iterdir()}
    config = (models / "risk/config.pbtxt").read_bytes()
    made = again(dearer, models, "--on-drift")
    assert made["trained"]
    assert made["promoted"] is False
    assert "amount" in {each["what"] for each in made["alarms"]}
    assert made["candidate"]["rows"] == made["served"]["rows"]
    for moved in made["difference"].values():
        assert moved["low"] <= moved["value"] <= moved["high"]
    ModelRepository(models).verify("risk", "2")
    folder = models / "risk/2"
    assert json.loads((folder / retrain.REPORT).read_text())["served_version"] == "1"
    assert "same later week" in (folder / retrain.REPORT_TEXT).read_text()
    assert {path: path.read_bytes() for path in (models / "risk/1").iterdir()} == before
    assert (models / "risk/config.pbtxt").read_bytes() == config
    assert again(dearer, models, "--on-drift") == {"trained": False}
    assert again(dearer, models, "--every-days", 1) == {"trained": False}


def test_a_quiet_bank_trains_by_the_schedule_alone(bank, models):
    assert again(bank, models, "--every-days", 100) == {"trained": False}
    made = again(bank, models, "--every-days", 20)
    assert made["trained"]
    assert made["alarms"] == []
    assert made["window"] < made["as_of"][:10]


def test_two_runs_at_once_are_refused(bank, models):
    with (models / "risk/.retrain.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RetrainRefused, match="another"):
            again(bank, models, "--every-days", 1)
    assert ModelRepository(models).versions("risk") == [1]


def test_a_run_that_dies_leaves_nothing_and_what_a_killed_one_left_is_cleared(bank, models, monkeypatch):
    left = models / "risk/.retrain.1.partial"
    left.mkdir()

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(retrain, "report_text", full)
    words = ["retrain", "--data", bank, "--model", "1", "--repository", models, "--quick", "--pinned"]
    result = CliRunner().invoke(app, [*map(str, words), "--every-days", "1"])
    assert isinstance(result.exception, OSError)
    assert sorted(path.name for path in (models / "risk").iterdir()) == [".retrain.lock", "1", "config.pbtxt"]


def test_a_served_version_that_learnt_from_the_judging_week_is_not_compared(bank, models):
    with pytest.raises(RetrainRefused, match="not before the week"):
        again(bank, models, "--every-days", 1, "--as-of", "2026-03-10", "--ripe-days", 14)
    assert ModelRepository(models).versions("risk") == [1]


def test_no_candidate_is_trained_where_a_service_would_take_it_by_itself(bank, models):
    words = ("retrain", "--data", bank, "--model", "1", "--repository", models, "--every-days", "1")
    with pytest.raises(RetrainRefused, match="--pinned"):
        call(*words)


def test_only_the_champion_is_retrained_where_there_is_a_log_of_stages(models, monkeypatch):
    asked = []

    def log(path: Path, people: Path) -> Stages:
        asked.append((path, people))
        stages = Stages()
        stages.stages["3"] = Stage.CHAMPION
        return stages

    monkeypatch.setattr(retrain, "read_stages", log)
    repository = ModelRepository(models)
    retrain.require_unserved(repository, "3", pinned=False)
    with pytest.raises(RetrainRefused, match="champion is 3"):
        retrain.require_unserved(repository, "1", pinned=True)
    assert asked[0] == (models / "risk" / LOG, models / PEOPLE)


def test_retraining_without_a_reason_to_is_told_how_to_ask(bank, models):
    with pytest.raises(RetrainRefused, match="--every-days"):
        again(bank, models)
