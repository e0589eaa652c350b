"""The search for settings, and the teacher: resumable, before the test week, never below where it began."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from infra.local.layout import ROOT
from services.training.data import DAY_MS
from services.training.errors import TrainingError
from services.training.fit import Recipe, Rows
from services.training.search import FOUND, JOURNAL, Search, folds, read_found
from services.training.split import Window
from services.training.teacher import Lesson, TeacherRecipe, opinions, taught
from services.training.train import Table, fit
from tests.support.training import small_bank, small_table

QUICK = Recipe(threads=1).quick()
TEACHER = TeacherRecipe(threads=1, bags=1, rounds_max=20, leaves=4)


@pytest.fixture(scope="module")
def table() -> Table:
    return small_table()


def begun(table: Table, folder, **changes) -> Search:
    return Search(table, folder, **{"fold_count": 1, "honest_max": 2000, "seed": 7, "threads": 1} | changes)


def quietly(name: str, done: int, best: float) -> None:
    """Progress that nobody watches."""


def rows_of(table: Table) -> Rows:
    return table.known_rows(table.split.train, honest_max=3000, seed=7)


@pytest.fixture(scope="module")
def found(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    return folder, begun(table, folder).run(4, minutes=10, progress=quietly)


def test_every_judged_week_lies_before_the_test_week(table):
    for fold in folds(table, 8):
        assert fold.tune.end_ms <= fold.validation.start_ms < fold.validation.end_ms
        assert fold.validation.end_ms <= table.split.test.start_ms
        assert fold.tune.end_ms - fold.tune.start_ms >= 7 * DAY_MS


def test_a_search_does_not_end_below_what_it_began_with(found):
    _, about = found
    figures = about["average_precision"]
    assert figures["student"] >= figures["student_before"]
    assert about["trials"]["teacher"].get("complete", 0) + about["trials"]["teacher"].get("pruned", 0) == 2


def test_what_was_found_trains_a_model(found, table):
    folder, about = found
    recipe, lesson = read_found(folder, table, QUICK)
    assert recipe.leaves == about["student"]["leaves"]
    assert recipe.bags == QUICK.bags
    assert lesson.share == about["share"]


def test_a_search_that_is_called_again_goes_on_where_it_was(table, tmp_path):
    begun(table, tmp_path).run(2, minutes=10, progress=quietly)
    told = []
    begun(table, tmp_path).run(4, minutes=10, progress=lambda name, done, best: told.append((name, done)))
    assert told == [("teacher", 2), ("student", 2)]


def test_a_trial_that_was_cut_off_by_a_kill_is_tried_anew(table, tmp_path):
    first = begun(table, tmp_path)
    study = first._study("teacher")
    killed = study.ask()
    rate = killed.suggest_float("learning_rate", 0.02, 0.15, log=True)
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 5, "worker_id": "cut')  # what a kill leaves of a line
    about = begun(table, tmp_path).run(2, minutes=10, progress=quietly)
    assert about["trials"]["teacher"]["fail"] == 1
    again = begun(table, tmp_path)._study("teacher").trials
    assert any(trial.params.get("learning_rate") == rate for trial in again if trial.number != killed.number)


def test_two_processes_search_side_by_side_in_one_folder(tmp_path):
    small_bank(tmp_path / "bank")
    words = [
        "train",
        "search",
        "--data",
        "bank",
        "--out",
        "search",
        "--trials",
        "4",
        "--weeks",
        "1",
        "--json",
    ]
    environment = os.environ | {"WEIR_TRAINING_HONEST_ROWS_MAX": "1000", "WEIR_TRAINING_THREADS": "1"}
    searches = [
        subprocess.Popen(
            [sys.executable, "-m", "services.training", *words],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    found = []
    for search in searches:
        out, err = search.communicate(timeout=200)
        assert search.returncode == 0, err
        found.append(json.loads(out))
    # None of the other's running trials was taken for a dead one's.
    assert all("fail" not in counts for each in found for counts in each["trials"].values())
    assert max(each["trials"]["student"]["complete"] for each in found) >= 1


def test_a_search_without_time_says_so_and_keeps_what_it_has(table, tmp_path):
    with pytest.raises(TrainingError, match="call it again"):
        begun(table, tmp_path).run(4, minutes=0, progress=quietly)
    assert (tmp_path / JOURNAL).exists()
    assert not (tmp_path / FOUND).exists()


def test_a_search_on_other_events_is_not_mixed_into_one(table, tmp_path):
    begun(table, tmp_path).run(2, minutes=10, progress=quietly)
    other = replace(table, events=replace(table.events, fingerprint="another"))
    with pytest.raises(TrainingError, match="other events"):
        begun(other, tmp_path).run(2, minutes=10, progress=quietly)


def test_settings_chosen_on_the_test_week_are_refused(found, table, tmp_path):
    _, about = found
    late = {**about, "judged_until_ms": table.split.test.start_ms + 1}
    (tmp_path / FOUND).write_text(json.dumps(late))
    with pytest.raises(TrainingError, match="reach into the test week"):
        read_found(tmp_path, table, QUICK)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[1]", '{"student": {"leafs": 3}, "teacher": {}, "share": 0}'],
    ids=["empty", "no-fields", "a-list", "unknown-setting"],
)
def test_a_file_that_no_search_wrote_is_refused_in_one_line(content, table, tmp_path):
    (tmp_path / FOUND).write_text(content)
    with pytest.raises(TrainingError, match="Search again"):
        read_found(tmp_path, table, QUICK)


def test_no_search_is_one_line_too(table, tmp_path):
    with pytest.raises(TrainingError, match="weir train search"):
        read_found(tmp_path, table, QUICK)


def test_a_teachers_opinion_of_a_row_does_not_come_from_its_own_label(table):
    rows = rows_of(table)
    # The last block's labels are turned round: what is thought of that block must not move.
    block = np.arange(len(rows.x)) * 4 // len(rows.x) == 3
    turned = replace(rows, is_fraud=np.where(block, ~rows.is_fraud, rows.is_fraud))
    one, two = (opinions(each, table.features, 20, TEACHER) for each in (rows, turned))
    assert np.array_equal(one[block], two[block])
    assert not np.array_equal(one[~block], two[~block])


def test_a_lesson_mixes_opinion_and_label(table):
    rows = rows_of(table)
    opinion = np.full(len(rows.x), 0.25)
    assert taught(rows, opinion, 0.0) is rows
    mixed = taught(rows, opinion, 0.4)
    assert mixed.label[rows.is_fraud] == pytest.approx(0.4 * 0.25 + 0.6)
    assert mixed.label[~rows.is_fraud] == pytest.approx(0.4 * 0.25)


def test_a_student_that_only_listens_to_its_teacher_still_tells_fraud(table):
    made = fit(table, QUICK, honest_max=3000, lesson=Lesson(TEACHER, 1.0))
    plain = fit(table, QUICK, honest_max=3000)
    rows = table.test_rows(7)
    assert not np.array_equal(made.model.logit(table.x[rows]), plain.model.logit(table.x[rows]))
    score = made.model.logit(table.x[rows])
    fraud = table.events.is_fraud[rows]
    assert np.median(score[fraud]) > np.median(score[~fraud])


def test_a_history_too_short_for_a_second_week_is_searched_on_one(table):
    short = replace(
        table,
        split=replace(
            table.split,
            tune=Window(table.split.tune.end_ms - 8 * DAY_MS, table.split.tune.end_ms),
        ),
    )
    assert len(folds(short, 5)) == 1
