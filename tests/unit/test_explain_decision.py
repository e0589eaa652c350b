"""`weir explain`, as a reviewer types it: the page adds up, names nobody; what is wrong takes one line."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from services.training import cli as training_cli
from services.training.data import read_events
from services.training.errors import DataMissing, ModelBroken, ModelMissing, TrainingError
from services.training.explain import cli
from services.training.explain.cli import app
from services.training.explain.decision import EventNotFound, place_of, rounded_to_sum
from services.training.explain.page import page
from services.training.explain.words import WORDS, read_reasons
from services.training.imported import from_onnx
from tests.support.training import small_bank
from weir.errors import WeirError
from weir.features.payments import FEATURES

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert('x')</script>&\"'<img src=x onerror=y>"


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    for name, value in (("THREADS", 1), ("BOOTSTRAP_DRAWS", 20)):
        monkeypatch.setenv(f"WEIR_TRAINING_{name}", str(value))


def call(*words: object, program=app) -> str:
    """Standard output of a command; a WeirError comes out as itself."""
    result = CliRunner().invoke(program, [str(word) for word in words])
    if isinstance(result.exception, WeirError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    return small_bank(tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="module")
def home(bank, tmp_path_factory) -> Path:
    """A repository with one quick version."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIR_TRAINING_THREADS", "1")
        patch.setenv("WEIR_TRAINING_BOOTSTRAP_DRAWS", "10")
        call("risk", "--data", bank, "--quick", "--repository", folder, program=training_cli.train)
    return folder


@pytest.fixture(scope="module")
def riskiest(bank, home) -> tuple[str, np.ndarray]:
    """Event id and features of the payment with the highest score of the last week."""
    events = read_events(bank)
    x = events.features()
    model = from_onnx(onnx.load(str(home / "risk/1/model.onnx")))
    late = np.flatnonzero(events.event_ms > events.event_ms[-1] - 7 * 86_400_000)
    at = int(late[np.argmax(model.logit(x[late]))])
    # The simulator writes payments in time order, so the table as read is the table as sorted.
    return ids(bank)[at], x[at]


def ids(folder: Path) -> list[str]:
    files = sorted(folder.glob("transactions-*.parquet"))
    return [each for file in files for each in pq.read_table(file)["event_id"].to_pylist()]


def words_for(bank: Path, home: Path, event: str) -> tuple[object, ...]:
    return ("decision", "--data", bank, "--model", 1, "--repository", home, "--event", event)


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def test_json_adds_up_to_the_logit_and_gives_the_features_of_that_event(bank, home, riskiest):
    event, row = riskiest
    told = json.loads(call(*words_for(bank, home, event), "--json"))
    added = told["base_logit"] + sum(each["contribution"] for each in told["features"])
    assert added == pytest.approx(told["logit"], abs=1e-12)
    assert [np.float32(each["value"]) for each in told["features"]] == list(row)
    assert [each["feature"] for each in told["features"]] == list(FEATURES)
    about = json.loads((home / "risk/1/model.json").read_text())
    assert told["model"] == {key: about[key] for key in ("name", "version", "sha256", "feature_spec")}
    assert told["place"]["share_below"] > 0.99


def test_the_score_is_the_served_graphs(bank, home, riskiest):
    from services.training.repository import ModelRepository

    event, row = riskiest
    served = ModelRepository(home).open("risk", "1").run(row[None])
    told = json.loads(call(*words_for(bank, home, event), "--json"))
    assert told["logit"] == pytest.approx(float(served["logit"][0, 0]), abs=1e-5)
    assert told["probability"] == pytest.approx(float(served["probability"][0, 0]), abs=1e-6)
    shown = [each["contribution"] for each in told["features"]]
    np.testing.assert_allclose(shown, served["contributions"][0], atol=1e-5)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_sum_on_the_page_adds_up_exactly_as_printed(bank, home, riskiest, tmp_path, language):
    event, _ = riskiest
    out = tmp_path / "page.html"
    call(*words_for(bank, home, event), "--lang", language, "--out", out)
    line = re.search(r"<p class=sum>([^=]*) = <strong>(.*?)</strong>", out.read_text("utf-8"))
    assert line
    shown = re.findall(r"([+−]\d+\.\d{4}) <small>", line[1])
    tenths = [int(each.replace("−", "-").replace(".", "")) for each in (*shown, line[2])]
    assert len(shown) > 3
    assert sum(tenths[:-1]) == tenths[-1]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_names_no_other_event_and_no_account_or_terminal(bank, home, riskiest, tmp_path, language):
    event, _ = riskiest
    out = tmp_path / "page.html"
    call(*words_for(bank, home, event), "--lang", language, "--out", out)
    text = out.read_text("utf-8")
    known = {event}
    for file in bank.glob("transactions-*.parquet"):
        table = pq.read_table(file)
        for column in ("event_id", "account_id", "terminal_id"):
            known |= set(table[column].unique().to_pylist())
    named = {word for word in re.findall(r"[A-Za-z0-9_-]+", text) if word in known}
    assert named == {event}


