"""Validation report and data card: what was measured, the same each time, in both languages; no customer."""

import json
import re
from dataclasses import replace
from io import BytesIO
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pypdf import PdfReader

from services.training.errors import TrainingError
from services.training.papers.compose import validation_report
from services.training.papers.facts import Facts, gather
from services.training.papers.paper import Heading, Paper, Rows, Text, to_html, to_pdf
from services.training.papers.words import words
from services.training.repository import ModelRepository
from services.training.thresholds import Costs
from tests.support.training import small_bank, small_table
from tests.unit.test_training_pipeline import call

FINDINGS = re.findall(r'out\.append\("(\w+)"\)', Path(gather.__code__.co_filename).read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A bank, a repository with version 1, and its papers."""
    folder = tmp_path_factory.mktemp("papers")
    bank = small_bank(folder / "bank")
    call("train", "risk", "--data", bank, "--quick", "--repository", folder / "models")
    words_ = ("models", "papers", "1", "--data", bank, "--repository", folder / "models")
    call(*words_, "--out", folder / "out", "--reviews-day", "5")
    return bank, folder / "models", folder / "out"


@pytest.fixture(scope="module")
def facts(made) -> Facts:
    _, models, _ = made
    served = ModelRepository(models).open("risk", "1")
    return gather(small_table(), served, None, costs=Costs(), reviews_day=5, draws=20, seed=7)


def test_every_paper_is_there_in_both_languages_and_forms(made):
    *_, out = made
    names = {".".join(each) for each in product(("validation", "data-card"), ("en", "zh"), ("html", "pdf"))}
    assert {path.name for path in out.iterdir()} == names | {"validation.json"}


def test_measured_on_the_data_it_was_trained_from_the_recorded_figures_repeat(made):
    *_, out = made
    about = json.loads((out / "validation.json").read_text())
    assert about["same_data"]
    assert about["recorded_figures_off_by"] < 1e-3
    assert about["contributions_off_by"] < 1e-4
    assert "not_repeated" not in about["findings"]


def test_the_same_run_gives_the_same_bytes(made, tmp_path):
    bank, models, out = made
    words_ = ("models", "papers", "1", "--data", bank, "--repository", models)
    call(*words_, "--out", tmp_path, "--reviews-day", "5")
    for path in out.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_page_and_the_pdf_say_the_figures_and_where_the_model_comes_from(made):
    _, models, out = made
    about = json.loads((models / "risk/1/model.json").read_text())
    figures = json.loads((out / "validation.json").read_text())["report"]["metrics"]
    page = (out / "validation.en.html").read_text()
    text = "".join(each.extract_text() for each in PdfReader(out / "validation.en.pdf").pages)
    for told in (page, text):
        assert about["trained"]["data"]["fingerprint"] in told
        assert f"{figures['average_precision']['value']:.3f}" in told
    assert about["sha256"] in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_calibration_bins_hold_every_payment_once(facts):
    assert sum(each.rows for each in facts.bins) == facts.report.row_count
    assert sum(each.frauds for each in facts.bins) == facts.report.fraud_count
    expected = [each.expected for each in facts.bins]
    assert expected == sorted(expected)


def test_no_account_and_no_event_stands_in_a_paper(made):
    bank, _, out = made
    ids = pq.read_table(next(bank.glob("transactions-*.parquet"))).slice(0, 200)
    told = "".join(path.read_text() for path in out.glob("*.html")) + (out / "validation.json").read_text()
    for column in ("event_id", "account_id", "terminal_id"):
        for value in ids[column].to_pylist():
            assert value not in told


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"same_data": False}, "other_data"),
        ({"off": 0.2}, "not_repeated"),
        ({"added_up": 0.5}, "not_additive"),
    ],
)
def test_what_is_wrong_stands_first(facts, changed, finding):
    other = replace(facts, **changed)
    assert finding in other.findings()
    paper = validation_report(other, Costs(), 5, "en")
    assert Text("• " + words()[finding]["en"]) in list(paper.blocks)[:10]


def test_every_finding_and_every_word_has_both_languages():
    assert len(FINDINGS) >= 8
    for key in FINDINGS:
        assert key in words()
    for key, said in words().items():
        assert set(said) == {"en", "zh"}, key
        places = [sorted(re.findall(r"{\w+}", text)) for text in (said["en"], said["zh"])]
        assert places[0] == places[1], key


def test_what_comes_from_outside_is_escaped():
    hostile = "<b onload=alert(1)>&"
    paper = Paper(hostile, hostile, [Heading(hostile), Text(hostile), Rows((hostile,), ((hostile,),))], "en")
    assert "<b onload" not in to_html(paper)
    assert "onload" in PdfReader(BytesIO(to_pdf(paper))).pages[0].extract_text()


def test_a_font_that_cannot_be_embedded_is_told_in_one_line(tmp_path):
    (tmp_path / "no.ttf").write_bytes(b"no font")
    paper = Paper("标题", "", [Text("文字 and letters")], "zh")
    with pytest.raises(TrainingError, match="TrueType"):
        to_pdf(paper, tmp_path / "no.ttf")
    assert "标题" in PdfReader(BytesIO(to_pdf(paper))).pages[0].extract_text()