def test_the_page_has_no_script_and_fetches_nothing(bank, home, riskiest, tmp_path):
    out = tmp_path / "page.html"
    call(*words_for(bank, home, riskiest[0]), "--out", out)
    reader = read(out.read_text("utf-8"))
    assert not reader.tags & {"script", "link", "img", "iframe", "object", "form", "a"}
    assert not reader.attributes & {"src", "href", "onclick", "onload"}
    assert "url(" not in out.read_text("utf-8")
    assert "http" not in out.read_text("utf-8").replace("http-equiv", "")


def test_reviewed_texts_of_both_languages_stand_beside_the_bars(bank, home, riskiest, tmp_path):
    texts = read_reasons(None)
    told = json.loads(call(*words_for(bank, home, riskiest[0]), "--json"))
    first = max(told["features"], key=lambda each: abs(each["contribution"]))
    way = "raises" if first["contribution"] > 0 else "lowers"
    for language in ("en", "zh"):
        out = tmp_path / f"{language}.html"
        call(*words_for(bank, home, riskiest[0]), "--lang", language, "--out", out)
        assert texts[first["feature"]][f"{way}_{language}"] in read(out.read_text("utf-8")).text


def test_hostile_text_of_any_file_is_escaped(bank, home, riskiest, tmp_path):
    copied = Path(shutil.copytree(bank, tmp_path / "bank"))
    event, _ = riskiest
    for file in [*copied.glob("transactions-*.parquet"), *copied.glob("labels-*.parquet")]:
        table = pq.read_table(file)
        renamed = [HOSTILE if each == event else each for each in table["event_id"].to_pylist()]
        place = table.schema.get_field_index("event_id")
        pq.write_table(table.set_column(place, "event_id", pa.array(renamed)), file)
    texts = {
        name: {f"{way}_{tag}": HOSTILE for way in ("raises", "lowers") for tag in ("en", "zh")}
        for name in FEATURES
    }
    reasons = tmp_path / "reasons.toml"
    reasons.write_text(
        "".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(text)}\n" for key, text in each.items())
            for name, each in texts.items()
        )
    )
    out = tmp_path / "page.html"
    call(*words_for(copied, home, HOSTILE), "--out", out, "--reasons", reasons)
    text = out.read_text("utf-8")
    reader = read(text)
    assert "<script" not in text
    assert "<img" not in text
    assert not reader.tags & {"script", "img"}
    assert reader.text.count(HOSTILE) > 3


def test_without_a_file_of_reasons_the_page_goes_by_feature_names(
    bank, home, riskiest, tmp_path, monkeypatch
):
    monkeypatch.setattr("services.training.explain.words.REASONS", tmp_path / "none.toml")
    assert read_reasons(None) == {}
    told = call(*words_for(bank, home, riskiest[0]))
    assert any(name in told for name in FEATURES)


def test_a_file_of_reasons_that_is_none_is_told_in_one_line(bank, home, riskiest, tmp_path):
    path = tmp_path / "reasons.toml"
    for text in (None, "[amount", "amount = 3\n"):
        if text is not None:
            path.write_text(text)
        with pytest.raises(DataMissing, match="--reasons") as raised:
            call(*words_for(bank, home, riskiest[0]), "--reasons", path)
        assert "\n" not in str(raised.value)


def test_missing_values_are_shown_as_missing_and_the_rest_stands(bank, home, riskiest):
    from services.training.explain.decision import explain
    from services.training.explain.moves import Moves

    events = read_events(bank)
    x = events.features()
    at = place_of(bank, riskiest[0], events)
    x[at, [FEATURES.index("amount"), FEATURES.index("account_count_7d")]] = np.nan
    about = json.loads((home / "risk/1/model.json").read_text())
    model = from_onnx(onnx.load(str(home / "risk/1/model.onnx")))
    told = explain(
        events, x, at, riskiest[0], model=model, about=about, training=events.event_ms < events.event_ms[at],
        training_days="days", moves=Moves.load(), threshold=0.5,
    )  # fmt: skip
    plain = json.loads(json.dumps(told.as_dict(), allow_nan=False))
    amount = plain["features"][0]
    assert (amount["value"], amount["quantile"]) == (None, None)
    assert WORDS["missing"][0] in read(page(told, {}, "en")).text
    assert "nan" not in read(page(told, {}, "en")).text


def test_an_event_that_is_not_there_is_told_in_one_line_without_its_id(bank, home):
    with pytest.raises(EventNotFound, match="no event has that id") as raised:
        call(*words_for(bank, home, "E-nobody-knows"))
    assert "E-nobody" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_id_that_occurs_in_several_files_is_refused_with_their_names(bank, tmp_path):
    copied = Path(shutil.copytree(bank, tmp_path / "bank"))
    first, *_, last = sorted(copied.glob("transactions-*.parquet"))
    table, other = pq.read_table(first), pq.read_table(last)
    event = table["event_id"][0].as_py()
    renamed = pa.array([event, *other["event_id"].to_pylist()[1:]])
    place = other.schema.get_field_index("event_id")
    pq.write_table(other.set_column(place, "event_id", renamed), last)
    with pytest.raises(EventNotFound, match=f"2 events .*{first.name}, {last.name}") as raised:
        place_of(copied, event, read_events(bank))
    assert event not in str(raised.value)


def test_an_event_is_found_where_files_are_not_in_time_order(bank, tmp_path):
    """Equal times keep the order of the files, as `read_events` has it."""
    copied = Path(shutil.copytree(bank, tmp_path / "bank"))
    file = sorted(copied.glob("transactions-*.parquet"))[0]
    table = pq.read_table(file).slice(0, 2000)
    turned = table.take(np.random.default_rng(4).permutation(len(table)))
    for each in copied.glob("transactions-*.parquet"):
        each.unlink()
    pq.write_table(turned.slice(0, 900), copied / "transactions-b.parquet")
    pq.write_table(turned.slice(900), copied / "transactions-a.parquet")
    for each in copied.glob("labels-*.parquet"):
        labels = pq.read_table(each)
        kept = [event in set(table["event_id"].to_pylist()) for event in labels["event_id"].to_pylist()]
        pq.write_table(labels.filter(pa.array(kept)), each)
    events = read_events(copied)
    when = dict(
        zip(table["event_id"].to_pylist(), table["event_time"].cast(pa.int64()).to_pylist(), strict=True)
    )
    amount = dict(zip(table["event_id"].to_pylist(), table["amount"].to_pylist(), strict=True))
    for event in list(when)[::97]:
        at = place_of(copied, event, events)
        assert events.event_ms[at] == when[event]
        assert events.payments.amount[at] == int(amount[event] * 10_000)


def test_a_handbook_event_is_found_by_its_transaction_id(tmp_path):
    count = 200
    times = np.datetime64("2018-05-01T00:00:00", "ms") + np.arange(count)[::-1] * np.timedelta64(60_000, "ms")
    table = pa.table({
        "TRANSACTION_ID": np.arange(count) + 1000,
        "TX_DATETIME": pa.array(times),
        "CUSTOMER_ID": np.arange(count) % 7,
        "TERMINAL_ID": np.arange(count) % 5,
        "TX_AMOUNT_CENTS": np.arange(count) + 1,
        "TX_FRAUD": (np.arange(count) % 9 == 0).astype(int),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "2018-05-01.parquet")
    events = read_events(tmp_path)
    at = place_of(tmp_path, "1003", events)
    assert events.payments.amount[at] == 4 * 100


def test_a_version_that_is_broken_or_not_there_is_told_in_one_line(bank, home, riskiest, tmp_path):
    broken = Path(shutil.copytree(home, tmp_path / "models"))
    graph = broken / "risk/1/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-7])
    for command in ("decision", "model", "stability"):
        words = [command, "--data", bank, "--model", 1, "--repository", broken]
        words += {"decision": ["--event", riskiest[0]], "model": ["--out", tmp_path / "out"]}.get(command, [])
        with pytest.raises(ModelBroken, match="checksum") as raised:
            call(*words)
        assert "\n" not in str(raised.value)
    with pytest.raises(ModelMissing, match="no version 7"):
        call("decision", "--data", bank, "--model", 7, "--repository", home, "--event", riskiest[0])


def test_a_version_for_other_features_is_refused(bank, home, riskiest, monkeypatch):
    monkeypatch.setattr("weir.features.payments.FEATURE_SPEC", "000000000000")
    with pytest.raises(ModelBroken, match="feature_spec"):
        call(*words_for(bank, home, riskiest[0]))


def test_the_counterfactual_on_the_page_is_that_of_the_json_and_scores_below(bank, home, riskiest, tmp_path):
    event, row = riskiest
    out = tmp_path / "page.html"
    told = json.loads(call(*words_for(bank, home, event), "--threshold", 0.05, "--out", out, "--json"))
    text = read(out.read_text("utf-8")).text
    found = told["counterfactual"]
    if found is None:
        assert WORDS["no_way"][0] in text
        return
    assert found["probability"] < 0.05 <= told["probability"]
    assert f"{found['probability']:.4f}" in text
    changed = {name: after for name, (_, after) in found["follows"].items()}
    for change in found["changes"]:
        names = (
            [name for name in FEATURES if name.startswith("channel_")]
            if change["lever"] == "channel"
            else [change["lever"]]
        )
        changed |= dict(zip(names, change["after"], strict=True))
    other = row.copy()
    for name, after in changed.items():
        other[FEATURES.index(name)] = after
    model = from_onnx(onnx.load(str(home / "risk/1/model.onnx")))
    assert float(model.probability(other[None])[0]) == pytest.approx(found["probability"], abs=1e-6)


def test_the_default_threshold_is_the_review_threshold_of_the_shipped_policy():
    policy = (ROOT / "services/risk/policy.toml").read_text(encoding="utf-8")
    assert float(re.search(r"^review_at = ([\d.]+)", policy, re.M)[1]) == cli.THRESHOLD


def test_too_few_days_to_train_on_still_explain_a_decision(tmp_path, home):
    folder = small_bank(tmp_path / "bank", days=10)
    told = json.loads(call(*words_for(folder, home, ids(folder)[-1]), "--json"))
    assert told["training"]["days"] == "all earlier days"
    with pytest.raises(TrainingError, match="no training rows"):
        call(*words_for(folder, home, ids(folder)[0]), "--json")


def test_rounded_parts_add_up_and_none_is_off_by_more_than_a_unit():
    random = np.random.default_rng(2)
    for _ in range(50):
        parts = random.normal(size=len(FEATURES))
        total = round(float(parts.sum()) * 10_000)
        whole = rounded_to_sum(list(parts), total, 4)
        assert sum(whole) == total
        assert (np.abs(np.array(whole) - parts * 10_000) < 1.0001).all()
    with pytest.raises(TrainingError, match="do not add up"):
        rounded_to_sum([1.0, 2.0], 40_000, 4)


def test_every_word_of_the_page_is_there_in_both_languages():
    for name, (english, chinese) in WORDS.items():
        assert english, name
        assert chinese, name
        assert set(re.findall(r"\{(\w+)\}", english)) == set(re.findall(r"\{(\w+)\}", chinese)), name


def test_the_model_as_a_whole_goes_to_files_and_json(bank, home, tmp_path):
    words = ("model", "--data", bank, "--model", 1, "--repository", home, "--out", tmp_path / "whole")
    told = json.loads(call(*words, "--pictures", 2, "--json"))
    assert told == json.loads((tmp_path / "whole/importance.json").read_text())
    assert len(list((tmp_path / "whole").glob("*.svg"))) == 3
    text = call(*words, "--pictures", 0)
    assert f"`{told['features'][0]['feature']}`" in text


def test_stability_compares_seeds_or_a_given_version_and_nudges_the_served_one(bank, home):
    words = ("stability", "--data", bank, "--model", 1, "--repository", home, "--json")
    seeds = json.loads(call(*words, "--seeds", 1, "--quick"))["lines"]
    assert "all: seed 2, against seed 1" in seeds
    assert 0 <= seeds["all: seed 2, against seed 1"]["first"] <= 1
    itself = json.loads(call(*words, "--against", 1))["lines"]["all: version 1"]
    assert (itself["first"], itself["three"], itself["moved"]) == (1, 1, 0)
    assert seeds["all: hour +1"] == json.loads(call(*words, "--seeds", 0))["lines"]["all: hour +1"]
